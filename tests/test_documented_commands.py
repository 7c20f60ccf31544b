"""Every command of the pages is understood by the program that it calls; settings files and snippets, too.

What begins work is replaced, so nothing is trained but one small run for the snippets. The tutorial's blocks run in
test_site.py. A command or a block of a kind that ``documented_commands`` does not know fails.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, create_autospec

import pytest
from documented_commands import FENCED, RUNS, Begun, commands, understood
from site_pages import DOCS, ROOT

import benchmarks.quality.personal
import benchmarks.runs
import data.registry
import fedmoe
import fedmoe.check.command
import fedmoe_server.planning.plan
import sim
from examples.strategies import server_step
from fedmoe.loading import load_settings
from fedmoe_api.simulation import _flat
from simulation.ray.grid import RayGrid

PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
OWN = """
from examples.backbones.gru4rec import GRU4Rec as MyBackbone
from examples.experts.average import Average as MyExpert
from examples.losses.bpr_max import BPRMax as MyLoss
from examples.metrics.mrr import MRR as MyMetric
from examples.strategies.server_step import ServerStep, ServerStep as MyStrategy
from fedmoe_client.learning.own_client import OwnClient as MyClient
class MyData(__import__("examples.data.netflix").data.netflix.NetflixPrize):
    def __init__(self): super().__init__("ratings.txt")
"""


# Where work begins: a data set is read, a benchmark opens its folder, a demand on a component is tried.
STARTS = [
    (data.registry, "_sources"), (benchmarks.runs.Kept, "__init__"), (benchmarks.quality.personal, "settings_of"),
    (fedmoe.check.command, "_tried"),
]  # fmt: skip


def begun(*_: Any, **__: Any) -> None:
    raise Begun


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with what the commands name, in which work ends where it begins and all data are there, though small."""
    monkeypatch.setenv("FEDMOE_CACHE", str(tmp_path / "cache"))
    small = data.registry.load_dataset(
        load_settings(["quick", "data.synthetic.users=943", "data.synthetic.items=60"])[0]
    )

    def loaded(settings: Any) -> Any:
        features = dict.fromkeys(settings.named_modalities, small.features["text"])
        return replace(small, features=features)

    for owner, name in STARTS:
        monkeypatch.setattr(owner, name, begun)
    monkeypatch.setattr(fedmoe_server.planning.plan, "load_dataset", loaded)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_module.py").write_text(OWN, encoding="utf-8")
    for name in ("configs", "docs", "movielens/ml-100k", "movielens/ml-1m", "~/ml-1m", "beauty", "pictures"):
        (tmp_path / name).mkdir(parents=True)
    for file in [*(ROOT / "configs").glob("*.yaml"), *DOCS.glob("*.md")]:
        (tmp_path / file.relative_to(ROOT)).write_bytes(file.read_bytes())
    for file, config in {"search/search": "search", "search/best": "quick", "ml-100k/settings": "ml-100k"}.items():
        place = tmp_path / f"{RUNS}{file}.yaml"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes((ROOT / f"configs/{config}.yaml").read_bytes())
    yield tmp_path
    sys.modules.pop("my_module", None)


@pytest.mark.parametrize("page, command", [(page.name, command) for page in PAGES for command in commands(page)])
def test_every_command_is_understood(
    page: str, command: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    understood(command, monkeypatch)
    assert "warning: " not in capsys.readouterr().err or "search" in command  # which draws settings


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_settings_file_is_understood(page: Path, folder: Path) -> None:
    for kind, text in FENCED.findall(page.read_text(encoding="utf-8")):
        if kind == "yaml":
            (folder / "own.yaml").write_text(text, encoding="utf-8")
            assert sim.main(["own.yaml", "--dry-run"]) == 0, text


def test_every_snippet_runs(folder: Path, ray_address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their runs are all the same short one; settings and names are checked as they stand."""
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    small = {"dim": 8, "attention_dim": 8, "blocks": 1, "max_seq_len": 10, "memory_size": 10, "memory_refresh": 5}
    seen: list[Any] = []
    run = fedmoe.simulate(
        "quick", callbacks=[seen.append], num_rounds=2, ray_address=ray_address, hosts=1, client_cpus=0.5, model=small
    )

    def simulate(config: str | None = None, *, callbacks: Any = (), **settings: Any) -> fedmoe.Run:
        load_settings([] if config is None else [config], dict(_flat(settings)))
        for callback in callbacks:
            assert all(callback(record) in (None, *fedmoe.Halt) for record in seen)
        return run

    monkeypatch.setattr(fedmoe, "simulate", simulate)
    grid = create_autospec(RayGrid)  # its methods take what the real ones take
    grid.return_value.__enter__.return_value = grid.return_value
    others = dict.fromkeys(("server_app", "context", "costs", "messages", "MyReducer"), MagicMock())
    for page in PAGES:
        for kind, text in FENCED.findall(page.read_text(encoding="utf-8")):
            if kind == "python" and page.name != "tutorial.md":
                names = {**vars(server_step), **others, "RayGrid": grid, "MyStrategy": server_step.ServerStep}
                exec(compile(text, page.name, "exec"), {**names, "fedmoe": fedmoe})
    assert grid.return_value.send_and_reduce.called


@pytest.mark.parametrize(
    "wrong",
    [
        "python sim.py num_round=5", "fedmoe quik", "python -m fedmoe_server upp",
        "python -m fedmoe_client up --sever a:1",
        "python -m fedmoe_server up -- --health-address 127.0.0.1:1", "python -m fedmoe_server run quick num_round=5",
        "python -m benchmarks.quality compare --sed 1", "python -m benchmarks.nothing", "python -m model.check exprt A",
        'pip install "fedmoe[tunes]"', "ray start --adress=a:1", "flwr runs .", "flower-superlink --ssl-certificate a",
        "python -m pytest -m mor", "conda install fedmoe",
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(wrong: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises((Exception, pytest.fail.Exception)):
        understood(wrong, monkeypatch)


def test_a_block_that_is_not_known_is_a_command(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("Do\n\n    make all   first\n\n```rust\nfn main\n```\n\n```sh\nls\n```\nor `pip list`.\n")
    assert list(commands(page)) == ["fn main", "ls", "make all", "pip list"]
