"""Completion in the shell: what is offered for a word, and that a shell gets it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedmoe.help import words
from fedmoe.loading import load_settings

ROOT = Path(__file__).parents[2]
WORDS = argparse.Action([], "words")


def offered(prefix: str) -> set[str]:
    return {word for word in words(prefix, WORDS) if word.startswith(prefix)}


def test_a_key_is_completed_and_so_are_the_values_of_a_choice() -> None:
    assert offered("num_r") == {"num_rounds="} and "quick" in offered("qu")
    assert offered("federation.num_r") == {"federation.num_rounds="}
    assert offered("engine=") == {"engine=vectorized", "engine=ray", "engine=flower"}
    assert offered("model.mixture=") == {"model.mixture=true", "model.mixture=false"}
    assert offered("epsilon=") == offered("nothing=") == set()
    assert words("", argparse.Action([], "out")) == []  # an option's value: the shell has files


def test_what_is_offered_is_understood() -> None:
    for word in words("engine=", WORDS):
        load_settings([word])
    assert "file=" not in offered("fi")  # of several modalities


@pytest.mark.parametrize(
    "module, line, answer",
    [("sim", "fedmoe quick num_r", "num_rounds="), ("fedmoe_server", "fedmoe-server ad", "admit ")],
)
def test_a_shell_is_answered(module: str, line: str, answer: str, tmp_path: Path) -> None:
    pytest.importorskip("argcomplete")
    told = tmp_path / "told"
    asked = {"_ARGCOMPLETE": "1", "_ARGCOMPLETE_SHELL": "bash", "_ARGCOMPLETE_STDOUT_FILENAME": str(told)}
    asked |= {"COMP_LINE": line, "COMP_POINT": str(len(line))}
    subprocess.run([sys.executable, "-m", module], cwd=ROOT, check=True, env=os.environ | asked)
    assert told.read_text() == answer
