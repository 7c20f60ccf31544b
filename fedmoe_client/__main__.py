"""The client's commands: ``python -m fedmoe_client enrol | up | recommend | forget | down``."""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from fedmoe.deployment.background import last_lines, start_in_background
from fedmoe.deployment.front_door import Command, main, subcommands
from fedmoe.deployment.keys import make_key_pair, public_half, read_public_key
from fedmoe.deployment.ports import free_port, parse_address
from fedmoe.deployment.supervisor import Program, Supervisor, running_supervisor, stop
from fedmoe.errors import FedMoEError
from fedmoe_client.device.client_folder import ClientFolder, node_config, supernode_command
from fedmoe_client.device.launcher import install_launcher

DEFAULT_FOLDER = Path("fedmoe-client")
CONNECT_SECONDS = 40.0
HELP = """\
Take part in a federation with your own history, which stays here. What follows -- goes to Flower's own program.

  python -m fedmoe_client enrol                                         make a key pair; hand in its public half
  python -m fedmoe_client up --server HOST:PORT --ca ca.crt --history FILE --catalogue FOLDER
  python -m fedmoe_client recommend --top 10                            what you may want next, ranked on this machine
  python -m fedmoe_client forget                                        erase what the client keeps beside your history
  python -m fedmoe_client down                                          stop taking part; everything is kept

Exit status: 0 done, 2 something for you to put right."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m fedmoe_client", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = subcommands(made)
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
    up_parser.add_argument("--port", type=int, help="local port of the node (default: a free one)")
    up_parser.add_argument("--foreground", action="store_true", help="stay in the foreground (systemd, containers)")
    commands.add_parser("down", help="stop the client and all that it started")
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
    folder = ClientFolder(given.dir)
    parse_address(given.server)
    if not folder.key.exists():
        raise FedMoEError(
            f"{folder.path} has no key: make one with 'python -m fedmoe_client enrol --dir {folder.path}'"
        )
    config = _node_config(folder, given)
    if given.foreground:
        folder.make()
        folder.trust(given.ca)
        _take_part(folder, given, config, extra)
        return 0
    if running_supervisor(folder) is not None:
        raise FedMoEError(f"the client of {folder.path} runs already: stop it with 'down' first")
    folder.make()
    folder.trust(given.ca)
    start = folder.node_log.stat().st_size if folder.node_log.exists() else 0
    deadline = time.monotonic() + CONNECT_SECONDS
    start_in_background(
        folder,
        "fedmoe_client",
        ["up", "--foreground", *sys.argv[2:]],
        folder.environment(os.environ),
        lambda: folder.node_id(start) is not None or time.monotonic() > deadline,
    )
    if folder.node_id(start) is None:
        print(f"not connected yet; it goes on trying. {folder.node_log} says:\n{last_lines(folder.node_log, 6)}")
    else:
        print(f"connected to {given.server}")
    return 0


def down(given: argparse.Namespace, extra: list[str]) -> int:
    """Stop the client; nothing that it started is left, and all that it keeps stays in its folder."""
    print("the client is down" if stop(ClientFolder(given.dir)) else "no client was running")
    return 0


def recommend(words: list[str]) -> int:
    """Print recommendations; the client need not run."""
    from fedmoe_client.device import recommend as command

    return command.main(_with_state_folder(words))


def forget(words: list[str]) -> int:
    """Erase what the client keeps."""
    from fedmoe_client.device import forget as command

    return command.main(_with_state_folder(words))


def _with_state_folder(words: list[str]) -> list[str]:
    """Put the state folder in the place of ``--dir``, or of its default."""
    names = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    names.add_argument("--dir", type=Path, default=DEFAULT_FOLDER)
    names.add_argument("--state-dir", type=Path)
    given, others = names.parse_known_args(words)
    os.environ.setdefault("FEDMOE_CACHE", str(ClientFolder(given.dir).cache))
    return ["--state-dir", str(given.state_dir or ClientFolder(given.dir).state), *others]


def _node_config(folder: ClientFolder, given: argparse.Namespace) -> str:
    if (given.history is None) == (given.user is None):
        raise FedMoEError("give either --history with your own history, or --user with a user of the data set")
    for option in ("history", "catalogue"):
        path = getattr(given, option)
        if path is not None and not path.exists():
            raise FedMoEError(f"--{option} {path} does not exist")
    client = read_public_key(public_half(folder.key)).client
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
            "warm": "false" if given.plain else None,
        }
    )


def _take_part(folder: ClientFolder, given: argparse.Namespace, config: str, extra: list[str]) -> None:
    folder.clear_apps()
    environment = folder.environment(os.environ)
    if not given.plain:
        environment["PATH"] = os.pathsep.join([str(install_launcher(folder.state)), environment["PATH"]])
    command = supernode_command(folder, given.server, given.port or free_port(), config, extra)
    node = Program("supernode", command, crashed=lambda: folder.release(given.server, environment))
    Supervisor(folder, [node], environment, _note).run()


def _note(text: str) -> None:
    print(f"{time.strftime('%Y-%m-%d %H:%M:%S', time.gmtime())} {text}", flush=True)


COMMANDS: dict[str, Command] = {"enrol": enrol, "up": up, "down": down}
OTHERS = {"recommend": recommend, "forget": forget}

if __name__ == "__main__":
    sys.exit(main(parser(), COMMANDS, OTHERS, sys.argv[1:]))
