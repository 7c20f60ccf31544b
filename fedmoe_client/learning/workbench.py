"""What all clients of one process have in common: data set, settings and one model, reused in place."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import cast
from warnings import catch_warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data.dataset import Dataset
from data.sampling import NEW, Split
from fedmoe.errors import FedMoEError, TellableError
from fedmoe.loading import from_run_config
from fedmoe.metrics import list_length
from fedmoe.modalities import EXPERT, selected
from fedmoe.settings import Settings
from fedmoe.wire import Packed
from fedmoe_client.learning.evaluation import Histories, Scorer, catalogue_side, client_metrics, model_scorer
from fedmoe_client.learning.own_client import own_client
from fedmoe_client.learning.training import load
from fedmoe_client.store.identity import identity_of, item_numbers, own_dataset
from model.build import build_model, parameter_names
from model.residual_moe import ResidualMoE
from model.values import ItemSide, Reading

Arrays = list[NDArray[np.float32]]


class Workbench:
    """Holds one model; each client loads its parameters into it, trains or evaluates, and takes them out again.

    Attributes:
        parameters: the model's, by name, in the model's order, which is the order of every list of arrays.
        names, shapes: of the parameters.
        groups: group -> names of its parameters.
        names_in: names of the parameters of a tuple of groups, or of patterns of groups, in the model's order.
        negatives: what clients draw negatives from.
        own_client: the hooks of a client of one's own; None: there are none.
        list_length: how many of a user's best items a metric of the catalogue needs; 0: there is none.
        received: the packed arrays that the server sent last, and these arrays (see ``app.received``).
        reading: what the model read last, in which contexts and with which arrays; to be dropped after each client.
    """

    def __init__(self, settings: Settings, dataset: Dataset) -> None:
        self.settings = settings
        self.dataset = dataset
        self.negatives = dataset.negatives
        self.device = _device(settings)
        self.model: ResidualMoE = build_model(settings, dataset).to(self.device)
        self.parameters = dict(self.model.named_parameters())
        self.names = list(self.parameters)
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self.parameters.items()}
        self.groups = parameter_names(self.model)
        self.names_in = lru_cache(self._names_in)  # asked by every client, and answered from the cache
        self.own_client = own_client(settings)
        self.list_length = list_length(settings)
        self.received: tuple[Packed, list[NDArray[np.float32]]] | None = None
        self._catalogue_side: tuple[Arrays, Arrays, ItemSide] | None = None
        self.reading: tuple[Arrays, Tensor, Reading] | None = None

    def _names_in(self, groups: tuple[str, ...]) -> list[str]:
        wanted = {name for group in selected(groups, self.groups) for name in self.groups[group]}
        return [name for name in self.names if name in wanted]

    @cached_property
    def item_numbers(self) -> dict[str, int]:
        """Item id -> number in the catalogue, 1 to num_items."""
        return item_numbers(self.dataset)

    @cached_property
    def identity(self) -> dict[str, str]:
        """Hashes of the catalogue and features, and the model's version (see ``fedmoe_client.store.identity``)."""
        return identity_of(self.settings, self.dataset)

    def refuse(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Raise TellableError that names the first parameter in which another model differs from this one."""
        if missing := [name for name in self.names if name not in shapes]:
            raise TellableError(f"the server's model has no parameter '{missing[0]}': use the server's settings")
        if extra := [name for name in shapes if name not in self.shapes]:
            raise TellableError(f"the client's model has no parameter '{extra[0]}': use the server's settings")
        for name, shape in self.shapes.items():
            if shapes[name] != shape:
                raise TellableError(
                    f"parameter '{name}' has the shape {shapes[name]} at the server and {shape} at the client: "
                    "use the server's settings and catalogue"
                )

    def load(self, arrays: Mapping[str, NDArray[np.float32]]) -> None:
        """Copy arrays into the model in place."""
        load(self.parameters, arrays)

    def take(self, names: Collection[str]) -> dict[str, NDArray[np.float32]]:
        """Return copies of some of the parameters."""
        return {name: self.parameters[name].detach().cpu().numpy().copy() for name in names}

    def measured(
        self, loaded: Mapping[str, NDArray[np.float32]], histories: Histories, users: Sequence[int], split: str
    ) -> dict[str, float]:
        """Return the metrics of users' held-out items under the model with these arrays, which it has just loaded."""
        if split != NEW:
            return client_metrics(self.scorer(loaded), histories, users, cast(Split, split), self.settings)
        from fedmoe_client.learning.new_items import new_item_metrics  # only where items were withheld

        return new_item_metrics(self.scorer(loaded), self.dataset, users, self.settings)

    def scorer(self, loaded: Mapping[str, NDArray[np.float32]]) -> Scorer:
        """Return the scorer of the model with these arrays, which it has just loaded."""
        if self.settings.evaluation.protocol != "full":
            return model_scorer(self.model)
        side = self.catalogue_side(loaded)
        return model_scorer(self.model, side, partial(self._read, [loaded[name] for name in self._read_names], side))

    def _read(self, arrays: Arrays, side: ItemSide, contexts: Tensor) -> Reading:
        """Return what the model reads in contexts, of which it may have read the last ones under the same arrays.

        A client ranks with the server's router, gate and norms and with its own: what they have in common is computed
        once.
        """
        if self.reading is None or not _the_same(arrays, self.reading[0]) or not torch.equal(contexts, self.reading[1]):
            self.reading = arrays, contexts, self.model.read(contexts, side)
        return self.reading[2]

    def catalogue_side(self, loaded: Mapping[str, NDArray[np.float32]]) -> ItemSide:
        """Return what the model makes of all items alone, with these arrays, which it has just loaded.

        It is computed for the first of the clients that get the very same arrays; for one whose router is its own, the
        router's part is computed anew.
        """
        items, router = ([loaded[name] for name in names] for names in (self._item_names, self.groups["router"]))
        if self._catalogue_side is None or not _the_same(items, self._catalogue_side[0]):
            self._catalogue_side = items, router, catalogue_side(self.model)
        _, routed_by, side = self._catalogue_side
        if _the_same(router, routed_by):
            return side
        with torch.inference_mode():
            return self.model.routed(side)

    @cached_property
    def _item_names(self) -> list[str]:
        """Names of the parameters that what the model makes of items alone can depend on: items' and experts'."""
        return self.names_in(tuple(group for group in self.groups if group == "embedding" or group.startswith(EXPERT)))

    @cached_property
    def _read_names(self) -> list[str]:
        """Names of the parameters that what the model reads in contexts depends on: the backbone's as well."""
        return [*self._item_names, *self.groups["backbone"]]


def _the_same(arrays: Arrays, others: Arrays) -> bool:
    """Return whether two lists are of the very same objects."""
    return all(a is b for a, b in zip(arrays, others, strict=True))


@lru_cache(maxsize=1)
def made_workbench(
    run_config: tuple[tuple[str, str, bool | int | float | str], ...],
    catalogue: Path | None,
    stamp: tuple[int, int] | None,
) -> Workbench:
    """Return the workbench for a run config, given as keys, types and values; made once for one configuration.

    stamp: what changes when the folder ``catalogue`` is replaced by another one.
    """
    settings = from_run_config({key: value for key, _, value in run_config})
    return _workbench_of(settings.model_dump_json(), catalogue, stamp)


@lru_cache(maxsize=1)
def _workbench_of(document: str, catalogue: Path | None, stamp: tuple[int, int] | None) -> Workbench:
    """Runs of the same settings share a workbench, whatever their run folders."""
    settings = Settings.model_validate_json(document)
    # Workers share the machine: more than one thread each would only make them wait for one another, and a sum that
    # is split over threads has other last digits.
    torch.set_num_threads(1)
    with catch_warnings(action="ignore"):  # of arrays that must not be written to: torch says so once, and no one does
        torch.from_numpy(np.frombuffer(b"    ", np.float32))
    return Workbench(settings, own_dataset(settings, catalogue))


def _device(settings: Settings) -> torch.device:
    wanted = settings.simulation.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FedMoEError("simulation.device = cuda, but torch finds no GPU here: use device=cpu or set client_gpus")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")
