"""A silo's users have private parameters of their own; what is shared goes on from user to user."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_client import SHARED, Deployment
from flwr.app import RecordDict

from fedmoe.metrics import LISTS
from fedmoe.wire import unpack
from fedmoe_client.device.recommend import recommendations
from fedmoe_client.device.task import perform
from fedmoe_client.learning.client import FedMoEClient, workbench
from fedmoe_client.learning.lists import shown_lists
from fedmoe_client.learning.own_client import TABLE
from fedmoe_client.learning.silo import Silo
from fedmoe_client.store.history import OwnHistories, number_of
from fedmoe_client.store.private import InContext, NamedArrays, of_user

USERS = (1, 4, 7)


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    return Deployment(tmp_path / "client")


def histories(deployment: Deployment, *users: int) -> OwnHistories:
    known = deployment.dataset.interactions
    found = {user: known.history(user) for user in users}
    return OwnHistories(known.num_items, found, {user: str(user) for user in users}, dict.fromkeys(users, ()))


def trained(client: FedMoEClient, server: NamedArrays, number: int) -> NamedArrays:
    """Train a round from the server's arrays; return all shared arrays as they are then."""
    config: dict[str, Any] = {"server-round": number, "shared": SHARED}
    sent, _, _ = client.fit(list(server.values()), config)
    names = client.reply_names(SHARED, sent)
    reply = dict(zip(names, sent, strict=True))
    for rows in [name for name in reply if name not in server]:  # of the item table travel the touched rows
        whole = server[TABLE].copy()
        whole[reply.pop(rows)] = reply[TABLE]
        reply[TABLE] = whole
    return reply


def test_each_user_trains_as_a_client_that_gets_what_is_shared_from_the_one_before(deployment: Deployment) -> None:
    """Three rounds of a silo are nine trainings of three clients, one after the other."""
    bench = workbench(deployment.run_config)
    server = {name: np.array(array) for name, array in zip(bench.names, _initial(deployment), strict=True)}
    state, states = InContext(RecordDict()), {user: InContext(RecordDict()) for user in USERS}
    for number in (1, 2, 3):
        silo = Silo(bench, 99, state, histories(deployment, *USERS))
        given = dict(server)
        after = trained(silo, given, number)
        for user in silo._order:
            alone = FedMoEClient(bench, user, states[user], histories(deployment, user))
            server |= trained(alone, server, number)
        for name, array in after.items():
            np.testing.assert_allclose(array, server[name], rtol=1e-4, atol=1e-6, err_msg=name)
        kept = state.load()
        for user in USERS:
            own = states[user].load()
            assert own.keys() == of_user(kept, user).keys() and own
            for name, array in own.items():
                np.testing.assert_allclose(of_user(kept, user)[name], array, rtol=1e-4, atol=1e-6, err_msg=name)
    gates = {float(of_user(kept, user)["gate.value"]) for user in USERS}
    assert len(gates) == 3
    for user in USERS:  # each is ranked with its own
        config = {"server-round": 3, "shared": SHARED, "split": "test"}
        _, _, one = FedMoEClient(bench, user, states[user], histories(deployment, user)).evaluate(
            list(server.values()), config
        )
        _, _, same = Silo(bench, 99, state, histories(deployment, user)).evaluate(list(server.values()), config)
        assert one == pytest.approx(same, rel=1e-4)
    silo = Silo(bench, 99, state, histories(deployment, *USERS))
    _, count, means = silo.evaluate(list(server.values()), config)
    assert count == 3 and means["rank"] != means["global-rank"]
    lists = _lists(silo)["items"]
    for place, user in enumerate(USERS):  # what each is shown is what it is shown as a client of its own
        alone = FedMoEClient(bench, user, states[user], histories(deployment, user))
        alone.evaluate(list(server.values()), config)
        assert lists[10 * place : 10 * place + 10] == _lists(alone)["items"]
    assert len(lists) == 30 and lists != _lists(silo)["global-items"]


def _lists(client: FedMoEClient) -> dict[str, Any]:
    client.workbench.list_length = 10
    try:
        return dict(shown_lists(client, "test").metric_records[LISTS])
    finally:
        client.workbench.list_length = 0


def test_a_user_who_was_away_finds_its_own_and_recommendations_use_it(deployment: Deployment) -> None:
    silo = deployment.folder / "silo"
    silo.mkdir()
    known = deployment.dataset.interactions
    for user in USERS:
        ids = known.item_ids[known.history(user)]
        (silo / f"user{user}.txt").write_text("".join(f"{item}\n" for item in ids))
    perform(deployment.task("train", 1, history=str(silo)))
    away, text = silo / "user4.txt", (silo / "user4.txt").read_text()
    away.unlink()
    perform(deployment.task("train", 2, history=str(silo)))
    away.write_text(text)
    before = _gates(deployment)
    assert len(set(before.values())) == 3
    perform(deployment.task("train", 3, history=str(silo)))
    assert all(_gates(deployment)[name] != gate for name, gate in before.items())
    scores = {
        user: [item.score for item in recommendations(deployment.state_dir, 5, silo, f"user{user}").items]
        for user in USERS
    }
    (silo / "user9.txt").write_text(text)  # the same history without private parameters of its own
    new = [item.score for item in recommendations(deployment.state_dir, 5, silo, "user9").items]
    assert new != scores[4]


def _gates(deployment: Deployment) -> dict[str, float]:
    from fedmoe_client.store.folder import StateFolder
    from fedmoe_client.store.private import latest_private

    (file,) = deployment.state_dir.glob("private-*.state")
    arrays = latest_private(StateFolder(deployment.state_dir).load(file.stem))
    return {f"user{user}": float(of_user(arrays, number_of(f"user{user}"))["gate.value"]) for user in USERS}


def _initial(deployment: Deployment) -> list[Any]:
    return list(unpack(bytearray(deployment.task("train", 1).arrays)).values())
