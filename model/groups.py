"""Parameters belong to groups, which are aggregated or kept private as a whole. A group is a list of submodules."""

from __future__ import annotations

from torch import nn

from fedmoe.errors import FedMoEError
from model.residual_moe import ResidualMoE


def submodules(model: ResidualMoE) -> dict[str, list[nn.Module]]:
    """Return the submodules of each group; a part that this model lacks is an empty list."""
    return {
        "embedding": [model.items],
        "backbone": [model.backbone],
        "visual_expert": [model.experts["visual"]] if "visual" in model.experts else [],
        "semantic_expert": [model.experts["semantic"]] if "semantic" in model.experts else [],
        "router": [model.router] if model.router is not None else [],
        "gate": [model.gate] if model.gate is not None else [],
        "norms": [model.norms],
    }


def parameter_names(model: ResidualMoE) -> dict[str, list[str]]:
    """Return the names of each group's parameters, in the model's order.

    Raises FedMoEError if a parameter belongs to no group, or to two: then it would be neither shared nor private.
    """
    group_of: dict[int, str] = {}
    for group, modules in submodules(model).items():
        for module in modules:
            for parameter in module.parameters():
                if group_of.setdefault(id(parameter), group) != group:
                    raise FedMoEError(f"a parameter belongs to the groups '{group_of[id(parameter)]}' and '{group}'")
    names: dict[str, list[str]] = {group: [] for group in submodules(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in group_of:
            raise FedMoEError(f"parameter '{name}' belongs to no group: declare its module in model/groups.py")
        names[group_of[id(parameter)]].append(name)
    return names
