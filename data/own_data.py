"""A data set of one's own: a class that names its files and reads them into one row for each interaction.

``data.dataset`` is ``package.module:Class``, ``data.dataset_parameters`` are the arguments of its constructor. What it
returns is treated like a file of histories: short users, duplicates and repeats, the order by time, and the cache,
which is read anew when a file or the class's own file changes.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from data.interactions import Events
from fedmoe.components import Kind
from fedmoe.data_settings import DataSettings


class OwnData(ABC):
    """The base of a data set of one's own."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return the files that decide what the data set is; one that cannot be read ends the run with its name."""

    @abstractmethod
    def events(self) -> Events:
        """Return one row for each interaction; raise FedMoEError, with file and line, for what cannot be read.

        Ids are strings, or integers; times are numbers in any unit, or None where the rows are in order.
        """


DATA_SETS: Kind[OwnData] = Kind("data.dataset", "data.dataset_parameters", OwnData, {})  # type: ignore[type-abstract]


def own_data(settings: DataSettings) -> OwnData:
    """Return the data set that the settings name. FedMoEError: it cannot be made."""
    return DATA_SETS.build(settings.dataset, settings.dataset_parameters)


def sources_of(own: OwnData) -> Mapping[str, Path]:
    """Return the files that decide what the data set is, by a name for each, with that of its class."""
    found = {f"data {number}": path for number, path in enumerate(own.files(), start=1)}
    code = inspect.getsourcefile(type(own))
    return found if code is None else {**found, "class": Path(code)}
