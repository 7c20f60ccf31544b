"""The model for many clients at once: every parameter gets a leading dimension, one entry a client.

``StackedModel`` is a copy of the model whose layers multiply each client's windows by that client's own parameters.
All clients of a stack have the same number of windows, and a client's windows stand together, so that ``[C * W, ...]``
is ``[C, W, ...]`` by a view. The result is that of the model for each client alone, up to the order of sums.

Item ids in a stack are local: id ``c * R + r`` is item ``touched[c, r]`` of the catalogue, and 0 is padding. So what a
client costs does not depend on the size of the catalogue.

Shapes: C clients, W windows of a client, R touched items, D hidden size, F width of a feature.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from fedmoe.errors import FedMoEError
from model.residual_moe import Gate, ResidualMoE
from model.sasrec import FixedFeatures, ItemVectors, Positions
from model.values import Scored

Module = TypeVar("Module", bound=nn.Module)
TABLE = "items.ids.weight"


class StackedModel:
    """A model whose parameters, set by ``load``, are those of C clients. Always in training mode."""

    def __init__(self, model: ResidualMoE) -> None:
        """Copy the layers of ``model``; its parameters and features are shared, not copied.

        Raises FedMoEError for a layer with parameters that has no stacked form.
        """
        shared = {id(tensor): tensor for tensors in (model.parameters(), model.buffers()) for tensor in tensors}
        self._catalogue: dict[str, tuple[Tensor, Tensor]] = {}
        for name, features in model.features.items():
            assert isinstance(features, FixedFeatures)
            self._catalogue[name] = features.values, features.present
        self.layers: ResidualMoE = _stacked(copy.deepcopy(model, dict(shared)))
        self.layers.train()
        paths = {name: name.rpartition(".") for name, _ in model.named_parameters()}
        self._places = {name: (self.layers.get_submodule(path), last) for name, (path, _, last) in paths.items()}
        self._by_window = [each for each in self.layers.modules() if isinstance(each, StackedGate | StackedPositions)]

    def load(self, parameters: Mapping[str, Tensor], touched: Tensor, windows: int) -> None:
        """Use these parameters from now on.

        parameters: name -> ``[C, ...]``, of which the item table is ``[C, R, D]``; touched: ``[C, R]``, the items of
        the table's rows, 0 first and wherever a row is of no use; windows: W.
        """
        for name, tensor in parameters.items():
            layer, attribute = self._places[name]
            object.__setattr__(layer, attribute, tensor)  # plain tensors: nothing that a module keeps account of
        for each in self._by_window:
            each.windows = windows
        for name, (values, present) in self._catalogue.items():
            own = self.layers.features[name]
            assert isinstance(own, FixedFeatures)
            own.values, own.present = values[touched].flatten(0, 1), present[touched].flatten(0, 1)

    def __call__(self, context: Tensor, length: int, candidates: Tensor) -> Scored:
        """As ``ResidualMoE.forward``, for local ids ``[C * W, ...]``."""
        items = self.layers.items
        assert isinstance(items, StackedItems)
        items.project()
        scored: Scored = self.layers(context, length, candidates)
        return scored


class StackedLinear(nn.Module):
    """weight ``[C, out, in]``, bias ``[C, out]`` or None."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.bias = None

    def forward(self, inputs: Tensor) -> Tensor:
        """``[C * W, ..., in]`` -> ``[C * W, ..., out]``."""
        clients = self.weight.shape[0]
        grouped = inputs.reshape(clients, -1, inputs.shape[-1])
        weight = self.weight.transpose(1, 2)
        product = grouped @ weight if self.bias is None else torch.baddbmm(self.bias.unsqueeze(1), grouped, weight)
        return product.view(*inputs.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """weight and bias ``[C, D]``."""

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: nn.LayerNorm) -> None:
        super().__init__()
        self._shape, self.eps = layer.normalized_shape, layer.eps

    def forward(self, inputs: Tensor) -> Tensor:
        """``[C * W, ..., D]`` -> the same shape."""
        normalised = functional.layer_norm(inputs, self._shape, eps=self.eps)
        grouped = normalised.view(self.weight.shape[0], -1, inputs.shape[-1])
        return torch.addcmul(self.bias.unsqueeze(1), grouped, self.weight.unsqueeze(1)).view(inputs.shape)


class StackedGate(nn.Module):
    """The clients' gates ``[C]``; ``value`` reads as one a window, ``[C * W, 1, 1, 1]``."""

    def __init__(self, layer: Gate) -> None:
        super().__init__()
        self.windows = 1
        self._value = torch.empty(0)

    @property
    def value(self) -> Tensor:
        """The gate of each window."""
        return self._value.repeat_interleave(self.windows).view(-1, 1, 1, 1)

    @value.setter
    def value(self, value: Tensor) -> None:
        self._value = value


class StackedPositions(nn.Module):
    """weight ``[C, max_seq_len, D]``."""

    weight: Tensor

    def __init__(self, layer: Positions) -> None:
        super().__init__()
        self.windows = 1

    def forward(self, length: int) -> Tensor:
        """Return the vectors ``[C * W, length, D]`` of the last positions."""
        return self.weight[:, -length:].repeat_interleave(self.windows, dim=0)


class StackedItems(nn.Module):
    """Item vectors: the clients' rows ``ids.weight`` ``[C, R, D]``, plus the rows' projected features."""

    def __init__(self, layer: ItemVectors) -> None:
        super().__init__()
        self.ids = nn.Module()
        self.projections = nn.ModuleDict({name: StackedLinear(each) for name, each in layer.projections.items()})  # type: ignore[arg-type]
        self._features = layer._features
        self._vectors = torch.empty(0)

    def project(self) -> None:
        """Compute the vectors of all touched items, once for all their uses in a step."""
        rows: Tensor = self.ids.weight  # type: ignore[assignment]
        vectors = rows.flatten(0, 1)
        for name, projection in self.projections.items():
            vectors = vectors + projection(self._features[name].values)
        self._vectors = vectors

    def forward(self, items: Tensor) -> Tensor:
        """Return ``[..., D]`` for local ids ``[...]``."""
        return functional.embedding(items, self._vectors, padding_idx=0)


STACKED: dict[type[nn.Module], Callable[..., nn.Module]] = {
    nn.Linear: StackedLinear,
    nn.LayerNorm: StackedLayerNorm,
    Gate: StackedGate,
    Positions: StackedPositions,
    ItemVectors: StackedItems,
}


def _stacked(module: Module) -> Module:
    """Replace every layer that has parameters by its stacked form, in place."""
    for name, child in module.named_children():
        if type(child) in STACKED:
            setattr(module, name, STACKED[type(child)](child))
        elif any(True for _ in child.parameters(recurse=False)):
            kinds = ", ".join(kind.__name__ for kind in STACKED)
            raise FedMoEError(f"layer '{name}' ({type(child).__name__}) does not stack; those that do: {kinds}")
        else:
            _stacked(child)
    return module
