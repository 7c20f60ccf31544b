"""The client's commands: ``python -m fedmoe_client enrol | up | recommend | forget | down``."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

from fedmoe.deployment.flower_part import require_flower
from fedmoe.deployment.front_door import Command, main, parser_of
from fedmoe.deployment.keys import make_key_pair, public_half, read_public_key, read_roster
from fedmoe.deployment.ports import free_port, parse_address, require_free
from fedmoe.deployment.superexec import superexec
from fedmoe.deployment.supervisor import (
    Program,
    Supervisor,
    end_leftovers,
    require_stopped,
    start_in_background,
    stop,
)
from fedmoe.errors import FedMoEError
from fedmoe.packages import app_version
from fedmoe.secure.phases import SMALLEST
from fedmoe_client.device.client_folder import ClientFolder, node_config, supernode_command
from fedmoe_client.device.hand_over import install_program
from fedmoe_client.device.node import ANSWER_SECONDS, KEEP_SECONDS
from fedmoe_client.device.resident_call import forget as erase_state

DEFAULT_FOLDER = Path("fedmoe-client")
CONNECT_SECONDS = 40.0
HELP = """\
Take part in a federation with your own history, which stays here. What follows -- goes to Flower's own program.

  python -m fedmoe_client enrol                                         make a key pair; hand in its public half
  python -m fedmoe_client up --server HOST:PORT --ca ca.crt --history FILE --catalogue FOLDER
  python -m fedmoe_client recommend --top 10                            what you may want next, ranked on this machine
  python -m fedmoe_client forget                                        erase what the client keeps beside your history
  python -m fedmoe_client down                                          stop taking part; everything is kept

Exit status: 0 done, 1 'up' is not connected yet and goes on trying, 2 something for you to put right."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made, commands = parser_of("fedmoe_client", HELP)
    enrol_parser = commands.add_parser("enrol", help="make this client's key pair")
    enrol_parser.add_argument("--client-id", type=int, help="number to ask for (default: follows from the key)")
    up_parser = commands.add_parser("up", help="start the client (options after -- go to flower-supernode)")
    up_parser.add_argument("--server", required=True, metavar="HOST:PORT", help="where the server listens")
    up_parser.add_argument("--ca", type=Path, help="the server's ca.crt (kept in the folder after the first time)")
    up_parser.add_argument("--history", type=Path, help="your history file, or a folder of many users' files")
    up_parser.add_argument("--catalogue", type=Path, help="folder of the server's catalogue (default: the data set's)")
    up_parser.add_argument("--user", type=int, help="without --history: a user of the settings' own data set")
    up_parser.add_argument(
        "--plain", action="store_true", help="no resident process: load torch and the model for each message"
    )
    up_parser.add_argument(
        "--keep-torch",
        type=_count,
        default=KEEP_SECONDS,
        metavar="SECONDS",
        help="without a message for so long, give back the memory of torch and the model (default: %(default)s)",
    )
    up_parser.add_argument(
        "--require-secure-aggregation",
        type=int,
        nargs="?",
        const=SMALLEST,
        metavar="CLIENTS",
        help="answer only where the server sees no more than the sum of so many clients (default: %(const)s)",
    )
    up_parser.add_argument(
        "--answer-after",
        type=_seconds,
        default=ANSWER_SECONDS,
        metavar="SECONDS",
        help="send masked answers so long after the question, or a multiple of it: their time is not to tell how "
        "long the history is; 0: at once (default: %(default)s)",
    )
    up_parser.add_argument(
        "--no-padding",
        action="store_true",
        help="work no longer than the own history needs: the time of an answer then tells the server how long it is",
    )
    up_parser.add_argument("--roster", type=Path, help="public keys of the clients to sum with, a line each")
    up_parser.add_argument("--port", type=int, help="local port of the node (default: a free one)")
    up_parser.add_argument("--foreground", action="store_true", help="stay in the foreground (systemd, containers)")
    commands.add_parser("down", help="stop the client and all that it started")
    recommend_parser = commands.add_parser("recommend", help="rank what you may want next; the client need not run")
    recommend_parser.add_argument("--top", type=_count, default=10, help="number of items (default: %(default)s)")
    recommend_parser.add_argument("--history", type=Path, help="file or folder of the history; default: the node's")
    recommend_parser.add_argument("--user", help="name of the user, where the history is a folder of several")
    recommend_parser.add_argument("--json", action="store_true", help="print JSON")
    forget_parser = commands.add_parser("forget", help="erase what the client keeps")
    for each in (recommend_parser, forget_parser):
        each.add_argument("--state-dir", type=Path, help="the client's state folder (default: the one in --dir)")
    for each in commands.choices.values():
        each.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="the client's folder (default: %(default)s)")
    return made


def enrol(given: argparse.Namespace, extra: list[str]) -> int:
    """Make the key pair and say what to hand in."""
    folder = ClientFolder(given.dir)
    if given.client_id is not None and not 0 <= given.client_id < 2**62:
        raise FedMoEError(f"--client-id {given.client_id} must be between 0 and 2^62")
    folder.make()
    if folder.key.exists():
        key = read_public_key(public_half(folder.key))
        print(f"this client has a key already: client {key.client}")
    else:
        key = make_key_pair(folder.key, given.client_id)
        print(f"key pair made: client {key.client}")
    print(
        f"hand in {public_half(folder.key)}; the server's operator admits it. {folder.key} never leaves this machine."
    )
    return 0


