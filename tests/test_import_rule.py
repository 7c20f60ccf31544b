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
# Inside functions alone: torch reads its files and runs encoders, and packed arrays travel in a record of Flower's.
LAZY = {"data": {"torch"}, "fedmoe": {"flwr"}}


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


def test_sim_is_a_front_door() -> None:
    assert len((ROOT / "sim.py").read_text(encoding="utf-8").splitlines()) < 100


def test_of_what_all_share_the_wire_alone_knows_flower() -> None:
    assert [path.name for path in (ROOT / "fedmoe").glob("**/*.py") if "flwr" in imports(path)[1]] == ["wire.py"]
