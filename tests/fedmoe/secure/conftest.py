"""A cohort large enough for a sparse graph."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from cohort import Cohort

from fedmoe.secure import graph
from fedmoe.secure.messages import Terms


@pytest.fixture
def sparse(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cohort]:
    """Return forty clients, with odds that nobody would accept but which make the graph sparse already."""
    monkeypatch.setattr(graph, "SECURITY_BITS", 1)
    monkeypatch.setattr(graph, "FAILURE_BITS", 1)
    graph._sparse.cache_clear()
    yield Cohort(40, Terms(20, 0.25, 0.1))
    graph._sparse.cache_clear()
