"""What all tests share: no telemetry, private folders for Flower and for the data cache, and one thread."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")


@pytest.fixture(autouse=True, scope="session")
def private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is read from or left in the user's own folders."""
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_CACHE", str(folder / "cache"))
        patch.setenv("FLWR_HOME", str(folder / "flwr"))
        patch.setenv("OMP_NUM_THREADS", "1")
        yield folder
