"""The Python API: a run from a script, a thread or a notebook, and what can be asked of it afterwards."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Thread
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hosts_here import hosts_here
from rich.console import Console

import fedmoe
from data.registry import load_dataset
from fedmoe.loading import load_settings
from fedmoe_api.chosen import load_chosen, private_names
from fedmoe_api.simulation import _flat
from fedmoe_server.report.progress import progress_for
from fedmoe_server.rounds.record import RoundRecord
from simulation.ray.cluster import THREAD_VARIABLES

pytestmark = pytest.mark.usefixtures("hosts_here")
ROOT = Path(__file__).parents[2]
SMALL: dict[str, Any] = {
    "dataset": "synthetic",
    "data": {"synthetic": {"users": 20, "items": 60}},
    "model": {"dim": 8, "attention_dim": 8, "blocks": 1, "max_seq_len": 10, "memory_size": 10, "memory_refresh": 5},
    "num_negatives": 20,
    "client_fraction": 0.5,
    "warmup_rounds": 2,
    "evaluate_every": 2,
    "checkpoint_every": 0,
    "num_rounds": 6,
    "hosts": 1,
    "client_cpus": 0.5,
}
Simulate = Callable[..., fedmoe.Run]


@pytest.fixture(scope="module")
def simulate(tmp_path_factory: pytest.TempPathFactory) -> Simulate:
    def run(**more: Any) -> fedmoe.Run:
        with hosts_here():  # those of a fixture, too
            return fedmoe.simulate(save_dir=tmp_path_factory.mktemp("runs"), **SMALL | more)

    return run


@pytest.fixture(scope="module")
def whole(simulate: Simulate) -> fedmoe.Run:
    return simulate()


def rows(run: fedmoe.Run) -> list[dict[str, Any]]:
    """Return the rows of ``metrics`` without times; a table of pandas has NaN where there is nothing."""
    found = run.metrics if isinstance(run.metrics, list) else run.metrics.to_dict("records")
    return [{key: value for key, value in row.items() if key != "round/seconds" and value == value} for row in found]


def test_import_fedmoe_loads_nothing() -> None:
    code = "import fedmoe, sys; print({'torch', 'ray', 'flwr', 'numpy', 'pydantic', 'fedmoe_api'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
    with pytest.raises(AttributeError, match="has no attribute 'simulat'"):
        fedmoe.simulat  # noqa: B018


def test_a_run_tells_its_rounds_its_figures_and_a_picture(whole: fedmoe.Run) -> None:
    found = rows(whole)
    assert [row["round"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert "validation/ndcg@10" not in found[0] and 0.0 <= found[1]["validation/ndcg@10"] <= 1.0
    assert whole.settings.model.dim == 8
    assert (
        whole.result.test["personalised"]["ndcg@10"] == fedmoe.load(whole.folder).result.test["personalised"]["ndcg@10"]
    )
    assert "popularity" in str(whole)
    figure = whole.plot()
    assert [axes.get_title() for axes in figure.axes] == ["Training loss", "Validation HR@10", "Validation NDCG@10"]
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_recommendations_are_the_best_items_with_the_users_own_parameters(whole: fedmoe.Run) -> None:
    settings = whole.settings
    dataset = load_dataset(settings)
    bench, checkpoint = load_chosen(whole.folder, settings, dataset)
    names = private_names(bench, checkpoint)
    if checkpoint.state.chosen()[1] > settings.federation.warmup_rounds:
        assert {"gate.value"} <= set(names)
    user = str(dataset.interactions.user_ids[3])
    found = whole.recommend(user, top=5)
    found = found if isinstance(found, list) else found.to_dict("records")
    assert [row["rank"] for row in found] == [1, 2, 3, 4, 5]
    assert all(one["score"] >= two["score"] for one, two in zip(found, found[1:], strict=False))
    seen = dataset.interactions.item_ids[dataset.interactions.history(3)].tolist()
    assert not {row["item"] for row in found} & set(seen)
    again = whole.recommend(int(user), top=5)
    assert (again if isinstance(again, list) else again.to_dict("records")) == found
    with pytest.raises(fedmoe.FedMoEError, match="no user 'nobody'"):
        whole.recommend("nobody")


def test_a_users_own_parameters_count(whole: fedmoe.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's value of the gate is what ranks, and the server's is back afterwards."""
    run = fedmoe.Run(whole.folder)
    bench, checkpoint = run._chosen
    loaded: list[dict[str, np.ndarray]] = []
    monkeypatch.setattr(bench, "load", lambda arrays: loaded.append(dict(arrays)))
    monkeypatch.setattr("fedmoe_api.chosen.private_names", lambda *_: ["gate.value"])
    user = next(iter(bench.dataset.interactions.user_ids.tolist()))
    run.recommend(user)
    assert [set(each) for each in loaded] == [{"gate.value"}, {"gate.value"}]
    assert loaded[0]["gate.value"] != loaded[1]["gate.value"] == bench.parameters["gate.value"].item()
    assert checkpoint.clients is not None


