"""Try a part of the model out: ``python -m model.check expert|backbone|loss NAME [key=value ...]``.

NAME is what ``modalities.NAME.expert``, ``model.backbone`` or ``training.loss`` takes, a registered name or
``my_module:Class``; key=value are its arguments. One line for each demand says whether it holds, and what was seen.
Exit status: 0 all hold, 1 one fails, 2 the name or the arguments are wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from fedmoe.check.command import run
from fedmoe.errors import nearest
from model.check.backbone import backbone_findings
from model.check.expert import expert_findings
from model.check.loss import loss_findings

KINDS = {"expert": expert_findings, "backbone": backbone_findings, "loss": loss_findings}
USAGE = "usage: python -m model.check expert|backbone|loss NAME [key=value ...], e.g. expert my_module:MyExpert decay=5"


def main(words: Sequence[str]) -> int:
    """Check the component that the words name, print what was found and return the exit status."""
    if not words or {"-h", "--help"} & set(words):
        return run(words, USAGE, expert_findings)
    kind, *rest = words
    if kind not in KINDS:
        print(f"error: '{kind}' is no kind of component{nearest(kind, KINDS)}; {USAGE}", file=sys.stderr)
        return 2
    return run(rest, USAGE, KINDS[kind])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
