"""The demonstration, with a small data set in the files of MovieLens-100K."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
from real_processes import Federation

from fedmoe.deployment.folder import TAG
from fedmoe_server.deploy.one_machine import OneMachine

USERS, ITEMS = 30, 25


def write_films(folder: Path) -> None:
    """Write users who watch films in one order, each beginning somewhere else: the next film can be learned."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    events = [
        f"{user + 1}\t{(start + step) % ITEMS + 1}\t5\t{step}\n"
        for user, start in enumerate(rng.integers(0, ITEMS, USERS))
        for step in range(12)
    ]
    (folder / "u.data").write_text("".join(events))
    genres = "|".join("0" * 18 + "1")
    films = [f"{item + 1}|Film {item + 1} (1995)|01-Jan-1995||http://x|{genres}\n" for item in range(ITEMS)]
    (folder / "u.item").write_text("".join(films), encoding="latin-1")


@pytest.mark.faults
def test_the_demo_shows_figures_and_titles_and_leaves_nothing_running(federation: Federation) -> None:
    write_films(federation.root / "films")
    kept = federation.root / "kept"
    small = "dim=8 attention_dim=8 blocks=1 max_seq_len=10 memory_size=10 memory_refresh=5 num_negatives=10".split()
    words = ("demo", f"data_dir={federation.root / 'films'}", *small, "--clients", 3, "--rounds", 2, "--keep", kept)
    try:
        said = federation.command("fedmoe_server", *words, timeout=600)
    finally:
        OneMachine(kept, []).down()
    assert "30 users of MovieLens-100K, 3 clients with the histories of about 10 each" in said
    assert "Secure aggregation: the server sees sums over at least 3 clients" in said
    (popular,) = (line for line in said.splitlines() if line.startswith("popularity "))
    (own,) = (line for line in said.splitlines() if line.startswith("the federation "))
    assert all(0 <= float(figure) <= 1 for line in (popular, own) for figure in line.split()[-2:])
    assert "user-1 of client 0 watched last: Film " in said
    assert sum("Film " in line for line in said.splitlines() if line[:4].strip().isdigit()) == 10
    assert said.splitlines()[-1] == "taking everything down"
    assert len(list((kept / "histories-1").glob("*.txt"))) == 10
    tags = [process.info["environ"] or {} for process in psutil.process_iter(["environ"])]
    assert not any(tag.get(TAG, "").startswith(str(kept)) for tag in tags)
    assert "must be a new folder" in federation.command("fedmoe_server", *words, status=2)
