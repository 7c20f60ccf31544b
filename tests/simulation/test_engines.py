"""The two engines: the same numbers, the same errors."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import ray
import simulation_apps as apps
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from hosts_here import put_here

from fedmoe.errors import FedMoEError
from fedmoe.settings import SimulationSettings
from simulation import run_simulation
from simulation.flower_runtime import console_handler

CLIENTS = 8
FAILURE = "RuntimeError: out of luck"


@pytest.fixture(scope="module")
def resources(ray_address: str) -> SimulationSettings:
    """Two hosts, or processes of Flower's runtime, on the session's Ray."""
    return SimulationSettings(ray_address=ray_address, client_cpus=1, hosts=2)


def outcome(
    engine: str, resources: SimulationSettings, folder: Path, stacked: str | None = None
) -> dict[str, np.ndarray]:
    out = folder / "out.npz"
    config: dict[str, bool | int | float | str] = {"colour": "red", "clients": CLIENTS, "out": str(out)}
    loads = range(CLIENTS, 0, -1)
    run_simulation(engine, apps.server_app, "simulation_apps:app", CLIENTS, config, resources, loads, stacked)
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope="module")
def plain(resources: SimulationSettings, tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What comes of the engine ``ray`` on two hosts."""
    return outcome("ray", resources, tmp_path_factory.mktemp("plain"))


def test_flower_and_ray_agree_to_the_last_bit(
    plain: dict[str, np.ndarray], resources: SimulationSettings, tmp_path: Path
) -> None:
    level = console_handler.level
    flower = outcome("flower", resources, tmp_path)
    assert not ray.is_initialized()
    three = outcome("ray", resources.model_copy(update={"hosts": 3, "client_cpus": 0.25}), tmp_path)
    assert not ray.is_initialized()
    for other in (plain, three):
        assert flower.keys() == other.keys()
        assert all(flower[name].tobytes() == other[name].tobytes() for name in flower if name != "processes")
    assert (len(set(plain["processes"])), len(set(three["processes"]))) == (2, 3)
    assert flower["failures"].tolist() == [FAILURE]
    # Client 5 failed in round 1, was rolled back, and so has one visit where the others have two.
    assert flower["visits"].tolist() == [1] * 7 + [2, 2, 2, 2, 2, 1, 2, 2]
    assert console_handler.level == level


def test_hosts_of_the_tests_own_process_give_the_same_bits(
    plain: dict[str, np.ndarray], resources: SimulationSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many tests have their hosts in their own process: see ``hosts_here``."""
    put_here(monkeypatch)
    found = outcome("ray", resources, tmp_path)
    assert set(found["processes"]) == {os.getpid()}
    assert all(plain[name].tobytes() == found[name].tobytes() for name in plain if name != "processes")
    assert plain.keys() == found.keys()


@pytest.mark.parametrize("engine", ["ray", "flower"])
def test_what_the_server_raises_comes_out(engine: str, resources: SimulationSettings) -> None:
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        raise FedMoEError(f"nothing for {context.run_config['colour']}")

    with pytest.raises(FedMoEError, match=r"^nothing for red$"):
        run_simulation(engine, server_app, "simulation_apps:app", 2, {"colour": "red"}, resources)
    assert not ray.is_initialized()


def test_flower_does_not_start_with_a_client_app_that_is_not_there() -> None:
    with pytest.raises(FedMoEError, match=r"^client app 'no_such_module:app' cannot be loaded: ModuleNotFoundError"):
        run_simulation("flower", ServerApp(), "no_such_module:app", 2, {}, SimulationSettings())


def test_unknown_engine_and_cluster() -> None:
    with pytest.raises(FedMoEError, match="simulation.engine 'spark' is not known"):
        run_simulation("spark", ServerApp(), "simulation_apps:app", 2, {}, SimulationSettings())
    with pytest.raises(FedMoEError, match="cannot reach the Ray cluster at 127.0.0.1:9"):
        run_simulation("ray", ServerApp(), "simulation_apps:app", 2, {}, SimulationSettings(ray_address="127.0.0.1:9"))
    with pytest.raises(FedMoEError, match="address 'here' is no address: write host:port"):
        run_simulation("flower", ServerApp(), "simulation_apps:app", 2, {}, SimulationSettings(ray_address="here"))


def test_stacks_give_the_same_numbers(
    plain: dict[str, np.ndarray], resources: SimulationSettings, tmp_path: Path
) -> None:
    stacked = outcome("vectorized", resources, tmp_path, "simulation_apps:train_stack")
    assert all(plain[name].tobytes() == stacked[name].tobytes() for name in plain if name != "processes")
    with pytest.raises(FedMoEError, match="'vectorized': simulation_apps:app has no function for stacks: use 'ray'"):
        outcome("vectorized", resources, tmp_path)
    with pytest.raises(FedMoEError, match="stacked client function 'simulation_apps:nothing' cannot be loaded"):
        outcome("vectorized", resources, tmp_path, "simulation_apps:nothing")
