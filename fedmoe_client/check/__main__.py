"""Try a client or a metric of one's own out: ``python -m fedmoe_client.check [metric] NAME [key=value ...]``.

NAME is what ``training.client`` takes, ``my_module:MyClient``, or, after the word ``metric``, what an entry of
``evaluation.metrics`` does; key=value are its arguments. One line for each demand says whether it holds, and what was
seen. Exit status: 0 all hold, 1 one fails, 2 the name or the arguments are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fedmoe.check.command import run

USAGE = (
    "usage: python -m fedmoe_client.check NAME [key=value ...], e.g. my_module:MyClient mu=0.1; "
    "python -m fedmoe_client.check metric NAME [key=value ...]"
)


def main(words: Sequence[str]) -> int:
    """Check the client or the metric that the words name, print what was found and return the exit status."""
    if words[:1] == ["metric"]:
        from fedmoe_client.check.metric import metric_findings

        return run(words[1:], USAGE, metric_findings)
    from fedmoe_client.check.client import client_findings  # torch and Flower, which a metric does without

    return run(words, USAGE, client_findings)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
