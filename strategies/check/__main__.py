"""Try a strategy out: ``python -m strategies.check NAME [key=value ...]``.

NAME is what ``federation.strategy`` takes, a name of the registry or ``my_module:MyStrategy``; key=value are the
strategy's parameters. Each demand of ``strategies.check.contract`` is tried on a few made-up replies, with partial
aggregation around the strategy; one line for each says whether it holds, and what was seen. Exit status: 0 all hold,
1 one fails, 2 the name or the parameters are wrong.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.serverapp.strategy import Strategy

from fedmoe.check.command import Finding, run
from strategies.check.contract import findings
from strategies.rules.registry import build_strategy

USAGE = "usage: python -m strategies.check NAME [key=value ...], e.g. my_module:MyStrategy eta=0.5"


def main(words: Sequence[str]) -> int:
    """Check the strategy that the words name, print what was found and return the exit status."""
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its lines about every round
    return run(words, USAGE, _findings)


def _findings(name: str, parameters: Mapping[str, Any]) -> list[Finding]:
    def make() -> Strategy:
        return build_strategy(name, parameters)

    make()  # what cannot be made is no finding
    return findings(make)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
