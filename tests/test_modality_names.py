"""Modalities are data: outside data/, the settings' spellings and the configs no code knows one by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMED = re.compile(r"visual|semantic|[\"'.](text|titles)[\"']|experts\.text|router-text|text_file")


@pytest.mark.parametrize("package", ["model", "strategies", "fedmoe_client", "fedmoe_server", "simulation"])
def test_no_modality_is_named(package: str) -> None:
    found = {
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in (ROOT / package).glob("**/*.py")
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if NAMED.search(line)
    }
    assert not found
