"""The command line that ``python -m fedmoe_server`` and ``python -m fedmoe_client`` have in common."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedmoe.errors import FedMoEError

Command = Callable[[argparse.Namespace, list[str]], int]


def parser_of(program: str, description: str) -> tuple[argparse.ArgumentParser, Any]:
    """Return the parser of a command line, and what makes the commands' own parsers (``add_parser``)."""
    made = argparse.ArgumentParser(
        f"python -m {program}", description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    return made, made.add_subparsers(dest="command", required=True, metavar="COMMAND")


def main(parser: argparse.ArgumentParser, commands: Mapping[str, Command], words: Sequence[str]) -> int:
    """Run a command; return the exit status: 0 done, 1 the run failed, 2 something for the user to put right.

    commands: those of the parser; they are handed what follows ``--``, which are options of Flower's own program.
    """
    if "_ARGCOMPLETE" in os.environ:
        from fedmoe.help import complete  # pydantic, which a supervisor does without

        complete(parser)
    words = list(words)
    at = words.index("--") if "--" in words else len(words)
    given = parser.parse_args(words[:at])
    try:
        return commands[given.command](given, words[at + 1 :])
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
