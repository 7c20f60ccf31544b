"""The Flower app as it is submitted: the packages that server and clients need, in a folder of their own.

Made from what is installed, so a run can be submitted without a checkout; ``flwr run`` takes either.
"""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe.packages import app_version

PACKAGES = ("configs", "data", "fedmoe", "fedmoe_client", "fedmoe_server", "model", "strategies")
# Keys that a run may set must be there with a default; they are those of [tool.flwr.app.config] in pyproject.toml.
RUN_CONFIG: dict[str, str | bool] = {
    "config": "ml-100k",
    "overrides": "",
    "settings": "",
    "run_dir": "",
    "resume": "",
    "clients": "",
    "simulated": False,
    "sees": "",
    "json_logs": False,
}
PROJECT = """\
[project]
name = "fedmoe"
version = "{version}"
description = "Federated multimodal sequential recommendation"
license = "Apache-2.0"
dependencies = ["flwr>=1.39.0,<1.40"]

[tool.flwr.app]
publisher = "fedmoe"

[tool.flwr.app.components]
serverapp = "fedmoe_server.app:app"
clientapp = "fedmoe_client.app:app"

[tool.flwr.app.config]
{config}
"""


def write_bundle(folder: Path) -> Path:
    """Write the app into a folder, in place of what is there, and return the folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name in PACKAGES:
        shutil.copytree(_origin(name).parent, folder / name, ignore=_only_sources)
    config = "\n".join(f"{key} = {json.dumps(value)}" for key, value in RUN_CONFIG.items())
    (folder / "pyproject.toml").write_text(PROJECT.format(version=app_version(), config=config), encoding="utf-8")
    return folder


def _origin(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise FedMoEError(f"package '{name}' is not installed in this environment: python -m pip install -e .")
    return Path(spec.origin)


def _only_sources(folder: str, names: list[str]) -> set[str]:
    kept = (".py", ".yaml")
    return {name for name in names if not name.endswith(kept) and not (Path(folder) / name).is_dir()} | {"__pycache__"}
