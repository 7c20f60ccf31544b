"""From settings and a catalogue to a model, its initial arrays and its parameter groups."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from fedmoe.settings import ModelSettings, Settings
from model.groups import parameter_names
from model.items import FixedFeatures
from model.residual_moe import Architecture, ResidualMoE


class Features(Protocol):
    """Item features of one modality: values ``[V + 1, F]``, present bool ``[V + 1]``."""

    @property
    def values(self) -> np.ndarray: ...
    @property
    def present(self) -> np.ndarray: ...


class Interactions(Protocol):
    """Histories, of which the model needs the size of the catalogue alone."""

    @property
    def num_items(self) -> int: ...


class Catalogue(Protocol):
    """What the model needs to know of a data set."""

    @property
    def interactions(self) -> Interactions: ...
    @property
    def visual(self) -> Features | None: ...
    @property
    def text(self) -> Features | None: ...


def build_model(settings: ModelSettings, catalogue: Catalogue, seed: int) -> ResidualMoE:
    """Return a model with weights drawn from ``seed`` alone; torch's own generator is left as it was."""
    architecture = Architecture(num_items=catalogue.interactions.num_items, **settings.model_dump())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResidualMoE(architecture, _fixed(catalogue.visual), _fixed(catalogue.text))


def _fixed(features: Features | None) -> FixedFeatures | None:
    return None if features is None else FixedFeatures(features.values, features.present)


def arrays_of(model: ResidualMoE) -> dict[str, np.ndarray]:
    """Return copies of the parameters by name, in the model's order."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in model.named_parameters()}


def initial_arrays(settings: Settings, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Return the arrays that round 1 starts from."""
    return arrays_of(build_model(settings.model, catalogue, settings.seed))


def parameter_groups(settings: Settings, catalogue: Catalogue) -> dict[str, list[str]]:
    """Return the names of each group's parameters."""
    return parameter_names(build_model(settings.model, catalogue, settings.seed))


def schema(arrays: dict[str, Any]) -> dict[str, list[int]]:
    """Return the names and shapes that tell one model from another."""
    return {name: list(array.shape) for name, array in arrays.items()}
