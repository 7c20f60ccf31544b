"""Which models understand each other's parameters. No torch here: a client asks before it loads anything."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Protocol

import numpy as np

from fedmoe.settings import ModelSettings

# Raise it when the code gives parameters of the same names and shapes another meaning.
FORM = 1
# What changes how a model is trained or used, but not what its parameters mean.
_FREE = {"gate_init", "dropout", "memory_size", "memory_refresh"}


class Features(Protocol):
    """Item features of one modality: values ``[V + 1, F]``."""

    @property
    def values(self) -> np.ndarray: ...


def model_version(settings: ModelSettings, num_items: int, text: Features | None, visual: Features | None) -> str:
    """Return a short name of the model's schema, such as ``1-5f0c2ab31d44``; two models differ if their names do."""
    schema = {
        "settings": settings.model_dump(mode="json", exclude=_FREE),
        "items": num_items,
        "text": None if text is None else text.values.shape[1],
        "visual": None if visual is None else visual.values.shape[1],
    }
    return f"{FORM}-{sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()[:12]}"
