"""The server's commands: ``python -m fedmoe_server up | admit | run | status | ... | down``."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace
from pathlib import Path

from fedmoe.deployment.flower_part import require_flower
from fedmoe.deployment.front_door import Command, main, parser_of
from fedmoe.deployment.keys import read_public_key
from fedmoe.deployment.ports import listens, own_address, parse_address, require_free, wait_until_closed
from fedmoe.deployment.superexec import superexec
from fedmoe.deployment.supervisor import Program, Supervisor, end_leftovers, require_stopped, start_in_background, stop
from fedmoe.errors import FedMoEError
from fedmoe.files import alone, write_json
from fedmoe_server.deploy.certificates import Certificates, given_certificates, own_certificates
from fedmoe_server.deploy.deployed import AdmittedClient
from fedmoe_server.deploy.server_folder import CONNECTION, Addresses, ServerFolder, superlink_command

DEFAULT_FOLDER = Path("fedmoe-server")
HELP = """\
Serve a federation of real clients over gRPC with TLS. What follows -- goes to Flower's own program.

  python -m fedmoe_server demo                                          all of it on this machine, in minutes
  python -m fedmoe_server up [--address HOST:PORT] [--name HOST] ...     start the server in the background
  python -m fedmoe_server admit CLIENT.pub ...                          register clients' public keys
  python -m fedmoe_server clients                                       the admitted clients, and the revoked ones
  python -m fedmoe_server revoke CLIENT ...                             no longer let clients in, also in mid run
  python -m fedmoe_server catalogue CONFIG --out FOLDER                 what clients need to know of the items
  python -m fedmoe_server run CONFIG [key=value ...]                    run a federation, follow it to its end
  python -m fedmoe_server run --resume RUN_FOLDER                       go on from a run's last checkpoint
  python -m fedmoe_server status [--watch]                              the run, who is missing, what failed and why
  python -m fedmoe_server page                                          all that in a browser, and for Prometheus
  python -m fedmoe_server runs                                          all runs that were submitted
  python -m fedmoe_server follow [RUN]                                  follow a run from its beginning to its end
  python -m fedmoe_server stop [RUN]                                    stop a run
  python -m fedmoe_server export RUN_FOLDER                             a run's model as safetensors, with a card
  python -m fedmoe_server down                                          stop everything

Exit status: 0 done, 1 the run failed or the server is down, 2 something for you to put right."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made, commands = parser_of("fedmoe_server", HELP)
    up_parser = commands.add_parser("up", help="start the server (options after -- go to flower-superlink)")
    up_parser.add_argument("--address", default="0.0.0.0:9092", help="where clients connect (default: %(default)s)")
    up_parser.add_argument("--control", default="127.0.0.1:8000", help="where commands connect (default: %(default)s)")
    up_parser.add_argument(
        "--name", action="append", default=[], help="host name or address that clients use; may be repeated"
    )
    up_parser.add_argument("--ca", type=Path, help="authority's certificate, if you bring your own")
    up_parser.add_argument("--certificate", type=Path, help="server's certificate, if you bring your own")
    up_parser.add_argument("--key", type=Path, help="private key of --certificate")
    up_parser.add_argument("--foreground", action="store_true", help="stay in the foreground (systemd, containers)")
    up_parser.add_argument("--page", metavar="HOST:PORT", help="keep the page of 'page' running at this address")
    admit_parser = commands.add_parser("admit", help="register clients' public keys")
    admit_parser.add_argument("keys", nargs="+", type=Path, metavar="CLIENT.pub", help="public keys of clients")
    revoke_parser = commands.add_parser("revoke", help="no longer let clients in, from this moment on")
    revoke_parser.add_argument("clients", nargs="+", type=int, metavar="CLIENT", help="numbers, as 'clients' has them")
    run_parser = commands.add_parser("run", help="run a federation (options after -- go to flwr run)")
    run_parser.add_argument("words", nargs="*", metavar="CONFIG|key=value", help="settings, as of sim.py")
    run_parser.add_argument("--resume", type=Path, metavar="RUN_FOLDER", help="go on from a run's last checkpoint")
    run_parser.add_argument("--json-logs", action="store_true", help="log lines as JSON, here and at the clients")
    for name, meaning in (("follow", "show a run from its beginning to its end"), ("stop", "stop a run")):
        each = commands.add_parser(name, help=meaning)
        default = "the latest" if name == "follow" else "the one that is going on"
        each.add_argument("run", nargs="?", metavar="RUN", help=f"its number, or its folder (default: {default})")
    commands.add_parser("runs", help="list the runs that were submitted")
    status_parser = commands.add_parser("status", help="show the run, the clients, what failed, traffic and disk")
    status_parser.add_argument("--watch", action="store_true", help="show it again every few seconds, until Ctrl-C")
    page_parser = commands.add_parser("page", help="show the runs in a browser, live, and to Prometheus (/metrics)")
    page_parser.add_argument("--address", default="127.0.0.1:9093", help="of this machine (default: %(default)s)")
    commands.add_parser("clients", help="list the admitted clients, and those that were revoked")
    catalogue_parser = commands.add_parser("catalogue", help="write what clients need to know of the items")
    catalogue_parser.add_argument("words", nargs="*", metavar="CONFIG|key=value", help="settings, as of sim.py")
    catalogue_parser.add_argument("--out", type=Path, required=True, help="folder to write, which must not exist yet")
    catalogue_parser.add_argument(
        "--items", type=Path, help="list of items, 'id<tab>title' a line, instead of the settings' data set"
    )
    export_parser = commands.add_parser("export", help="write a run's model")
    export_parser.add_argument("run_dir", type=Path, metavar="RUN_FOLDER")
    export_parser.add_argument(
        "--out", type=Path, help="folder to write, which must not exist yet (default: RUN_FOLDER/export)"
    )
    demo_parser = commands.add_parser("demo", help="a server and clients with real histories on this machine")
    demo_parser.add_argument("words", nargs="*", metavar="key=value", help="settings on top of the demo's own")
    demo_parser.add_argument("--clients", type=int, default=4, help="number of clients (default: %(default)s)")
    demo_parser.add_argument("--rounds", type=int, default=6, help="number of rounds (default: %(default)s)")
    demo_parser.add_argument("--keep", type=Path, metavar="FOLDER", help="new folder to keep everything in")
    commands.add_parser("down", help="stop the server and all that it started")
    for each in commands.choices.values():
        each.add_argument("--dir", type=Path, default=DEFAULT_FOLDER, help="the server's folder (default: %(default)s)")
    return made


