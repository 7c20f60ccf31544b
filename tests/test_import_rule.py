"""The import rule of the house: each package imports only what lies below it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OWN = {"fedmoe", "model", "data", "strategies", "fedmoe_client", "fedmoe_server", "simulation", "sim", "benchmarks"}
FRAMEWORKS = {"flwr", "ray", "torch"}
ALLOWED = {
    "fedmoe": set(),
    "data": {"fedmoe"},
    "model": {"fedmoe", "torch"},
    "strategies": {"fedmoe", "flwr"},
    "fedmoe_client": {"fedmoe", "flwr", "torch", "model", "data"},
    "fedmoe_server": {"fedmoe", "flwr", "torch", "model", "data", "strategies"},
    "simulation": {"fedmoe", "flwr", "ray"},
}
# A torch file is read, and an encoder is run, with torch: inside functions alone.
LAZY = {"data": {"torch"}}


def imports(path: Path) -> tuple[set[str], set[str]]:
    """Return the first parts of what a file imports: when it is imported itself, and inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
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


@pytest.mark.parametrize("package", ALLOWED)
def test_imports_go_downwards(package: str) -> None:
    files = sorted((ROOT / package).glob("**/*.py"))
    assert files
    for path in files:
        always, lazy = imports(path)
        watched = OWN | FRAMEWORKS
        assert (always & watched) - {package} <= ALLOWED[package], path
        assert (lazy & watched) - {package} <= ALLOWED[package] | LAZY.get(package, set()), path


def test_sim_is_a_front_door() -> None:
    assert len((ROOT / "sim.py").read_text(encoding="utf-8").splitlines()) < 100
