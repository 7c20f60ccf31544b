"""A host that dies in the middle of a round costs a retry: the outcome is that of an undisturbed run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil
import pytest
import simulation_apps as apps
from grids import CLIENTS, everyone, merge, told, visits

from fedmoe.errors import FailureKind
from simulation.ray import fleet
from simulation.ray.grid import RayGrid


def train(grid: RayGrid, **config: object) -> list[bytes | str]:
    """One round; each client's array, or why it failed."""
    replies = grid.send_and_receive(apps.requests(everyone(), **config))
    assert {reply.error.code for reply in replies if reply.has_error()} <= {FailureKind.LOST}
    return [str(r.error.reason) if r.has_error() else r.content["arrays"]["w"].data for r in replies]


def kill_host(grid: RayGrid, client: int) -> None:
    """End the process that keeps a client, without the grid's knowing."""
    process = psutil.Process(told(grid, "process")[client])
    process.kill()
    process.wait(30)


def test_what_is_missing_is_done_once_more(grid: RayGrid, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain = train(grid)
    disturbed = train(grid, exit_once=[7], marker=str(tmp_path / "died"))
    assert disturbed == plain
    assert visits(grid) == [2] * CLIENTS, "every client was called twice, and no call got lost or counted twice"
    assert "host 1 died and was started again with the state of 5 clients" in caplog.text
    assert grid.save_clients(tmp_path / "new") == CLIENTS
    (tmp_path / "new").rename(tmp_path / "checkpoint")
    shutil.rmtree(tmp_path / "checkpoint")  # an old checkpoint may be gone when its snapshot is needed
    os.remove(tmp_path / "died")
    assert train(grid, exit_once=[2], marker=str(tmp_path / "died")) == plain
    assert visits(grid) == [3] * CLIENTS


def test_a_host_that_ray_could_not_reach_is_sent_everything_anew(grid: RayGrid) -> None:
    """Ray drops what it is to send to a host that does not answer: here the records that messages share."""

    class Sent(set[int]):
        lost = True

        def __contains__(self, call: object) -> bool:
            return self.lost or super().__contains__(call)

        def clear(self) -> None:
            self.lost = False
            super().clear()

    plain = train(grid)
    grid._fleet.hosts[1].known = Sent()
    assert train(grid) == plain
    assert visits(grid) == [2] * CLIENTS


def test_merged_replies_are_merged_anew(grid: RayGrid, tmp_path: Path) -> None:
    plain = merge(grid)
    disturbed = merge(grid, exit_once=[9], marker=str(tmp_path / "died"))
    assert disturbed == plain
    assert visits(grid) == [2] * CLIENTS
    assert merge(grid) == plain


def test_states_are_loaded_into_a_host_that_has_died(
    grid: RayGrid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet, "ADOPTED_CLIENTS", 2)
    train(grid)
    grid.save_clients(tmp_path)
    train(grid)
    kill_host(grid, 1)
    assert grid.load_clients(tmp_path) == CLIENTS
    assert visits(grid) == [1] * CLIENTS


def test_a_client_that_ends_its_host_each_time_is_an_error_in_the_end(grid: RayGrid, tmp_path: Path) -> None:
    plain = train(grid)
    got = train(grid, exit=[3])
    failed = {client for client, value in enumerate(got) if isinstance(value, str)}
    # Clients 5 to 9 wait behind client 3; client 1 was done, but its reply may die on its way out.
    assert failed - {1} == {3, 5, 7, 9}
    assert str(got[3]).startswith("host 1 died before it replied, 3 times (")
    assert "\n" not in str(got[3])
    assert [got[client] for client in range(0, CLIENTS, 2)] == [plain[client] for client in range(0, CLIENTS, 2)]
    assert visits(grid) == [1 if client in failed else 2 for client in range(CLIENTS)]
    assert train(grid) == plain, "the next round is as ever"
    # A death that shows only when the clients' state is asked for.
    kill_host(grid, 1)
    assert grid.save_clients(tmp_path) == CLIENTS
    assert visits(grid) == [2 if client in failed else 3 for client in range(CLIENTS)]


def test_a_client_that_keeps_nothing_any_more_stays_that_way(grid: RayGrid, tmp_path: Path) -> None:
    train(grid)
    grid.save_clients(tmp_path)
    train(grid, empty=[1])
    kill_host(grid, 1)
    assert visits(grid) == [2, 0] + [2] * (CLIENTS - 2)
    assert grid.save_clients(tmp_path / "new") == CLIENTS - 1
