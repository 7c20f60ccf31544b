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

from fedmoe.errors import FedMoEError
from fedmoe.loading import parse_value
from strategies.check.contract import findings
from strategies.rules.registry import build_strategy

USAGE = "usage: python -m strategies.check NAME [key=value ...], e.g. my_module:MyStrategy eta=0.5"


def main(words: Sequence[str]) -> int:
    """Check the strategy that the words name, print what was found and return the exit status."""
    if not words or {"-h", "--help"} & set(words):
        print(USAGE)
        return 0 if words else 2
    logging.getLogger("flwr").setLevel(logging.ERROR)  # its lines about every round
    name, *rest = words
    try:
        parameters = _parameters(rest)

        def make() -> Strategy:
            return build_strategy(name, parameters)

        make()
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    found = findings(make)
    for finding in found:
        print(finding)
    return 0 if all(finding.holds for finding in found) else 1


def _parameters(words: Sequence[str]) -> Mapping[str, Any]:
    parameters = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise FedMoEError(f"'{word}' is not key=value; {USAGE}")
        parameters[key] = parse_value(value)
    return parameters


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
