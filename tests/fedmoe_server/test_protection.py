"""Whether real clients are added up under masks: where it is on by itself, why not, and who is asked no second time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fedmoe.errors import FedMoEError
from fedmoe.loading import load_settings, settings_from, settings_of_run
from fedmoe.settings import Settings
from fedmoe_server.deploy import submission
from fedmoe_server.deploy.deployed import AdmittedClient
from fedmoe_server.deploy.protection import protected, words_of_simulation
from fedmoe_server.deploy.server_folder import ServerFolder

EVERYBODY = "client_fraction=1"
WORDS = "simulation.engine=ray privacy.sum_bits=20"
PLAIN = "Without secure aggregation the server sees each client's update and metrics: "


def clients(number: int, key: str = "ecdsa-sha2-nistp384 AAAA") -> list[AdmittedClient]:
    return [AdmittedClient(client, 100 + client, "", key) for client in range(number)]


def settings(*words: str) -> Settings:
    return load_settings(["quick", *words])[0]


def test_it_is_on_by_itself_and_the_decision_is_in_the_settings() -> None:
    given = settings(EVERYBODY)
    assert given.privacy.sum_bits is None
    found, sees = protected(given, clients(3))
    assert (found.privacy.sum_bits, found.privacy.secure_aggregation, found.privacy.update_norm) == (20, "on", 1.0)
    assert sees == "Secure aggregation: the server sees sums over at least 3 clients, and no single update or metric"
    assert words_of_simulation(found) == WORDS
    # What a simulation makes of these words is what the deployment does, but for whom it waits for.
    simulated = settings(EVERYBODY, *words_of_simulation(found).split())
    for key in ("sum_bits", "update_norm"):
        assert getattr(simulated.privacy, key) == getattr(found.privacy, key)
    assert settings_from(json.loads(found.model_dump_json())) == found
    # A private run keeps its own clipping norm, and one that was given stays.
    words = (EVERYBODY, "privacy.epsilon=8", "privacy.side=distributed", "privacy.sum_bits=14")
    private, _ = protected(settings(*words), clients(10))
    assert (private.privacy.sum_bits, private.privacy.update_norm, words_of_simulation(private)) == (14, 0.2, "")
    assert protected(settings(EVERYBODY, "privacy.update_norm=7"), clients(3))[0].privacy.update_norm == 7.0


@pytest.mark.parametrize(
    ("words", "admitted", "why"),
    [
        ((EVERYBODY,), clients(2), "100% of 2 clients a round are fewer than privacy.smallest_cohort 3; raise"),
        ((), clients(14), "20% of 14 clients a round are fewer .* or admit 15 clients"),
        ((EVERYBODY, "privacy.smallest_cohort=6"), clients(5), "smallest_cohort 6; .* or admit 6 clients"),
        ((EVERYBODY, "strategy=krum"), clients(5), "strategy krum needs every client's update; use fedavg, "),
        ((EVERYBODY, "strategy=robust-rows"), clients(5), "strategy robust-rows needs every client's update"),
        ((EVERYBODY, "strategy=nowhere:Mine"), clients(5), r"cannot tell whether the strategy needs .*nowhere"),
        ((EVERYBODY, "norm_multiple=3"), clients(5), "federation.guards.norm_multiple compares single updates; leave"),
        ((EVERYBODY, "privacy.epsilon=8"), clients(9), "privacy.side server clips single updates; set it to distri"),
        ((EVERYBODY, "privacy.epsilon=8", "privacy.side=client"), clients(9), "privacy.side client clips single"),
        ((EVERYBODY, "client=a:B"), clients(5), "training.client a:B may send records .* set privacy.sum_bits to 20"),
        ((EVERYBODY,), [*clients(4), AdmittedClient(9, 9, "")], "the keys of clients 9 are not known; admit their"),
        ((EVERYBODY, "evaluate_clients=2"), clients(5), "evaluate_clients 2 is less than privacy.smallest_cohort 3"),
    ],
)
def test_where_it_cannot_be_had_one_line_says_why_and_how(
    words: tuple[str, ...], admitted: list[AdmittedClient], why: str
) -> None:
    found, sees = protected(settings(*words), admitted)
    assert (found.privacy.sum_bits, found.privacy.secure_aggregation) == (0, "off")
    assert sees.startswith(PLAIN) and len(sees.splitlines()) == 1
    with pytest.raises(FedMoEError, match=why):
        raise FedMoEError(sees)
    assert found.privacy.update_norm == settings(*words).privacy.update_norm
    assert found.deployment == settings(*words).deployment
    assert words_of_simulation(found) == ("" if found.privacy.on else "simulation.engine=ray aggregate_in_hosts=false")


@pytest.mark.parametrize("asked", ["privacy.secure_aggregation=on", "privacy.sum_bits=16"])
def test_who_asks_for_it_gets_it_or_an_error(asked: str) -> None:
    for words, admitted, why in (
        ((EVERYBODY,), clients(2), "secure aggregation cannot be had: 100% of 2 clients"),
        ((EVERYBODY, "strategy=krum"), clients(5), "secure aggregation cannot be had: strategy krum"),
        ((EVERYBODY,), clients(5, key=""), "secure aggregation cannot be had: the keys of clients 0, 1, 2"),
    ):
        with pytest.raises(FedMoEError, match=why):
            protected(settings(*words, asked), admitted)
    found, sees = protected(settings(EVERYBODY, "norm_multiple=3", "client=a:B", asked), clients(3))
    assert found.privacy.secure_aggregation == "on" and sees.startswith("Secure aggregation")
    assert found.privacy.sum_bits == (16 if "16" in asked else 20)


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("privacy.secure_aggregation=off", "privacy.secure_aggregation is off; leave it out to switch it on"),
        ("privacy.sum_bits=0", "privacy.sum_bits is 0; leave it out, or set it to 20"),
    ],
)
def test_it_is_off_when_said_and_says_so(word: str, why: str) -> None:
    found, sees = protected(settings(EVERYBODY, word), clients(5))
    assert (found.privacy.sum_bits, found.privacy.secure_aggregation) == (0, "off")
    assert sees == PLAIN + why
    masked = protected(settings(EVERYBODY, "privacy.sum_bits=16", "privacy.secure_aggregation=off"), clients(5))[0]
    assert (masked.privacy.sum_bits, masked.privacy.secure_aggregation) == (16, "off")


@pytest.mark.parametrize(("fraction", "given", "least"), [("1", 1, 3), ("0.2", 1, 15), ("0.7", 1, 5), ("1", 9, 9)])
def test_a_run_waits_for_as_many_clients_as_a_sum_needs(fraction: str, given: int, least: int) -> None:
    found, _ = protected(settings(f"client_fraction={fraction}", f"min_clients={given}"), clients(15))
    assert found.privacy.sum_bits == 20
    assert found.deployment.min_clients == least
    assert int(found.federation.client_fraction * least + 1e-9) >= 3
    assert given == least or int(found.federation.client_fraction * (least - 1) + 1e-9) < 3


def test_a_run_that_is_gone_on_with_keeps_what_was_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ServerFolder(tmp_path / "server")
    server.make()
    for client in clients(5):
        server.admit(client)
    configs: list[str] = []

    def flwr(*words: str) -> dict[str, Any]:
        configs.append(Path(words[words.index("--run-config") + 1]).read_text())
        return {"run-id": len(configs)}

    monkeypatch.setattr(submission, "require_up", lambda server: None)
    monkeypatch.setattr(submission, "_await_beginnings", lambda server, show: None)
    monkeypatch.setattr(server, "flwr", flwr)
    said: list[str] = []
    run = submission.submit(server, settings(EVERYBODY, f"save_dir={tmp_path}"), None, [], said.append)
    assert said == [f"a simulation of the same bits has {WORDS}: python sim.py {run.path / 'settings.yaml'} {WORDS}"]
    assert (
        'sees = "Secure aggregation: ' in configs[0] and r"\"sum_bits\":20,\"secure_aggregation\":\"on\"" in configs[0]
    )
    # Plain, because of what was so when it began; more clients have been admitted since.
    text = "privacy: {sum_bits: 0, secure_aggregation: 'off'}\nfederation: {client_fraction: 1}\n"
    (run.path / "settings.yaml").write_text(text)
    (run.path / "run.json").write_text(json.dumps({"sees": PLAIN + "there were two"}))
    submission.submit(server, settings_of_run(run.path), run.path, [], said.append)
    assert "there were two" in configs[1] and r"\"sum_bits\":0" in configs[1]