def up(given: argparse.Namespace, extra: list[str]) -> int:
    """Start the server; return when it is ready, or with ``--foreground`` when it has been stopped."""
    require_flower()
    folder, addresses = ServerFolder(given.dir), Addresses(given.address, given.control)
    clients, control = parse_address(addresses.clients), parse_address(addresses.control)
    require_stopped(folder, "server")
    folder.make()
    end_leftovers(folder)
    require_free(*clients, "--address")
    require_free(*control, "--control")
    if given.page:
        own_address(given.page, "--page")
    if given.foreground:
        _serve(folder, addresses, _certificates(folder, given, clients[0], control[0]), given.page, extra)
        return 0
    words = ["up", "--foreground", *sys.argv[2:]]
    start_in_background(folder, "fedmoe_server", words, lambda: listens(*clients) and listens(*control))
    print(f"the server runs: clients connect to {addresses.clients} (gRPC, TLS)")
    print(f"give clients {folder.path / 'ca.crt'}; admit them with: python -m fedmoe_server admit CLIENT.pub")
    return 0


def admit(given: argparse.Namespace, extra: list[str]) -> int:
    """Register public keys at the server."""
    folder = ServerFolder(given.dir)
    folder.addresses()
    for path in given.keys:
        with alone(folder.path / "admit.lock"):
            print(_admit_one(folder, path, extra), flush=True)
    return 0


def _admit_one(folder: ServerFolder, path: Path, extra: list[str]) -> str:
    """Register a public key; return what to say. Raises FedMoEError if another key has its client id."""
    key, known = read_public_key(path), folder.admitted()
    for entry in folder.revoked():
        if key.fingerprint == entry.fingerprint or key.client == entry.client:
            what = "was revoked" if key.fingerprint == entry.fingerprint else f"asks for {key.client}, a revoked number"
            raise FedMoEError(f"{path} {what}: neither comes back; enrol in a new folder, with another --client-id")
    if same := [entry for entry in known if entry.fingerprint == key.fingerprint]:
        folder.admit(replace(same[0], key=key.line))  # an earlier version did not keep the key itself
        return f"{path} is admitted already: client {key.client}"
    if any(entry.client == key.client for entry in known):
        raise FedMoEError(
            f"{path} asks for client id {key.client}, which another key has: enrol with another --client-id"
        )
    answer = folder.flwr("supernode", "register", str(path), CONNECTION, *extra)
    folder.admit(AdmittedClient(key.client, int(answer["node-id"]), key.fingerprint, key.line))
    return f"{path} admitted: client {key.client}, node {answer['node-id']}"


def revoke(given: argparse.Namespace, extra: list[str]) -> int:
    """Take clients' keys back. A run that goes on does so without them."""
    folder = ServerFolder(given.dir)
    folder.addresses()
    with alone(folder.path / "admit.lock"):
        known = {entry.client: entry for entry in folder.admitted()}
        if unknown := [str(each) for each in given.clients if each not in known]:
            raise FedMoEError(
                f"no client {', '.join(unknown)} is admitted: 'python -m fedmoe_server clients' lists them"
            )
        for number in dict.fromkeys(given.clients):
            folder.flwr("supernode", "unregister", str(known[number].node), CONNECTION, *extra)
            folder.revoke(known[number])
            print(f"client {number} was revoked: it takes part in nothing from now on", flush=True)
    return 0


