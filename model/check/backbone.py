"""What is asked of a backbone of one's own, each demand a function that tries it out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fedmoe.check.command import Broken, Demands, Finding, findings
from model.check.small import (
    CONTEXT,
    LENGTH,
    far,
    follows_from_the_seed,
    gradients_arrive,
    seeded,
    small_settings,
    small_table,
    stacked_or_alone,
)
from model.sasrec import BACKBONES, Backbone

INPUTS = CONTEXT[:, -LENGTH:]
PRESENT = INPUTS > 0


@dataclass(frozen=True)
class Subject:
    """name, parameters: of the backbone."""

    name: str
    parameters: Mapping[str, Any]

    def make(self) -> Backbone:
        """Return a backbone as it begins."""
        return BACKBONES.build(self.name, self.parameters, settings=small_settings())

    @cached_property
    def backbone(self) -> Backbone:
        """A backbone in evaluation mode, which is left as it is."""
        return seeded(self.make)


def backbone_findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    """Try all demands. FedMoEError: the backbone cannot be made."""
    subject = Subject(name, parameters)
    subject.make()
    return findings(FIRST, THEN, subject)


def states(backbone: Backbone, vectors: Tensor | None = None) -> Tensor:
    """Return the states of the windows, 0 at padding, where nobody reads them."""
    found: Tensor = backbone(small_table()[INPUTS] if vectors is None else vectors, PRESENT)
    return found.masked_fill(~PRESENT.unsqueeze(-1), 0.0)


def _shapes(subject: Subject) -> str:
    vectors = small_table()[INPUTS]
    found = subject.backbone(vectors, PRESENT)
    if found.shape != vectors.shape:
        raise Broken(f"the states have the shape {list(found.shape)}, expected {list(vectors.shape)}")
    if found.dtype != vectors.dtype:
        raise Broken(f"the states are {found.dtype}, expected {vectors.dtype}")
    return f"one state for each position, {list(found.shape)}"


def _finite(subject: Subject) -> str:
    # Also at padding: what is not finite there spoils gradients, though nobody reads it.
    if not bool(subject.backbone(small_table()[INPUTS], PRESENT).isfinite().all()):
        raise Broken("a state is not finite; at padding too it must be (a softmax over nothing is NaN)")
    return "no NaN, no infinity"


def _forwards(subject: Subject) -> str:
    vectors = small_table()[INPUTS]
    before = states(subject.backbone, vectors)
    for place in range(1, LENGTH):
        other = vectors.clone()
        other[:, place:] += 1.0
        if far(before[:, :place], states(subject.backbone, other)[:, :place]):
            raise Broken(
                f"items from position {place} on change the states before them, which are to guess these items: "
                "use model.sasrec.attention_mask, or causal padding in a convolution"
            )
    return "a state depends on the items at or before it"


def _used(subject: Subject) -> str:
    vectors = small_table()[INPUTS]
    other = vectors + torch.arange(8) % 2  # not the same for all of a vector's entries, which a LayerNorm takes away
    if not far(states(subject.backbone, vectors), states(subject.backbone, other)):
        raise Broken("the states do not depend on the items")
    return "the states follow from the items"


def _padding(subject: Subject) -> str:
    vectors = small_table()[INPUTS]
    other = vectors + (~PRESENT).unsqueeze(-1) * 2.0
    if far(states(subject.backbone, vectors), states(subject.backbone, other)):
        raise Broken("padding, on the left, changes the states after it: mask it by `present`")
    return "changes nothing"


def _windows(subject: Subject) -> str:
    together, vectors = states(subject.backbone), small_table()[INPUTS]
    for row in range(len(INPUTS)):
        alone = subject.backbone(vectors[row : row + 1], PRESENT[row : row + 1])
        if far(together[row], alone.masked_fill(~PRESENT[row : row + 1].unsqueeze(-1), 0.0)[0]):
            raise Broken("a window's states depend on the other windows of the batch: use LayerNorm, not BatchNorm")
    return "each is read alone"


def _gradients(subject: Subject) -> str:
    backbone = seeded(subject.make)
    return gradients_arrive(backbone, states(backbone))


def _chance(subject: Subject) -> str:
    return follows_from_the_seed(subject.make, states)


def _stack(subject: Subject) -> str:
    settings = small_settings(backbone=subject.name, backbone_parameters=dict(subject.parameters))
    return stacked_or_alone(settings, dict)


FIRST: Demands[Subject] = {"shapes and types": _shapes, "states are finite": _finite}
THEN: Demands[Subject] = {
    "items are read": _used,
    "time runs forwards": _forwards,
    "padding": _padding,
    "windows are apart": _windows,
    "gradients reach all parameters": _gradients,
    "chance is the run's own": _chance,
    "stacked or alone": _stack,
}
