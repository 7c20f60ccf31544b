"""Which models understand each other's parameters. No torch here: a client asks before it loads anything."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Protocol

import numpy as np

from fedmoe.settings import Settings

# Raise it when the code gives parameters of the same names and shapes another meaning.
FORM = 2
# What changes how a model is trained or used, but not what its parameters mean.
_FREE = {"gate_init", "dropout", "memory_size", "memory_refresh"}


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
    """What the model needs to know of a data set: its size, and the features of each modality by name."""

    @property
    def interactions(self) -> Interactions: ...
    @property
    def features(self) -> Mapping[str, Features]: ...


def model_version(settings: Settings, catalogue: Catalogue) -> str:
    """Return a short name of the model's schema, such as ``2-5f0c2ab31d44``; two models differ if their names do."""
    unsaid = {"backbone", "backbone_parameters"} if settings.model.backbone == "sasrec" else set()
    schema = {
        "settings": settings.model.model_dump(mode="json", exclude=_FREE | unsaid),
        "items": catalogue.interactions.num_items,
        "modalities": {
            name: [each.values.shape[1], settings.expert_of(name), own.norm, own.expert_parameters]
            for name, each in catalogue.features.items()
            for own in [settings.named_modalities[name]]
        },
    }
    return f"{FORM}-{sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:12]}"
