"""The folder of a server or of a client: everything that a deployment leaves on a machine is in there."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from secrets import token_hex

from fedmoe.errors import FedMoEError
from fedmoe.files import write_file

HERE = ("127.0.0.1", "localhost", "::1")
TAG = "FEDMOE_FOLDER"  # in the environment of every process of a folder


class Folder:
    """The places in a server's or client's folder; other users of the machine cannot look into it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.logs = path / "logs"  # one file for each program
        self.flower_home = path / "flower"  # what Flower writes: its configuration and the installed apps
        self.cache = path / "cache"  # parsed data sets, unless FEDMOE_CACHE names another place
        self.supervisor = path / "supervisor.json"  # what runs: written by the supervisor, read by ``down``
        self.secrets = path / "secrets"  # that keep other accounts of this machine from Flower's ports
        self.lock = path / "lock"  # held by the supervisor for as long as it lives

    def make(self) -> None:
        """Create the folder, for its owner alone. Raises FedMoEError if that is not possible."""
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            for inner in (self.logs, self.flower_home, self.secrets):
                inner.mkdir(exist_ok=True, mode=0o700)
            self.path.chmod(0o700)  # it may have been there before
        except OSError as error:
            raise FedMoEError(f"folder {self.path} cannot be made ({error.strerror}): choose another --dir") from error
        if self.path.stat().st_mode & 0o077:  # a file system without modes
            raise FedMoEError(f"other accounts can look into folder {self.path}: choose a --dir where modes are kept")

    def secret(self, name: str) -> Path:
        """Return the file of a secret, which is made at the first time."""
        file = self.secrets / name
        if not file.exists():
            write_file(file, token_hex(32).encode(), mode=0o600)
        return file

    def clear_apps(self) -> None:
        """Remove the apps that Flower has installed; it does so again when it needs one.

        Flower never looks whether an installation is whole: one that a crash cut short would fail for ever.
        """
        shutil.rmtree(self.flower_home / "apps", ignore_errors=True)

    def use_cache(self) -> None:
        """Let this process keep parsed data sets in the folder, as the programs of the folder do."""
        os.environ.setdefault("FEDMOE_CACHE", str(self.cache))

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return the environment of every program of this folder: all that they write is to stay inside.

        base: the caller's environment. What it says of telemetry, updates and the cache is kept.
        """
        scripts = str(Path(sys.executable).parent)  # Flower starts its own programs by name
        quiet = {
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        kept = {
            "FEDMOE_CACHE": str(self.cache.absolute()),
            "MPLCONFIGDIR": str((self.cache / "matplotlib").absolute()),
            "OMP_NUM_THREADS": "1",
        }
        # A proxy is for other machines: what runs here is reached without it.
        spared = {name: ",".join(filter(None, [base.get(name), *HERE])) for name in ("no_proxy", "NO_PROXY")}
        fixed = {
            **spared,
            TAG: str(self.path.absolute()),
            "FLWR_HOME": str(self.flower_home.absolute()),
            "PATH": os.pathsep.join([scripts, base.get("PATH", os.defpath)]),
            "PYTHONUNBUFFERED": "1",
        }
        return {**quiet, **kept, **base, **fixed}
