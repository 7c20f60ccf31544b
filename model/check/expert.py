"""What is asked of an expert of one's own, each demand a function that tries it out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedmoe.check.command import Broken, Demands, Finding, findings
from model.check.small import (
    CANDIDATES,
    CONTEXT,
    ITEMS,
    LENGTH,
    WITHOUT,
    far,
    follows_from_the_seed,
    gradients_arrive,
    seeded,
    small_features,
    small_memory,
    small_settings,
    small_table,
    stacked_or_alone,
)
from model.experts import Expert, Memory
from model.reference_experts import EXPERTS
from model.residual_moe import ResidualMoE
from model.sasrec import substituted, substitutes
from model.values import Modality


@dataclass(frozen=True)
class Subject:
    """name, parameters: of the expert."""

    name: str
    parameters: Mapping[str, Any]

    def make(self) -> Expert:
        """Return an expert as it begins."""
        return EXPERTS.build(self.name, self.parameters, features=small_features(), settings=small_settings())

    def modalities(self) -> Mapping[str, Modality]:
        """Return the modalities of a model with this expert."""
        return {"own": Modality(small_features(), self.name, self.parameters)}

    @cached_property
    def expert(self) -> Expert:
        """An expert in evaluation mode, which is left as it is."""
        return seeded(self.make)


def expert_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the expert cannot be made."""
    subject = Subject(name, parameters)
    subject.make()
    return findings(FIRST, THEN, subject)


def views(
    expert: Expert,
    candidates: Tensor = CANDIDATES,
    memory: Memory | None = None,
    change: Callable[[Tensor, Tensor], Tensor] = lambda items, vectors: vectors,
) -> tuple[Tensor, Tensor]:
    """Return what an expert says. change: returns other vectors for the memory's items."""
    memory, table = memory or small_memory(), small_table()
    queries = expert.queries(candidates, table[candidates])
    said, where = expert(candidates, queries, memory, change(memory.items, table[memory.items]))
    return said, where


def _shapes(subject: Subject) -> str:
    items, table, memory = torch.arange(ITEMS + 1), small_table(), small_memory()
    for asked in (items, CANDIDATES):
        queries = subject.expert.queries(asked, table[asked])
        if queries.shape[:-1] != asked.shape or queries.dim() != asked.dim() + 1:
            raise Broken(
                f"queries of items {list(asked.shape)} have the shape {list(queries.shape)}, "
                f"expected {[*asked.shape, 'A']}"
            )
    found = views(subject.expert)
    wanted = [len(CANDIDATES), memory.segments, CANDIDATES.shape[1], table.shape[1]]
    for what, tensor, shape in zip(("the view", "where there is one"), found, (wanted, wanted[:-1]), strict=True):
        if list(tensor.shape) != shape:
            raise Broken(f"{what} has the shape {list(tensor.shape)}, expected {shape}")
    if found[1].dtype != torch.bool:
        raise Broken(f"where there is a view is {found[1].dtype}, expected torch.bool")
    return f"queries {[*items.shape, 'A']}, views {wanted}"


def _finite(subject: Subject) -> str:
    empty = replace(small_memory(), items=torch.zeros_like(small_memory().items))
    for memory, when in ((None, ""), (empty, " of an empty memory")):
        if not bool(views(subject.expert, memory=memory)[0].isfinite().all()):
            raise Broken(f"the view{when} has a value that is not finite, also where there is none it must be finite")
    return "no NaN, no infinity"


def _missing(subject: Subject) -> str:
    without = torch.isin(CANDIDATES, torch.tensor(WITHOUT))
    if bool((views(subject.expert)[1] & without.unsqueeze(1)).any()):
        raise Broken("a candidate without the modality has a view: use model.experts.usable_memory")
    empty = replace(small_memory(), items=torch.zeros_like(small_memory().items))
    if bool(views(subject.expert, memory=empty)[1].any()):
        raise Broken("there is a view where the memory is empty: use model.experts.usable_memory")
    _unmoved(subject, WITHOUT, "items without the modality count: leave them out of the memory's sums")
    return "such candidates have no view, such items of the memory do not count"


def _padding(subject: Subject) -> str:
    _unmoved(subject, (0,), "padding counts: leave it out of the memory's sums, and of what they are divided by")
    return "changes nothing"


