"""What the user gets: items ranked on the device, as the evaluator would rank them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from deployed_client import SHARED, USER, WORDS, Deployment

from data.dataset import save_catalogue
from fedmoe.errors import FedMoEError
from fedmoe.wire import packed_bytes
from fedmoe_client.__main__ import COMMANDS, main, parser
from fedmoe_client.device.node import node_from
from fedmoe_client.device.recommend import Recommendations, recommendations
from fedmoe_client.device.task import Task, perform
from fedmoe_client.learning.client import workbench
from fedmoe_client.learning.evaluation import model_scorer
from fedmoe_client.store.folder import StateFolder
from fedmoe_client.store.private import GLOBAL, InFolder, latest_private, private_name


@pytest.fixture
def trained(deployment: Deployment) -> Deployment:
    deployment.train(1)
    perform(deployment.task("evaluate", 1))
    return deployment


def command(*words: str) -> int:
    return main(parser(), COMMANDS, words)


def best(deployment: Deployment, top: int = 5, **arguments: Any) -> Recommendations:
    return recommendations(deployment.state_dir, top, **arguments)


def test_scores_are_those_of_the_evaluator(trained: Deployment) -> None:
    """The model of the last round with the private part of this client, as torch has it."""
    client = workbench(trained.run_config)
    state = StateFolder(trained.state_dir)
    received, private = state.load(GLOBAL), state.load(private_name(client.identity["model"]))
    assert received is not None
    own = latest_private(private)
    assert set(own) == set(client.names) - set(client.names_in(tuple(SHARED)))
    client.load(received.arrays | own)
    known = trained.dataset.interactions
    met = known.history(USER).astype(np.int64)
    items = np.setdiff1d(np.arange(1, known.num_items + 1), met)
    context = np.concatenate([np.zeros(100, np.int64), met])[None]
    scores = model_scorer(client.model)(context, items[None])[0]
    order = np.argsort(-scores)
    found = best(trained, top=1000)
    assert [item.item for item in found.items[:10]] == known.item_ids[items[order[:10]]].tolist()
    np.testing.assert_allclose([item.score for item in found.items], scores[order], rtol=1e-5, atol=1e-5)


def test_the_catalogue_may_be_scored_in_pieces(trained: Deployment, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = best(trained, top=1000)
    monkeypatch.setattr("fedmoe_client.device.recommend.PIECE", 7)
    pieces = best(trained, top=1000)
    assert [item.item for item in pieces.items[:10]] == [item.item for item in whole.items[:10]]
    np.testing.assert_allclose([i.score for i in pieces.items], [i.score for i in whole.items], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("words", ["fusion=competitive score=cosine", "fusion=score experts=attention", "blocks=0"])
def test_every_kind_of_model_ranks_as_the_evaluator_does(tmp_path: Path, words: str) -> None:
    deployment = Deployment(tmp_path, words=[*WORDS, *words.split()])
    perform(deployment.task("evaluate", 1))
    client, known = workbench(deployment.run_config), deployment.dataset.interactions
    received = StateFolder(deployment.state_dir).load(GLOBAL)
    assert received is not None
    client.load(received.arrays)
    for length in (0, 1, 30):  # nothing met yet, and more than the model looks at
        met = np.random.default_rng(length).permutation(known.num_items)[:length].astype(np.int64) + 1
        deployment.history.write_text("".join(f"{known.item_ids[item]}\n" for item in met))
        items = np.setdiff1d(np.arange(1, known.num_items + 1), met)
        context = np.concatenate([np.zeros(100, np.int64), met])[None]
        scores = model_scorer(client.model)(context, items[None])[0]
        found = best(deployment, top=10)
        assert [i.item for i in found.items] == known.item_ids[items[np.argsort(-scores, kind="stable")[:10]]].tolist()


def test_items_are_new_to_the_user_and_the_best_comes_first(trained: Deployment) -> None:
    found = best(trained, top=1000)
    known = trained.dataset.interactions
    met = {str(known.item_ids[item]) for item in known.history(USER)}
    assert met.isdisjoint(item.item for item in found.items)
    assert len(found.items) == known.num_items - len(met)
    scores = [item.score for item in found.items]
    assert scores == sorted(scores, reverse=True)
    assert [item.item for item in best(trained, top=3).items] == [item.item for item in found.items[:3]]


def test_the_private_part_speaks(trained: Deployment) -> None:
    before = best(trained, top=1000)
    version = workbench(trained.run_config).identity["model"]
    InFolder(StateFolder(trained.state_dir), version, "run", 2, True, 5).save(
        {"gate.value": np.array(-30.0, np.float32)}
    )
    after = best(trained, top=1000)
    assert [item.score for item in before.items] != [item.score for item in after.items]


def test_what_was_met_since_counts(trained: Deployment) -> None:
    first = best(trained).items[0]
    with trained.history.open("a") as file:
        file.write(f"{first.item}\nstrange\n")
    found = best(trained, top=1000)
    assert first.item not in [item.item for item in found.items]
    assert found.notes == ["1 items of the history are not in the catalogue, such as 'strange'"]


def test_without_its_history_the_client_remembers(trained: Deployment) -> None:
    trained.history.unlink()
    found = best(trained)
    assert "ranked with what the client remembers" in found.notes[0]
    with pytest.raises(FedMoEError, match=r"history\.txt: the history cannot be read"):
        best(trained, history=trained.history)


def test_a_user_of_the_data_set_and_one_of_a_silo(deployment: Deployment) -> None:
    perform(Task("evaluate", *_evaluation(deployment, history=None)))
    assert best(deployment).user == str(deployment.dataset.interactions.user_ids[USER])
    silo = deployment.folder / "silo"
    silo.mkdir()
    for name in ("ann", "bob"):
        (silo / f"{name}.txt").write_bytes(deployment.history.read_bytes())
    perform(Task("evaluate", *_evaluation(deployment, history=str(silo))))
    assert best(deployment, user="ann").user == "ann"
    with pytest.raises(FedMoEError, match="has 2 users: give --user"):
        best(deployment)
    with pytest.raises(FedMoEError, match="no user 'anne' here - did you mean 'ann'"):
        best(deployment, user="anne")


def _evaluation(deployment: Deployment, **node: str | None) -> tuple[object, ...]:
    config = {"server-round": 1, "shared": SHARED, "split": "test"}
    return packed_bytes(deployment.arrays()), config, node_from(deployment.node(**node)), deployment.run_config, "run"


def test_the_command_prints_titles_or_json_and_forget_forgets(
    trained: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--state-dir", str(trained.state_dir), "--top", "2"]
    assert command("recommend", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "ranked"]
    assert command("recommend", *words, "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 2
    assert command("forget", *words[:2]) == 0
    assert command("recommend", *words) == 2
    assert "holds no model yet" in capsys.readouterr().err
    for name in ("recommend", "forget"):
        assert command(name, "--state-dir", str(trained.folder / "nowhere")) == 2
        assert "does not exist" in capsys.readouterr().err


def test_titles_are_printed_where_there_are_any(trained: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    titles = [f"The {item} (1995), Drama" if item else "" for item in trained.dataset.interactions.item_ids]
    save_catalogue(replace(trained.dataset, titles=titles), trained.folder / "catalogue")
    perform(trained.task("evaluate", 2, catalogue=str(trained.folder / "catalogue")))
    assert command("recommend", "--state-dir", str(trained.state_dir), "--top", "1") == 0
    assert "(1995), Drama" in capsys.readouterr().out


def test_ten_thousand_items_are_ranked_in_a_few_seconds(tmp_path: Path) -> None:
    """The whole command, nothing being loaded yet: its processor time, which other work beside it does not change."""
    words = ["dataset=synthetic", "data.synthetic.users=20", "data.synthetic.items=10000", "name=large"]
    large = Deployment(tmp_path, words=words)
    save_catalogue(large.dataset, tmp_path / "catalogue")
    perform(large.task("evaluate", 1, catalogue=str(tmp_path / "catalogue")))
    command = [sys.executable, "-m", "fedmoe_client", "recommend", "--state-dir", str(large.state_dir), "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        found = json.loads(process.stdout.read())
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    assert len(found["items"]) == 10
    assert used.ru_utime + used.ru_stime < 5.0
