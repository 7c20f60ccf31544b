"""Our packages come before a user's modules of the same name.

A user's folder may hold a ``model.py`` or a ``data.py`` of its own, and Python takes what stands first on its search
path, which is often that folder. Every package of ours that others start with imports ``fedmoe`` first. From then on
the names below mean our packages, wherever the user's folder stands; all other modules are found as ever.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
NAMES = frozenset({"benchmarks", "configs", "data", "model", "simulation", "strategies"})


class OwnPackages(MetaPathFinder):
    """Finds our packages beside this one."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where a package of ours is, None for any other module."""
        return PathFinder.find_spec(fullname, [str(ROOT)]) if fullname in NAMES else None


def prefer_own_packages() -> None:
    """Let our names mean our packages. Raises ImportError if one of them is imported already and is another module."""
    for name in NAMES & sys.modules.keys():
        module = sys.modules[name]
        if str(ROOT / name) not in getattr(module, "__path__", []):
            raise ImportError(
                f"{getattr(module, '__file__', name)} is imported already, and '{name}' is a package of FedMoE: rename "
                "the file, or import FedMoE first"
            )
    sys.meta_path.insert(0, OwnPackages())


def app_version() -> str:
    """Return the version of FedMoE, as installed or as in its checkout."""
    try:
        return version("fedmoe")
    except PackageNotFoundError:
        return str(tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"])
