"""What all tests share: private folders for Flower and for the data cache, one thread, and one Ray instance."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported

# A shell starts what runs in its background deaf to Ctrl-C, which some tests press.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine is no error: an example may take as long as it takes.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

LONGEST = {"ray_address", "hosts_here", "federation"}  # fixtures of tests that start engines or deployments
RAY = """
import logging, ray
ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tell pytest-xdist what belongs together: the tests of a file, and the files that read the same run.

    The files that start engines come first. They take longest, and so the workers end together.
    """
    fixtures: dict[Path, set[str]] = {}
    for item in items:
        fixtures.setdefault(item.path, set()).update(getattr(item, "fixturenames", ()))
    items.sort(key=lambda item: fixtures[item.path].isdisjoint(LONGEST))
    for item in items:
        group = "compared" if "compared" in fixtures[item.path] else item.path.stem
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True, scope="module")
def _frozen() -> None:
    """What was imported is not searched for garbage time and again: Flower's strategies ask for it with each reply."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def private_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Nothing is read from or left in the user's own folders."""
    folder = tmp_path_factory.mktemp("private")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDMOE_CACHE", str(folder / "cache"))
        patch.setenv("FLWR_HOME", str(folder / "flwr"))
        yield folder


@pytest.fixture(scope="session")
def ray_process() -> Iterator[subprocess.Popen[str]]:
    """A process that has started Ray: the session's one instance. The first line of its output is the address."""
    with subprocess.Popen(
        [sys.executable, "-c", RAY],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield process
        process.communicate("\n")


@pytest.fixture(scope="session")
def ray_address(ray_process: subprocess.Popen[str]) -> str:
    """Where Ray runs, for simulations to join it: to start it takes seconds. Nobody is connected to it."""
    assert ray_process.stdout is not None
    return ray_process.stdout.readline().strip()


@pytest.fixture
def hosts_here() -> Iterator[None]:
    """The hosts of the engines ``ray`` and ``vectorized`` are in this process, and Ray need not run."""
    import hosts_here  # Ray and Flower, which many tests do without

    with hosts_here.hosts_here():
        yield
