"""What all packages share: settings and their loading, errors, messages; and the names of the Python API.

    import fedmoe
    run = fedmoe.simulate("quick", num_rounds=20)

The API's names are found in ``fedmoe_api`` when they are first used: ``import fedmoe`` itself loads nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError
from fedmoe.packages import prefer_own_packages

if TYPE_CHECKING:
    from fedmoe_api import Halt, Run, load, simulate

prefer_own_packages()
__all__ = ["FedMoEError", "Halt", "Run", "load", "simulate"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("fedmoe_api"), name)
    raise AttributeError(f"module 'fedmoe' has no attribute '{name}'")