def up(given: argparse.Namespace, extra: list[str]) -> int:
    """Start the client; return when it is connected, or with ``--foreground`` when it has been stopped."""
    require_flower()
    folder = ClientFolder(given.dir)
    parse_address(given.server)
    if not folder.key.exists():
        raise FedMoEError(
            f"{folder.path} has no key: make one with 'python -m fedmoe_client enrol --dir {folder.path}'"
        )
    config = _node_config(folder, given)
    require_stopped(folder, "client")
    folder.make()
    folder.trust(given.ca)
    end_leftovers(folder)
    if given.port:
        require_free("127.0.0.1", given.port, "--port")
    if given.foreground:
        _take_part(folder, given, config, extra)
        return 0
    start = folder.node_log.stat().st_size if folder.node_log.exists() else 0
    deadline = time.monotonic() + CONNECT_SECONDS
    words = ["up", "--foreground", *sys.argv[2:]]
    connected = lambda: folder.node_id(start) is not None or time.monotonic() > deadline  # noqa: E731
    start_in_background(folder, "fedmoe_client", words, connected)
    if folder.node_id(start) is None:
        why = folder.refusal(start) or "the server has not answered"
        print(f"not connected yet; it goes on trying: {why} (see {folder.node_log})")
        return 1
    print(f"connected to {given.server}")
    return 0


def down(given: argparse.Namespace, extra: list[str]) -> int:
    """Stop the client; nothing that it started is left, and all that it keeps stays in its folder."""
    print("the client is down" if stop(ClientFolder(given.dir)) else "no client was running")
    return 0


def recommend(given: argparse.Namespace, extra: list[str]) -> int:
    """Print the items that the user may want next; the client need not run."""
    from fedmoe_client.device.recommend import recommendations  # torch, which takes a second

    folder = ClientFolder(given.dir)
    folder.use_cache()
    found = recommendations(given.state_dir or folder.state, given.top, given.history, given.user)
    for line in found.notes:
        print(f"note: {line}", file=sys.stderr)
    print(json.dumps(asdict(found), ensure_ascii=False) if given.json else found.table())
    return 0


def forget(given: argparse.Namespace, extra: list[str]) -> int:
    """Erase what the client keeps: private parameters, memory, number and global model; the history is the user's own.

    A training that is under way is ended with the resident process. A client that takes part again starts from the
    server's values; one that had drawn its number draws another, so that it cannot be told to be the same.
    """
    state_dir = given.state_dir or ClientFolder(given.dir).state
    erased = erase_state(state_dir)
    print(f"erased {', '.join(erased) or 'nothing: there was nothing'} in {state_dir}")
    return 0


def _node_config(folder: ClientFolder, given: argparse.Namespace) -> str:
    client = read_public_key(public_half(folder.key)).client
    if (given.history is None) == (given.user is None):
        raise FedMoEError("give either --history with your own history, or --user with a user of the data set")
    if (smallest := given.require_secure_aggregation) is not None and smallest < SMALLEST:
        raise FedMoEError(
            f"--require-secure-aggregation {smallest}: the sum of fewer than {SMALLEST} clients hides none"
        )
    if given.roster is not None and client not in read_roster(given.roster):
        raise FedMoEError(f"--roster {given.roster} has no key of this client, {client}: add the line of its .pub file")
    for option in ("history", "catalogue"):
        path = getattr(given, option)
        if path is not None and not path.exists():
            raise FedMoEError(f"--{option} {path} does not exist")
    if given.user is not None and given.user != client:
        raise FedMoEError(
            f"--user {given.user}, but this client was enrolled as client {client}: enrol with --client-id {given.user}"
        )
    return node_config(
        {
            "partition-id": client,
            "history": given.history,
            "catalogue": given.catalogue,
            "state-dir": folder.state,
            "key": folder.key,
            "roster": given.roster,
            "require-secure": given.require_secure_aggregation,
            "warm": "false" if given.plain else None,
            "keep-torch": given.keep_torch,
            "answer-after": given.answer_after,
            "padding": "false" if given.no_padding else None,
            "fedmoe": f'"{app_version()}"',
        }
    )


def _take_part(folder: ClientFolder, given: argparse.Namespace, config: str, extra: list[str]) -> None:
    folder.clear_apps()
    environment = folder.environment(os.environ)
    if not given.plain:
        environment["PATH"] = os.pathsep.join([str(install_program(folder.state)), environment["PATH"]])
    port = given.port or free_port()
    command = supernode_command(folder, given.server, port, config, extra)
    node = Program("supernode", command, crashed=lambda: folder.release(given.server, environment), beats=True)
    Supervisor(folder, [node, superexec(folder, node, ("127.0.0.1", port), together=True)], environment).run()


def _seconds(word: str) -> float:
    number = float(word)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError("must be a number of seconds")
    return number


def _count(word: str) -> int:
    number = int(word)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


COMMANDS: dict[str, Command] = {"enrol": enrol, "up": up, "down": down, "recommend": recommend, "forget": forget}


def command() -> int:
    """Run this process's own command line."""
    return main(parser(), COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
