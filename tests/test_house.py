"""The rules of the house: imports go downwards, folders and files stay small, and a round touches few modules."""

from __future__ import annotations

import ast
import importlib
import shutil
import sys
import threading
from collections import Counter
from itertools import count
from pathlib import Path
from typing import Any

import pytest

import sim
from fedmoe_server.rounds.loop import ServerLoop

ROOT = Path(__file__).parents[1]
OWN = {"fedmoe", "fedmoe_api", "model", "data", "strategies", "fedmoe_client", "fedmoe_server", "simulation", "sim"} | {
    "benchmarks"
}
FRAMEWORKS = {"flwr", "ray", "torch"}
ALLOWED = {
    "fedmoe": set(),
    "data": {"fedmoe"},
    "model": {"fedmoe", "torch"},
    "strategies": {"fedmoe", "flwr"},
    "fedmoe_client": {"fedmoe", "flwr", "torch", "model", "data"},
    "fedmoe_server": {"fedmoe", "flwr", "torch", "model", "data", "strategies"},
    "simulation": {"fedmoe", "flwr", "ray"},
    "fedmoe_api": {"fedmoe", "fedmoe_client", "fedmoe_server", "simulation", "flwr", "torch", "model", "data"},
}
# Inside functions alone: torch reads its files and runs encoders, and packed arrays travel in a record of Flower's; for
# types alone: the names of the API, which ``fedmoe`` finds by name when somebody asks for them.
LAZY = {"data": {"torch"}, "fedmoe": {"flwr", "fedmoe_api"}}

FOLDERS = [*ALLOWED, "benchmarks", "configs", "examples"]
FILES = 14  # of Python in one folder, without __init__.py
LINES = 300  # of a file
ALL_LINES = 33_165
MODULES = {"ray": 21, "vectorized": 24}  # of ours that execute anything in one simulated round; stacks add three
QUICK = (
    "dataset=synthetic data.synthetic.users=20 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "checkpoint_every=0 num_rounds=4 hosts=1 client_cpus=0.5 item_representation=id local_epochs=1 max_windows=2"
).split()


def sources() -> list[Path]:
    """Return all Python files outside tests."""
    return [ROOT / "sim.py", *(path for folder in FOLDERS for path in sorted((ROOT / folder).glob("**/*.py")))]


def line_count(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the first parts of what a file imports: when it is imported itself, and in functions or for types."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.FunctionDef | ast.AsyncFunctionDef) or _for_types(block)
        for node in ast.walk(block)
    }
    always, lazy = set(), set()
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names = [node.module]
        (lazy if id(node) in inside else always).update(name.split(".")[0] for name in names)
    return always, lazy


def _for_types(block: ast.AST) -> bool:
    return isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_downwards(package: str) -> None:
    files = sorted((ROOT / package).glob("**/*.py"))
    assert files
    for path in files:
        always, lazy = imports(path)
        watched = OWN | FRAMEWORKS
        assert (always & watched) - {package} <= ALLOWED[package], path
        assert (lazy & watched) - {package} <= ALLOWED[package] | LAZY.get(package, set()), path


def test_sim_is_a_front_door_and_the_only_module_of_the_first_level() -> None:
    assert line_count(ROOT / "sim.py") < 100
    assert [path.name for path in ROOT.glob("*.py")] == ["sim.py"]
    folders = {path.parent.name for path in ROOT.glob("[!.]*/__init__.py")}
    assert folders - {"tests"} <= set(FOLDERS)


def test_folders_and_files_are_small() -> None:
    files = Counter(path.parent for path in sources() if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): number for folder, number in files.items() if number > FILES} == {}
    lines = {str(path.relative_to(ROOT)): line_count(path) for path in sources()}
    assert {path: length for path, length in lines.items() if length > LINES} == {}
    assert sum(lines.values()) <= ALL_LINES


@pytest.mark.parametrize("engine", MODULES)
def test_a_simulated_round_touches_few_modules(
    engine: str, ray_address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(Path(__file__).with_name("call_watch.py"), tmp_path / "sitecustomize.py")
    (tmp_path / "flag").write_bytes(b"\0")
    monkeypatch.syspath_prepend(str(tmp_path))  # the hosts have this search path too
    monkeypatch.delitem(sys.modules, "sitecustomize", raising=False)
    flag = importlib.import_module("sitecustomize").flag
    one_round, rounds = ServerLoop.one_round, count(1)

    def watched(*words: Any) -> Any:
        flag[0] = next(rounds) == 3  # what is done once has been done
        result = one_round(*words)
        flag[0] = 0
        return result

    monkeypatch.setattr(ServerLoop, "one_round", watched)
    try:
        assert sim.main([*QUICK, f"engine={engine}", f"ray_address={ray_address}", f"save_dir={tmp_path}"]) == 0
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    ours = {name for file in tmp_path.glob("*.seen") for name in file.read_text().splitlines()}
    met = sorted(str(path.relative_to(ROOT)) for path in sources() if str(path) in ours)
    assert "model/sasrec.py" in met and "simulation/ray/grid.py" in met
    assert len(met) <= MODULES[engine], "\n".join(met)
