"""What the user gets: items ranked on the device, as the evaluator would rank them."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from deployed_client import SHARED, USER, Deployment

from data.catalogue_folder import save_catalogue
from errors import FedMoEError
from fedmoe_client.forget import main as forget
from fedmoe_client.messages import Task, perform
from fedmoe_client.node import node_from
from fedmoe_client.recommend import Recommendations, main, recommendations
from fedmoe_client.state import StoredParameters
from fedmoe_client.store import ClientStore
from fedmoe_client.workbench import workbench


@pytest.fixture
def trained(deployment: Deployment) -> Deployment:
    deployment.train(1)
    perform(deployment.task("evaluate", 1))
    return deployment


def best(deployment: Deployment, top: int = 5, **arguments: str) -> Recommendations:
    return recommendations(str(deployment.state_dir), top, **arguments)


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
    StoredParameters(ClientStore(trained.state_dir), version, "run", 2, True, 5).save(
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
        best(trained, history=str(trained.history))


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
    return deployment.arrays(), config, node_from(deployment.node(**node)), deployment.run_config, "run"


def test_the_command_prints_titles_or_json_and_forget_forgets(
    trained: Deployment, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--state-dir", str(trained.state_dir), "--top", "2"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2", "ranked"]
    assert main([*words, "--json"]) == 0
    found = Recommendations.from_json(json.loads(capsys.readouterr().out))
    assert len(found.items) == 2
    assert forget(words[:2]) == 0
    assert main(words) == 2
    assert "holds no model yet" in capsys.readouterr().err
    for command in (main, forget):
        assert command(["--state-dir", str(trained.folder / "nowhere")]) == 2
        assert "does not exist" in capsys.readouterr().err


def test_titles_are_printed_where_there_are_any(trained: Deployment, capsys: pytest.CaptureFixture[str]) -> None:
    titles = [f"The {item} (1995), Drama" if item else "" for item in trained.dataset.interactions.item_ids]
    save_catalogue(replace(trained.dataset, titles=titles), trained.folder / "catalogue")
    perform(trained.task("evaluate", 2, catalogue=str(trained.folder / "catalogue")))
    assert main(["--state-dir", str(trained.state_dir), "--top", "1"]) == 0
    assert "(1995), Drama" in capsys.readouterr().out


def test_ten_thousand_items_are_ranked_in_less_than_a_second(tmp_path: Path) -> None:
    words = ["dataset=synthetic", "data.synthetic.users=20", "data.synthetic.items=10000", "name=large"]
    large = Deployment(tmp_path, words=words)
    perform(large.task("evaluate", 1))
    best(large)
    started = time.perf_counter()
    found = best(large, top=10)
    assert time.perf_counter() - started < 1.0
    assert len(found.items) == 10