def test_an_interrupted_run_goes_on_in_a_thread_to_the_same_numbers(
    simulate: Simulate, whole: fedmoe.Run, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        simulate(callbacks=[lambda record: os.kill(os.getpid(), signal.SIGINT) if record.round == 3 else record.best])
    assert signal.getsignal(signal.SIGINT) is handler
    said = capsys.readouterr().out
    assert "paused after round 3" in said
    paused = fedmoe.load(said.split("fedmoe.load('")[1].split("')")[0])
    assert (paused.result.status, len(rows(paused))) == ("unfinished", 3)
    assert str(paused) == f"{paused.folder}: unfinished"

    found: list[fedmoe.Run] = []
    rest: list[int] = []
    go_on = [lambda record: rest.append(record.round)]
    thread = Thread(target=lambda: found.append(paused.resume(callbacks=go_on)))
    thread.start()
    thread.join()
    assert rest == [4, 5, 6]
    assert found[0].folder == paused.folder
    assert rows(found[0]) == rows(whole)


def test_a_script_without_a_guard_with_a_strategy_of_its_own(ray_address: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        "import fedmoe\n"
        "from flwr.serverapp.strategy import FedAvg\n"
        "class Mine(FedAvg):\n"
        "    def aggregate_train(self, server_round, replies):\n"
        "        print('mine', server_round)\n"
        "        return super().aggregate_train(server_round, replies)\n"
        "stop = lambda record: fedmoe.Halt.STOP if record.round == 2 else record.best\n"
        f"run = fedmoe.simulate(strategy=Mine, callbacks=[stop], ray_address={ray_address!r}, **{SMALL!r})\n"
        "print('done', run.folder.parent, len(run.metrics), run.result.status, run.result.best_round)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)} | dict.fromkeys(THREAD_VARIABLES, "1")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.startswith(("mine", "done"))] == [
        "mine 1",
        "mine 2",
        "done runs 2 completed 2",
    ]


def test_settings_of_python_are_those_of_the_command_line() -> None:
    class Own:
        pass

    given = {"model": {"dim": 32}, "modalities": {"audio": {"file": "a.npy", "expert": Own}}, "metrics": {"mine": Own}}
    name = f"{Own.__module__}:{Own.__qualname__}"
    assert dict(_flat(given)) == {
        "model.dim": 32,
        "modalities.audio": {"file": "a.npy", "expert": name},
        "metrics": {"mine": name},
    }
    assert dict(_flat({"tracking": [Own, "csv"]})) == {"tracking": [name, "csv"]}
    assert dict(_flat({"tracking": {Own: {"every": 2}}})) == {"tracking": {name: {"every": 2}}}
    settings, _ = load_settings(["quick"], {"model.dim": 64, "gating_init": 0.25, "strategy": "fedavg"})
    words, _ = load_settings(["quick", "model.dim=64", "--gating_init", "0.25", "strategy=fedavg"])
    assert settings == words
    Own.__module__ = "__main__"
    with pytest.raises(fedmoe.FedMoEError, match="client: Own must be in a file of its own"):
        dict(_flat({"client": Own}))
    with pytest.raises(fedmoe.FedMoEError, match="did you mean 'num_rounds'"):
        fedmoe.simulate("quick", nun_rounds=3)


def test_a_notebook_shows_one_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    display = ModuleType("IPython.display")
    display.HTML = str  # type: ignore[attr-defined]
    display.display = lambda text, display_id: shown.append(text) or SimpleNamespace(update=shown.append)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    console = Console(file=io.StringIO(), width=200)
    console.is_jupyter = True
    progress = progress_for(console, 4)
    record = RoundRecord(2, train={"loss": 4.5})
    monkeypatch.setattr(progress, "note", lambda text: shown.append(f"line: {text}"))
    progress.round(record, 90.0)
    progress.round(replace(record, round=3, validation={"hr@10": 0.5, "ndcg@10": 0.25}), None)
    progress.stage("test items ranked")
    progress.stop()
    bar = '<progress value="3" max="4"></progress> round 3/4, loss 4.5000 '
    assert shown[:2] == ["waiting for the first round", bar.replace("3", "2") + "about 1 min 30 s left"]
    assert shown[2] == bar and shown[3].startswith("line: round 3/4  loss 4.5000  HR@10 0.5000")
    assert shown[4:] == [bar + "test items ranked", bar]
