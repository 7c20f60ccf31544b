"""Ranking quality; see ``python -m benchmarks.quality COMMAND --help``.

compare     central and federated variants over several seeds: means, paired tests, slices; a page and a picture
personal    whose private parameters help in finished runs: the user's own, the mean of all, another user's
new_items   items that nobody has met: the model, noise, and what needs no training, over several seeds
strategies  every strategy in a short run, in a table of docs/strategies.md
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from benchmarks.quality import compare, new_items, personal, strategies
from benchmarks.runs import exit_status

COMMANDS = {
    "compare": compare,
    "personal": personal,
    "new_items": new_items,
    "strategies": strategies,
}


def main(words: Sequence[str]) -> int:
    """Carry out a command; return the exit status."""
    if not words or words[0] not in COMMANDS:
        asked = bool({"-h", "--help"} & set(words))
        print(__doc__, end="", file=sys.stdout if asked else sys.stderr)
        return 0 if asked else 2
    command, prog = COMMANDS[words[0]], f"python -m benchmarks.quality {words[0]}"
    parser = argparse.ArgumentParser(prog, description=(command.__doc__ or "").split("\n\n")[0])
    command.add_arguments(parser)
    given = parser.parse_intermixed_args(words[1:])
    given.command = f"{prog} {shlex.join(words[1:])}"
    return exit_status(lambda: command.run(given))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
