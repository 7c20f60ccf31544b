"""One server and three clients over gRPC with TLS: the commands, the wire, and equality with the simulation."""

from __future__ import annotations

import json
import socket
import ssl
from pathlib import Path
from typing import Any

import pytest
from real_processes import ROOT, SMALL, final_arrays, records, simulated

from fedmoe.deployment.ports import listens, parse_address
from fedmoe.wire import unpack
from fedmoe_client.store.folder import StateFolder
from model.build import parameter_groups

pytestmark = pytest.mark.deployment
PRIVATE = ("router", "gate", "norms")
WARMUP = 2
WIRETAP = Path(__file__).parent / "wiretap"
# The ten lines of docs/strategies.md; the server's processes find the module in the checkout, which is on PYTHONPATH.
OWN_STRATEGY = (
    "strategy=examples.strategies.server_step:ServerStep",
    "strategy_parameters.eta=0.5",
    "server_schedule=cosine",
)


def handshake(address: str, authority: Path, name: str = "127.0.0.1") -> ssl.SSLSocket:
    """Connect as a client that trusts an authority; return the connection after the TLS handshake."""
    context = ssl.create_default_context(cafile=str(authority))
    context.set_alpn_protocols(["h2", "http/1.1"])
    plain = socket.create_connection(parse_address(address), timeout=10)
    return context.wrap_socket(plain, server_hostname=name)


def sent_names(tap: Path) -> list[set[str]]:
    """Return the names of the arrays in each message that a node sent with arrays in it, in order."""
    found = []
    for file in sorted(tap.glob("*.PushObject")):
        head, _, body = file.read_bytes().partition(b"\0")
        if head.startswith(b"ArrayChunk"):
            found.append(set(unpack(body)))
    return found


def test_three_commands(federation: Any) -> None:
    expected = simulated(federation.root, *OWN_STRATEGY)
    taps = [federation.root / f"tap-{client}" for client in range(3)]
    for tap in taps:
        tap.mkdir()
    federation.up(lambda client: {"PYTHONPATH": f"{WIRETAP}:{ROOT}", "WIRETAP": str(taps[client])})

    with handshake(federation.address, federation.authority) as wire:
        assert wire.selected_alpn_protocol() == "h2"  # gRPC's protocol
        assert wire.version() in ("TLSv1.2", "TLSv1.3")

    said = federation.server("run", *SMALL, *OWN_STRATEGY, f"save_dir={federation.runs}")
    assert "round 5/5" in said
    run_dir = federation.run_dir()
    # In plain, as the words ask: the run, each client's log and the report say so.
    logs = [
        "".join(file.read_text() for file in (federation.client_dir(client) / "logs").iterdir()) for client in range(3)
    ]
    for told in (said, (run_dir / "report.md").read_text(), *logs):
        assert "the server sees each client's update and metrics: privacy.secure_aggregation is off; leave it" in told
    result = json.loads((run_dir / "result.json").read_text())
    assert result["status"] == "completed"
    assert 0 <= result["test"]["personalised"]["hr@10"] <= 1
    for name in ("settings.yaml", "metrics.jsonl", "report.md", "loss.png"):
        assert (run_dir / name).stat().st_size > 0

    # Deployment equals simulation: parameters, best model and the strategy's state bit for bit, and all metrics.
    deployed, wanted = final_arrays(run_dir), final_arrays(expected)
    assert deployed.keys() == wanted.keys()
    assert [name for name in wanted if wanted[name].tobytes() != deployed[name].tobytes()] == []
    assert [row["train"] for row in records(run_dir)] == [row["train"] for row in records(expected)]
    assert result["test"] == json.loads((expected / "result.json").read_text())["test"]

    # What left the nodes.
    model_names = {name.partition("/")[2] for name in wanted if name.startswith("arrays")}
    private = private_names(model_names)
    for client, tap in enumerate(taps):
        messages = [names - {"items.ids.weight/rows"} for names in sent_names(tap)]  # which rows of the table came
        assert len(messages) == 5  # one for each round; evaluations and queries carry no arrays
        assert all(names == model_names for names in messages[:WARMUP])
        assert all(names == model_names - private for names in messages[WARMUP:])
        sent = b"".join(file.read_bytes() for file in sorted(tap.iterdir()))
        for name, array in kept_private(federation.client_dir(client) / "state").items():
            assert array.nbytes < 8 or array.tobytes() not in sent, name

    table = federation.client(1, "recommend", "--top", 5)
    assert len([line for line in table.splitlines() if line.strip()[:1].isdigit()]) == 5

    federation.server("admit", federation.client_dir(0) / "client.pub")  # twice is no mistake
    federation.down()
    assert federation.processes() == []
    assert not listens(*parse_address(federation.address))
    assert not listens(*parse_address(federation.control))
    for outside in ("home", "tmp"):
        assert [path for path in (federation.root / outside).rglob("*") if path.is_file()] == []


def private_names(names: set[str]) -> set[str]:
    """Return the parameters of the groups that are private after the warm-up."""
    from data.registry import load_dataset
    from fedmoe.loading import load_settings

    settings = load_settings(SMALL)[0]
    groups = parameter_groups(settings, load_dataset(settings))
    found = {name for group in PRIVATE for name in groups[group]}
    assert found
    assert found < names
    return found


def kept_private(state_dir: Path) -> dict[str, Any]:
    """Return the private arrays that a client keeps."""
    store = StateFolder(state_dir)
    (file,) = state_dir.glob("private-*.state")
    state = store.load(file.stem)
    assert state is not None
    return {name: array for name, array in state.arrays.items() if not name.startswith("memory/")}
