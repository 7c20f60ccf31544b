"""Fixtures of the client's tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from deployed_client import Deployment


@pytest.fixture
def deployment(tmp_path: Path) -> Deployment:
    """A client of a deployed run, which has not done anything yet."""
    return Deployment(tmp_path / "client")
