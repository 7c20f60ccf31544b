"""Hosts in the test's own process: for tests of what a run does, and not of how the engines execute it.

A host of a grid is a Ray actor, whose process imports torch, the model and the data anew for each run: seconds in which
nothing is tested. Here the same hosts, of the same code, are objects of this process. What they are handed and what
they return is pickled, as it is on its way to another process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
from ray import cloudpickle
from ray.exceptions import RayTaskError

from simulation.ray import fleet, grid

# Words with which Flower's own runtime, which stays on the session's Ray of two CPUs, has one process and not four.
ONE_PROCESS = ["engine=flower", "client_cpus=1.5"]


class Result:
    """What a call came to: the reference of Ray's that is always ready."""

    def __init__(self, value: Any = None, error: Exception | None = None) -> None:
        self.value, self.error = value, error


class Method:
    """A host's method, which is carried out at once."""

    def __init__(self, method: Any) -> None:
        self._method = method

    def options(self, **_: Any) -> Method:
        return self

    def remote(self, *words: Any) -> Result:
        given = [word.value if isinstance(word, Result) else _travelled(word) for word in words]
        try:
            return Result(_travelled(self._method(*given)))
        except Exception as error:
            return Result(error=RayTaskError(self._method.__name__, repr(error), error))


class Actor:
    """A class, or an object of it, as ``ray.remote`` makes them."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def options(self, **_: Any) -> Actor:
        return self

    def remote(self, *words: Any) -> Actor:
        return Actor(self._made(*map(_travelled, words)))

    def __getattr__(self, name: str) -> Method:
        return Method(getattr(self._made, name))


class Here:
    """Stands for the module ``ray``."""

    remote = Actor

    @staticmethod
    def put(value: Any) -> Result:
        return Result(_travelled(value))

    @staticmethod
    def get(result: Result) -> Any:
        if result.error is not None:
            raise result.error
        return result.value

    @staticmethod
    def wait(results: Sequence[Result], **_: Any) -> tuple[list[Result], list[Result]]:
        return list(results[:1]), list(results[1:])

    @staticmethod
    def kill(actor: Actor) -> None:
        """Let an actor end, which nothing waits for."""


def _travelled(value: Any) -> Any:
    return pickle.loads(cloudpickle.dumps(value))


@contextmanager
def hosts_here() -> Iterator[None]:
    """Within the block the grids of this process have their hosts here."""
    with pytest.MonkeyPatch.context() as patch:
        put_here(patch)
        yield


def put_here(patch: pytest.MonkeyPatch) -> None:
    """Let the grids of this process have their hosts here."""
    for module in (fleet, grid):
        patch.setattr(module, "ray", Here)
    patch.setattr(fleet, "start_ray", lambda address: False)
    patch.setattr(fleet, "get_current_placement_group", lambda: None)
    patch.setattr(fleet, "host_capacity", lambda resources: 2)
    patch.setattr(fleet, "number_of_hosts", lambda resources, clients: min(resources.hosts or 1, clients))
