"""One small comparison for the tests of all commands of the quality benchmark."""

from __future__ import annotations

import pytest
from hosts_here import hosts_here
from small_comparison import Compared, compare


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    with hosts_here():
        return compare(tmp_path_factory.mktemp("quality"))