def _unmoved(subject: Subject, items: tuple[int, ...], complaint: str) -> None:
    """Raise Broken if features and vectors of these items change a view."""
    expert, chosen = seeded(subject.make), torch.tensor(items)
    before, where = views(expert)
    with torch.no_grad():
        expert.features.values[chosen] += 1.0
    after, also = views(expert, change=lambda ids, vectors: vectors + torch.isin(ids, chosen).unsqueeze(-1) * 2.0)
    if not torch.equal(where, also) or far(before[where], after[where]):
        raise Broken(complaint)


def _itself(subject: Subject) -> str:
    before, where = views(subject.expert)
    for column in range(CANDIDATES.shape[1]):
        memory = small_memory()
        own = memory.items == CANDIDATES[:, column : column + 1]
        gone = replace(memory, items=memory.items.masked_fill(own, 0))
        after, also = views(subject.expert, memory=gone)
        there = where[:, :, column]
        if not torch.equal(there, also[:, :, column]) or far(before[:, :, column][there], after[:, :, column][there]):
            raise Broken("a candidate is looked at in the memory: mask it with model.experts.usable_memory")
    return "is masked out of the memory"


def _forwards(subject: Subject) -> str:
    memory, before = small_memory(), views(subject.expert)[0]
    for place in range(memory.items.shape[1]):
        other = memory.items.clone()
        other[:, place] = ITEMS
        after, unseen = views(subject.expert, memory=replace(memory, items=other))[0], ~memory.visible()[:, place]
        if far(before[:, unseen], after[:, unseen]):
            raise Broken(
                "an item changes what is said of positions before it: a segment sees its own blocks alone, use "
                "model.experts.attend or memory.visible()"
            )
    return "no segment sees later items"


def _candidates(subject: Subject) -> str:
    together = views(subject.expert)[0]
    for column in range(CANDIDATES.shape[1]):
        if far(together[:, :, column], views(subject.expert, CANDIDATES[:, column : column + 1])[0][:, :, 0]):
            raise Broken(
                "a candidate's view depends on the other candidates, among which are the items to be guessed: do not "
                "normalise or average over candidates"
            )
    return "each is judged alone"


def _windows(subject: Subject) -> str:
    together, memory = views(subject.expert)[0], small_memory()
    for row in range(len(CANDIDATES)):
        own = replace(memory, items=memory.items[row : row + 1], segment=memory.segment[row : row + 1])
        if far(together[row], views(subject.expert, CANDIDATES[row : row + 1], own)[0][0]):
            raise Broken("a window's view depends on the other windows of the batch: use LayerNorm, not BatchNorm")
    return "each is judged alone"


def _renumbered(subject: Subject) -> str:
    model = seeded(lambda: ResidualMoE(small_settings(), ITEMS, subject.modalities()))
    touched = torch.unique(torch.cat([torch.zeros(1, dtype=torch.int64), CONTEXT.flatten(), CANDIDATES.flatten()]))
    context, candidates = (torch.searchsorted(touched, ids) for ids in (CONTEXT, CANDIDATES))
    with torch.no_grad():
        expected = model(CONTEXT, LENGTH, CANDIDATES).scores
        table = model.items.ids.weight.detach().numpy()
        complaint = (
            "a client trains on the part of the catalogue that it touches, with the items renumbered: read features "
            "from self.features at each call, keep no table by item of your own"
        )
        with substituted(model, substitutes(model.features, table, touched)):
            try:
                found = model(context, LENGTH, candidates).scores
            except (IndexError, RuntimeError) as error:
                raise Broken(f"{complaint} ({error})") from error
    if by := far(expected, found):
        raise Broken(f"{complaint} (scores differ by {by:.3g})")
    return "a client's part of the catalogue gives the same scores"


def _gradients(subject: Subject) -> str:
    expert = seeded(subject.make)
    said, where = views(expert)
    return gradients_arrive(expert, said.masked_fill(~where.unsqueeze(-1), 0.0))  # where there is no view nobody reads


def _chance(subject: Subject) -> str:
    return follows_from_the_seed(subject.make, lambda expert: views(expert)[0])


def _stack(subject: Subject) -> str:
    return stacked_or_alone(small_settings(), subject.modalities)


FIRST: Demands[Subject] = {"shapes and types": _shapes, "views are finite": _finite}
THEN: Demands[Subject] = {
    "items without the modality": _missing,
    "padding": _padding,
    "the candidate itself": _itself,
    "time runs forwards": _forwards,
    "candidates are apart": _candidates,
    "windows are apart": _windows,
    "items may be renumbered": _renumbered,
    "gradients reach all parameters": _gradients,
    "chance is the run's own": _chance,
    "stacked or alone": _stack,
}
