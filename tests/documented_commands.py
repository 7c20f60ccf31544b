"""The commands of the documentation's pages, and the programs that read them: each up to where its work begins."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
from ray.scripts.scripts import cli as ray_cli
from site_pages import ROOT

import fedmoe_client.__main__ as client_door
import fedmoe_server.__main__ as server_door
import sim
from fedmoe.deployment import front_door
from fedmoe.deployment.flower_part import PROGRAMS as FLOWER
from fedmoe.loading import load_settings

FENCED = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?<=\n\n)((?: {4}.*\n|\n(?= {4}))+)")
INLINE = re.compile(r"`((?:\w+=\S+ )*([\w-]+) [^`]+)`")
ASSIGNED = re.compile(r"(\w+)=(\S+) (?=\S)")
PROGRAMS = {"python", "pip", "fedmoe", "fedmoe-server", "fedmoe-client", "mkdocs", "podman", "ray", *FLOWER}
RUNS = "runs/20260101-120000-"
SHELL = {"export", "eval", "ssh-keygen", "ssh"}  # they are not ours, and have no parser to ask
# Indented blocks that are no commands, by how they begin; the units and the container file have test_docs_units.py.
SHOWN = (
    "final = LN(", "score(t, c) = ", "sim.py            the", "# seen on the sofa", "the client's text features is not",
    "Without secure aggregation the server", "# /etc/systemd/", "ExecStart=", "# Containerfile",
)  # fmt: skip
MEANT = {
    r"\bCONFIG\b": "quick", r"\bTOPIC\b": "model", r"\b(RUN_)?ID\b": "1", r"\bFOLDER/best": f"{RUNS}search/best",
    r"fedmoe_client up( \.\.\.|$)": "fedmoe_client up --server HOST:9092", r" \.\.\. ": " ",
}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


class Begun(BaseException):
    """A command has understood its words and begins its work."""


def commands(page: Path) -> Iterator[str]:
    """Yield the commands of a page, a line each, without what is said beside them."""
    whole = page.read_text(encoding="utf-8")
    prose = FENCED.sub("", whole)
    for kind, text in FENCED.findall(whole) if page.name != "tutorial.md" else ():
        yield from () if kind in ("text", "python", "yaml") else lines_of(text)
    for text in INDENTED.findall(prose):
        text = re.sub(r"^ {4}", "", text, flags=re.MULTILINE)
        yield from () if text.startswith(SHOWN) else lines_of(text)
    for text, program in INLINE.findall(INDENTED.sub("", prose)):
        if program in PROGRAMS:
            yield " ".join(text.split())


def lines_of(block: str) -> Iterator[str]:
    """Yield the commands of a block; below one that begins with a dollar is what it prints."""
    lines = re.sub(r"\\\n\s*", "", block).splitlines()
    if lines[0].startswith("$ "):
        lines = [line[2:] for line in lines if line.startswith("$ ")]
    for line in filter(None, lines):
        line = re.sub(r"^\.\.\.", lines[0], line)
        command, _, told = line.partition("  ")
        yield line if re.search(r"\b(python|pip|ray|flwr) \w", told) else command  # each has a line of its own


def understood(command: str, patch: pytest.MonkeyPatch) -> None:
    """Give a command to the program that would read it; what it does not understand is an error."""
    for meaning in MEANT.items():
        command = re.sub(*meaning, command)
    while found := ASSIGNED.match(command):
        assert found[1] == "PYTHONPATH", f"a variable that is not known: {found[1]}"
        patch.syspath_prepend(str(ROOT / found[2]))
        command = command[found.end() :]
    for words in map(shlex.split, re.sub(r"\s#.*", "", command).split(" && ")):
        try:
            status = read_by(words, patch)
        except Begun:
            continue
        except SystemExit as end:
            status = end.code  # type: ignore[assignment]
        assert not status, f"not understood: {command}"


def read_by(words: list[str], patch: pytest.MonkeyPatch) -> int | None:
    match words:
        case ["fedmoe", *rest] | ["python", "sim.py", *rest]:
            return sim.main([*rest, "--dry-run"])
        case ["python", "-m", "fedmoe.deployment.flower_part", *rest]:
            return read_by(rest, patch)
        case ["fedmoe-server", *rest] | ["python", "-m", "fedmoe_server", *rest]:
            return by_door(server_door, "flower-superlink", rest)
        case ["fedmoe-client", *rest] | ["python", "-m", "fedmoe_client", *rest]:
            return by_door(client_door, "flower-supernode", rest)
        case ["python", "-m", "pytest", *rest]:
            markers = [each.split(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
            assert rest == [] or (rest[0] == "-m" and rest[1] in markers), rest
        case ["python", "-m", "pip", *rest] | ["pip", *rest]:
            assert rest[0] == "install" and set(rest[1:-1]) <= {"-e"}, rest
            name, *extras = re.findall(r"^\.|[\w-]+", rest[-1])
            assert name in (".", "fedmoe") and set(extras) <= set(PROJECT["project"]["optional-dependencies"]), rest
        case ["python", "-m", module]:  # its name alone, unless it does its work without further words
            place = find_spec(f"{module}.__main__") if find_spec(module).submodule_search_locations else module  # type: ignore[union-attr]
            assert place is not None, module
        case ["python", "-m", module, *rest]:
            patch.setattr(sys, "argv", [module, *rest])
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["python", script, *rest]:
            patch.setattr(sys, "argv", [script, *rest])
            runpy.run_path(str(ROOT / script), run_name="__main__")
        case ["mkdocs", command]:
            assert command in ("build", "serve"), command
        case ["podman", "build" | "stop", *_]:
            pass
        case ["podman", "exec", "server", *rest]:
            return read_by(rest, patch)
        case ["podman", "run", *rest]:
            return read_by(["python", "-m", *rest[rest.index("fedmoe") + 1 :]], patch)
        case ["ray", *rest]:
            by_click(ray_cli, rest)
        case ["flwr", *rest]:
            by_click(typer.main.get_command(import_module("flwr.cli.app").app), rest)
        case [("flower-superlink" | "flower-supernode") as program, *rest]:
            by_flower(program, rest)
        case [program, *_] if program in SHELL:
            pass
        case _:
            pytest.fail(f"no kind of command that is known here: {shlex.join(words)}")
    return 0


def by_door(door: Any, program: str, words: list[str]) -> int:
    """Parse the words for a server or client, and check settings and Flower's own options among them."""

    def stub(given: Any, extra: list[str]) -> int:
        load_settings(getattr(given, "words", []))
        return by_flower(program, extra) if extra else 0

    return front_door.main(door.parser(), dict.fromkeys(door.COMMANDS, stub), words)


def by_flower(program: str, words: list[str]) -> int:
    """Parse the words with Flower's parser; those that ``up`` adds itself may be missing."""
    module = import_module(FLOWER[program].partition(":")[0] + "." + program.replace("-", "_"))
    parser = getattr(module, f"_parse_args_run_{program.removeprefix('flower-')}")()
    for action in parser._actions:
        action.required = False
    parser.parse_args(words)
    return 0


def by_click(command: Any, words: list[str]) -> None:
    """Parse the words with the parsers of a command and its subcommands."""
    context = command.make_context("", list(words))
    while hasattr(command, "resolve_command"):
        name, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        context = command.make_context(name, rest, parent=context)