def clients(given: argparse.Namespace, extra: list[str]) -> int:
    """List the admitted clients, and those that were revoked."""
    folder = ServerFolder(given.dir)
    for entries, end in ((folder.admitted(), ""), (folder.revoked(), "  revoked")):
        for entry in entries:
            print(f"client {entry.client}  node {entry.node}  key {entry.fingerprint[:16]}{end}")
    return 0


def operate(given: argparse.Namespace, extra: list[str]) -> int:
    """Carry out a command around runs: ``run``, ``follow``, ``stop``, ``runs`` or ``status``."""
    # Settings and tables take a moment to import: not for the other commands.
    from fedmoe_server.deploy import operate

    command: Command = getattr(operate, given.command)
    return command(given, extra)


def page(given: argparse.Namespace, extra: list[str]) -> int:
    """Serve the page until Ctrl-C."""
    from fedmoe_server.monitor.page import serve

    serve(ServerFolder(given.dir), given.address, lambda where: print(f"{where} and {where}metrics", flush=True))
    return 0


def down(given: argparse.Namespace, extra: list[str]) -> int:
    """Stop the server; nothing that it started is left."""
    folder = ServerFolder(given.dir)
    addresses = folder.addresses()
    found = stop(folder)
    for address in (addresses.clients, addresses.control):
        if found and not wait_until_closed(*parse_address(address), seconds=10.0):
            raise FedMoEError(f"something still listens on {address}")
    print("the server is down" if found else "no server was running")
    return 0


def catalogue(given: argparse.Namespace, extra: list[str]) -> int:
    """Write what clients need to know of the items, and no history.

    The folder is handed to the clients once, by whatever way files are handed out, and again when the catalogue
    changes; the server itself needs no more than that (``dataset=catalogue data_dir=FOLDER``).
    """
    from data.dataset import save_catalogue
    from data.registry import catalogue_from_list, load_dataset
    from fedmoe_server.deploy.operate import settings_of

    ServerFolder(given.dir).use_cache()
    settings = settings_of(given.words)
    dataset = load_dataset(settings) if given.items is None else catalogue_from_list(given.items, settings)
    save_catalogue(dataset, given.out)
    marks = ", ".join(f"{name} {mark}" for name, mark in dataset.fingerprints().items())
    print(f"{given.out}: {dataset.interactions.num_items} items; {marks}")
    return 0


def demo(given: argparse.Namespace, extra: list[str]) -> int:
    """Show a federation on this machine, and take it down."""
    from fedmoe_server.deploy.demo import demo

    return demo(given, extra)


def export(given: argparse.Namespace, extra: list[str]) -> int:
    """Write a run's model."""
    from fedmoe_server.report.export import CARD, PROGRAM, export

    ServerFolder(given.dir).use_cache()
    done = export(given.run_dir, given.out or given.run_dir / "export")
    print(f"{done.folder}: the global model of round {done.round}; see {done.folder / CARD}")
    if done.program_problem is not None:
        print(f"note: without {PROGRAM}: {done.program_problem}", file=sys.stderr)
    return 0


def _serve(
    folder: ServerFolder, addresses: Addresses, certificates: Certificates, page: str | None, extra: list[str]
) -> None:
    folder.clear_apps()
    folder.remember(addresses, certificates)
    if not folder.clients.exists():
        write_json(folder.clients, [])
    command = superlink_command(folder, addresses, certificates, extra)
    link = Program("superlink", command, beats=True)
    tasks = superexec(folder, link, parse_address(addresses.control), certificates.authority)
    own = [sys.executable, "-P", "-m", "fedmoe_server", "page", "--address", str(page), "--dir", str(folder.path)]
    shown = [Program("page", own)] if page else []
    Supervisor(folder, [link, tasks, *shown], folder.environment(os.environ)).run()


def _certificates(folder: ServerFolder, given: argparse.Namespace, *hosts: str) -> Certificates:
    brought = (given.ca, given.certificate, given.key)
    named = [host for host in hosts if host not in ("0.0.0.0", "::")]
    if not any(brought):
        return own_certificates(folder.certificates, [*named, *given.name])
    if not all(brought):
        raise FedMoEError("your own certificate needs all of --ca, --certificate and --key")
    absolute = Certificates(*(path.absolute() for path in brought))
    return given_certificates(absolute, [*dict.fromkeys([*named, *given.name])])


COMMANDS: dict[str, Command] = {
    "up": up,
    "admit": admit,
    "clients": clients,
    "revoke": revoke,
    "catalogue": catalogue,
    **dict.fromkeys(("run", "follow", "stop", "runs", "status"), operate),
    "page": page,
    "export": export,
    "demo": demo,
    "down": down,
}


def command() -> int:
    """Run this process's own command line."""
    return main(parser(), COMMANDS, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(command())
