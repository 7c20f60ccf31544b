"""The part of the catalogue that a client's round touches, in place of the whole of it.

All batches of a round are drawn before the first step, so it is known which items occur in them: those of the contexts,
the targets and the negatives. Only their rows of the item table can move, since an item row without a gradient stays
where it is (item rows never decay, and each optimiser starts afresh). So the items are renumbered, and the model is
given these rows of the table and of the features alone: the cost of a client does not depend on the catalogue. A loss
over the whole catalogue touches all of it.

Shapes: V items, R touched rows with that of the padding, D hidden size, F width of a feature.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedmoe import wire
from fedmoe_client.learning.batches import WindowBatch
from model.residual_moe import ResidualMoE

TABLE = "items.ids.weight"
ROWS = f"{TABLE}{wire.ROWS}"


def touched_items(batches: Iterable[WindowBatch], num_items: int) -> Tensor:
    """Return the ids in some batches, int64 ``[R]``, ascending and distinct; the first one is 0, the padding.

    All ids ``0..V`` if one of the batches has no negatives: its loss runs over the whole catalogue.
    """
    found = []
    for batch in batches:
        if batch.negatives is None:
            return torch.arange(num_items + 1, device=batch.targets.device)
        found += [batch.context.flatten(), batch.targets.flatten(), batch.negatives.flatten()]
    touched: Tensor = torch.unique(torch.cat([found[0].new_zeros(1), *found]))
    return touched


def renumbered(batch: WindowBatch, touched: Tensor) -> WindowBatch:
    """Return a batch with each item's place in ``touched`` for its id; padding stays 0."""
    if batch.negatives is None:
        return batch
    places = [torch.searchsorted(touched, ids) for ids in (batch.context, batch.targets, batch.negatives)]
    return WindowBatch(*places)


def substitutes(
    model: ResidualMoE, table: NDArray[np.float32], touched: Tensor, size: int | None = None
) -> dict[str, Tensor]:
    """Return what stands for the catalogue in the model, by name, on the model's device.

    That is the parameter ``items.ids.weight`` ``[R, D]`` and, of each modality, the buffers ``features.NAME.values``
    ``[R, F]`` and ``features.NAME.present`` ``[R]``. ``torch.func.functional_call`` takes them as they are.

    table: the item table to start from ``[V + 1, D]``; it is only read.
    touched: ids ``[R]`` as of ``touched_items``.
    size: rows to pad to, with the row of the padding, so that clients can be stacked; None: R.
    """
    if size is not None:
        touched = nn.functional.pad(touched, (0, size - len(touched)))
    rows = torch.from_numpy(table).index_select(0, touched.cpu()).to(touched.device)
    found = {TABLE: rows}
    for name, buffer in model.features.named_buffers():
        found[f"features.{name}"] = buffer.index_select(0, touched)
    return found


@contextmanager
def substituted(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Let a model use other tensors for some of its parameters and buffers; afterwards it has its own again.

    Unlike ``functional_call`` this lasts over several calls, and ``model.parameters()`` gives what is trained, which
    optimiser, clipping and reports go by.
    """
    own: list[tuple[nn.Module, str, Tensor]] = []
    try:
        for name, tensor in tensors.items():
            path, _, attribute = name.rpartition(".")
            module = model.get_submodule(path)
            before = getattr(module, attribute)
            own.append((module, attribute, before))
            setattr(module, attribute, nn.Parameter(tensor) if isinstance(before, nn.Parameter) else tensor)
        yield
    finally:
        for module, attribute, before in own:
            setattr(module, attribute, before)


def in_table(table: NDArray[np.float32], touched: NDArray[np.int64], rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return a copy of ``table`` ``[V + 1, D]`` with ``rows`` ``[R, D]`` at ``touched`` ``[R]``."""
    whole = table.copy()
    whole[touched] = rows
    return whole


def travels_as_rows(table: NDArray[np.float32], touched: NDArray[np.int64]) -> bool:
    """Return whether the touched rows and their ids (without the padding's) are smaller than the table."""
    row = table[:1].nbytes + touched.itemsize
    return row * (len(touched) - 1) < table.nbytes
