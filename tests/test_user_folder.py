"""A user's folder with a model.py, data.py, settings.py and strategies.py of its own, in which our commands are run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PLANTED = ("model", "data", "settings", "strategies")
SMALL = (
    "dataset=synthetic data.synthetic.users=6 data.synthetic.items=60 dim=8 attention_dim=8 blocks=1 max_seq_len=10 "
    "memory_size=10 memory_refresh=5 num_negatives=20 client_fraction=0.5 warmup_rounds=1 evaluate_every=0 "
    "num_rounds=1 simulation.hosts=1 strategy=my_module:Mine"
).split()
MINE = """
from flwr.serverapp.strategy import FedAvg


class Mine(FedAvg):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in PLANTED:
        (tmp_path / f"{name}.py").write_text(f"raise RuntimeError('this is the {name}.py of the user')\n")
    (tmp_path / "my_module.py").write_text(MINE)
    return tmp_path


def run(folder: Path, *words: str, path: str = "") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.parametrize(
    ("start", "path", "engine"),
    [((str(ROOT / "sim.py"),), "", "ray"), (("-m", "sim"), os.pathsep.join((".", str(ROOT))), "vectorized")],
    ids=["python sim.py", "python -m sim"],
)
def test_a_simulation_in_a_users_folder(
    folder: Path, ray_address: str, start: tuple[str, ...], path: str, engine: str
) -> None:
    done = run(folder, *start, *SMALL, f"engine={engine}", f"ray_address={ray_address}", path=path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "stack of them fails" not in done.stdout + done.stderr
    (run_dir,) = (folder / "runs").iterdir()
    assert (run_dir / "report.html").exists() or (run_dir / "report.md").exists()


def test_a_file_that_ray_would_take_for_our_engine_is_named(folder: Path) -> None:
    (folder / "simulation.py").write_text("")
    (folder / "fedmoe").mkdir()  # no module: it does no harm
    done = run(folder, str(ROOT / "sim.py"), *SMALL)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert f"error: {folder / 'simulation.py'} hides FedMoE's package from Ray" in done.stderr


def test_a_clients_commands_in_a_users_folder(folder: Path) -> None:
    done = run(folder, "-m", "fedmoe_client", "enrol", path=str(ROOT))
    assert done.returncode == 0, done.stderr
    done = run(folder, "-m", "fedmoe_client", "recommend", path=str(ROOT))
    assert done.returncode == 2 and done.stderr.startswith("error: "), done.stderr
    assert "of the user" not in done.stderr


@pytest.mark.parametrize("module", ["fedmoe_client.device.task", "fedmoe_server.app", "benchmarks.quality"])
def test_our_modules_find_each_other(folder: Path, module: str) -> None:
    code = f"import {module}, data, model, strategies; assert all(m.__path__ for m in (data, model, strategies))"
    done = run(folder, "-c", code, path=str(ROOT))
    assert done.returncode == 0, done.stderr


def test_a_module_that_is_imported_already_is_named(folder: Path) -> None:
    (folder / "model.py").write_text("")
    done = run(folder, "-c", "import model, fedmoe_client", path=str(ROOT))
    assert f"ImportError: {folder / 'model.py'} is imported already, and 'model' is a package of FedMoE" in done.stderr
    assert run(folder, "-c", "import fedmoe_client, model; model.__path__", path=str(ROOT)).returncode == 0
