"""What pip installs: a wheel, or an sdist of which the same wheel is made, that works in an empty folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from configparser import ConfigParser
from importlib import import_module
from pathlib import Path
from zipfile import ZipFile

import pytest

pytest.importorskip("setuptools")
ROOT = Path(__file__).parents[1]
BUILD = "import sys; from setuptools.build_meta import build_sdist, build_wheel; print({}(sys.argv[1]))"
LEFT_OUT = ("tests", "examples", "docs", "runs", ".*", "build", "*.egg-info", "__pycache__", "shared")


def built(source: Path, what: str, out: Path) -> Path:
    done = subprocess.run(
        [sys.executable, "-c", BUILD.format(what), str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert done.returncode == 0, done.stderr
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of an sdist of the packages."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "source", ignore=shutil.ignore_patterns(*LEFT_OUT))
    sdist = built(folder / "source", "build_sdist", folder)
    shutil.unpack_archive(sdist, folder / "sdist", filter="data")
    (unpacked,) = (folder / "sdist").iterdir()
    return built(unpacked, "build_wheel", folder)


def test_the_wheel_holds_all_packages_and_configs(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    packages = [path.parent for path in ROOT.glob("[!.]*/__init__.py") if path.parent.name not in ("tests", "build")]
    wanted = {"sim.py"}
    for package in packages:
        for file in [*package.rglob("*.py"), *package.glob("*.yaml")]:
            wanted.add(file.relative_to(ROOT).as_posix())
    assert wanted <= names
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {path.name for path in packages} | {
        "sim.py"
    }


def test_its_commands_are_functions(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith("entry_points.txt")]
        points = ConfigParser()
        points.read_string(archive.read(entry).decode())
    scripts = dict(points["console_scripts"])
    assert set(scripts) == {"fedmoe", "fedmoe-server", "fedmoe-client"}
    for target in scripts.values():
        module, function = target.split(":")
        assert callable(getattr(import_module(module), function))


def test_an_empty_folder_is_enough(wheel: Path, tmp_path: Path) -> None:
    shutil.unpack_archive(wheel, tmp_path / "site", "zip")
    (tmp_path / "empty").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "import sys, sim; sys.exit(sim.command())", "--help"],
        cwd=tmp_path / "empty",
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
    )
    assert done.returncode == 0, done.stderr
    assert "  fedmoe CONFIG " in done.stdout and "ml-100k, ml-1m, quick" in done.stdout
