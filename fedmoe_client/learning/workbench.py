"""What all clients of one process have in common: data set, settings and one model, reused in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from data.dataset import Dataset
from fedmoe.errors import FedMoEError
from fedmoe.loading import from_run_config
from fedmoe.modalities import EXPERT, selected
from fedmoe.settings import Settings
from fedmoe.wire import unpack
from fedmoe_client.learning.evaluation import catalogue_side
from fedmoe_client.learning.sub_catalogue import TABLE
from fedmoe_client.store.identity import catalogue_stamp, identity_of, item_numbers, own_dataset
from model.build import build_model, parameter_names
from model.residual_moe import ItemSide, ResidualMoE


class Workbench:
    """Holds one model; each client loads its parameters into it, trains or evaluates, and takes them out again."""

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.settings = settings
        self.dataset = dataset
        self.device = _device(settings)
        self.model: ResidualMoE = build_model(settings, dataset).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self._received: tuple[bytes, list[NDArray[np.float32]]] | None = None
        self._catalogue_side: tuple[list[NDArray[np.float32]], ItemSide] | None = None
        self.groups = parameter_names(self.model)
        self._names_in: dict[tuple[str, ...], list[str]] = {}

    @property
    def names(self) -> list[str]:
        """Names of all parameters, in the model's order, which is the order of every list of arrays."""
        return list(self.parameters)

    def names_in(self, groups: Collection[str]) -> list[str]:
        """Return the names of the parameters of groups, or of patterns of groups, in the model's order."""
        key = tuple(groups)
        if key not in self._names_in:
            wanted = {name for group in selected(key, self.groups) for name in self.groups[group]}
            self._names_in[key] = [name for name in self.parameters if name in wanted]
        return self._names_in[key]

    @cached_property
    def item_numbers(self) -> dict[str, int]:
        """Item id -> number in the catalogue, 1 to num_items."""
        return item_numbers(self.dataset)

    def user_name(self, user: int) -> str:
        """Return the id that a user of the data set has in its source."""
        return str(self.dataset.interactions.user_ids[user])

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of the catalogue and features, and the model's version (see ``fedmoe_client.store.identity``)."""
        return identity_of(self.settings, self.dataset)

    def check(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise FedMoEError that names the first parameter in which another model differs from this one."""
        own = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        if missing := [name for name in own if name not in shapes]:
            raise FedMoEError(f"the server's model has no parameter '{missing[0]}': use the server's settings")
        if extra := [name for name in shapes if name not in own]:
            raise FedMoEError(f"the client's model has no parameter '{extra[0]}': use the server's settings")
        for name, shape in own.items():
            if tuple(shapes[name]) != shape:
                raise FedMoEError(
                    f"parameter '{name}' has the shape {tuple(shapes[name])} at the server and {shape} at the client: "
                    "use the server's settings and catalogue"
                )

    def received(self, packed: bytes) -> list[NDArray[np.float32]]:
        """Return the server's packed arrays in the model's order, to be read only. FedMoEError: see ``check``.

        The clients of a round that share a process get the very same bytes, which are unpacked for the first of them.
        """
        if self._received is None or self._received[0] is not packed:
            arrays = unpack(bytearray(packed))  # torch warns of memory that must not be written to
            self.check({name: array.shape for name, array in arrays.items()})
            self._received = packed, [arrays[name] for name in self.parameters]
        return self._received[1]

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy arrays into the model in place."""
        with torch.no_grad():
            for name, array in arrays.items():
                self.parameters[name].copy_(torch.from_numpy(array))

    def catalogue_side(self, loaded: Mapping[str, NDArray[np.float32]]) -> ItemSide:
        """Return what the model makes of all items alone, with these arrays, which it has just loaded.

        It is computed for the first of the clients that get the very same arrays.
        """
        arrays = [loaded[name] for name in self._item_names]
        if self._catalogue_side is None or any(
            a is not b for a, b in zip(arrays, self._catalogue_side[0], strict=True)
        ):
            self._catalogue_side = arrays, catalogue_side(self.model)
        return self._catalogue_side[1]

    @cached_property
    def _item_names(self) -> list[str]:
        """Names of the parameters that what the model makes of items alone can depend on: items' and experts'."""
        groups = (group for group in self.groups if group == "embedding" or group.startswith(EXPERT))
        return self.names_in(list(groups))

    def used(self) -> dict[str, nn.Parameter]:
        """Return the parameters by name as the model has them now: its own, or its part of the item table."""
        return self.parameters | {TABLE: self.model.get_parameter(TABLE)}

    def take(self, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Return copies of some of the parameters in use."""
        used = self.used()
        return {name: used[name].detach().cpu().numpy().copy() for name in names}


def workbench(run_config: Mapping[str, bool | int | float | str], catalogue: Path | None = None) -> Workbench:
    """Return this process's workbench for the settings of a run; made once and reused.

    catalogue: folder of the catalogue to use in place of the data set's, which then is not looked for.
    """
    # With their types: True, 1 and 1.0 are equal.
    items = tuple((key, type(value).__name__, value) for key, value in sorted(run_config.items()))
    return _workbench_of(_document(items), catalogue, catalogue_stamp(catalogue))


@lru_cache(maxsize=1)
def _document(items: tuple[tuple[str, str, bool | int | float | str], ...]) -> str:
    """Return the settings of a run config as JSON; reading them anew would cost each client a third of a ms."""
    return from_run_config({key: value for key, _, value in items}).model_dump_json()


@lru_cache(maxsize=1)
def _workbench_of(document: str, catalogue: Path | None, stamp: tuple[int, int]) -> Workbench:
    settings = Settings.model_validate_json(document)
    # Workers share the machine: more than one thread each would only make them wait for one another, and a sum that
    # is split over threads has other last digits.
    torch.set_num_threads(1)
    return Workbench(settings, own_dataset(settings, catalogue))


def _device(settings: Settings) -> torch.device:
    wanted = settings.simulation.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FedMoEError("simulation.device = cuda, but torch finds no GPU here: use device=cpu or set client_gpus")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
