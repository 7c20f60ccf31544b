"""From settings and a catalogue to a model, its initial arrays and its parameter groups."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from model.residual_moe import ResidualMoE
from model.sasrec import FixedFeatures
from model.values import Modality
from model.version import Catalogue


def build_model(settings: Settings, catalogue: Catalogue) -> ResidualMoE:
    """Return a model with weights drawn from the seed alone; torch's own generator is left as it was.

    Raises FedMoEError for an expert that cannot be made, and for a modality whose name torch has a use for.
    """
    modalities = {}
    for name, features in catalogue.features.items():
        if hasattr(nn.ModuleDict, name):
            raise FedMoEError(f"modalities.{name}: torch has a use for this name - choose another")
        own = settings.named_modalities[name]
        fixed = FixedFeatures(features.values, features.present)
        modalities[name] = Modality(fixed, settings.expert_of(name), own.expert_parameters, own.norm)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return ResidualMoE(settings.model, catalogue.interactions.num_items, modalities)


def arrays_of(model: ResidualMoE) -> dict[str, np.ndarray]:
    """Return copies of the parameters by name, in the model's order."""
    return {name: parameter.detach().cpu().numpy().copy() for name, parameter in model.named_parameters()}


def initial_arrays(settings: Settings, catalogue: Catalogue) -> dict[str, np.ndarray]:
    """Return the arrays that round 1 starts from."""
    return arrays_of(build_model(settings, catalogue))


def parameter_groups(settings: Settings, catalogue: Catalogue) -> dict[str, list[str]]:
    """Return the names of each group's parameters, with an empty group for each modality without features."""
    groups = parameter_names(build_model(settings, catalogue))
    return groups | {name: [] for name in settings.expert_groups if name not in groups}


def parameter_names(model: ResidualMoE) -> dict[str, list[str]]:
    """Return the names of each group's parameters, in the model's order.

    Raises FedMoEError if a parameter belongs to no group, or to two: then it would be neither shared nor private.
    """
    groups = model.groups()
    group_of: dict[int, str] = {}
    for group, modules in groups.items():
        for parameter in (parameter for module in modules for parameter in module.parameters()):
            if group_of.setdefault(id(parameter), group) != group:
                raise FedMoEError(f"a parameter belongs to the groups '{group_of[id(parameter)]}' and '{group}'")
    names: dict[str, list[str]] = {group: [] for group in groups}
    for name, parameter in model.named_parameters():
        if id(parameter) not in group_of:
            raise FedMoEError(f"parameter '{name}' belongs to no group: declare its module in ResidualMoE.groups")
        names[group_of[id(parameter)]].append(name)
    return names
