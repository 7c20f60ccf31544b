"""How long the model is trained centrally, to be compared with a federation."""

from __future__ import annotations

from benchmarks.quality.central import passes
from fedmoe.loading import load_settings
from fedmoe.settings import Settings


def test_passes_are_those_of_the_rounds() -> None:
    assert passes(load_settings(["num_rounds=100", "client_fraction=0.2", "local_epochs=2"])[0]) == 40
    assert passes(Settings.model_validate({"federation": {"num_rounds": 1}})) == 1
