"""The report's section on what the guards did: replies refused, scaled down or dropped, and rounds that failed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

REFUSED = "reply refused: "
NAMED = 10  # clients named in a row
VARIABLE = re.compile(r"'[^']*'|\[[^\]]*\]|(?<![\w'])-?\d[\d.e+-]*")  # names, shapes and numbers in a reason


@dataclass(frozen=True)
class Rejection:
    """One reply that did not count as it was sent: what was done and why, in which round, whose it was."""

    kind: str
    round: int
    who: str


def rejections(records: Sequence[Mapping[str, Any]]) -> list[Rejection]:
    """Return all rejections of a run, in the order of its rounds. records: lines of ``metrics.jsonl``."""
    return [found for record in records for found in _of_round(record)]


def guard_table(records: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Return a row for each kind of rejection: what, how often, by whom, first and last round; the commonest first."""
    kinds: dict[str, list[Rejection]] = {}
    for rejection in rejections(records):
        kinds.setdefault(rejection.kind, []).append(rejection)
    ordered = sorted(kinds.items(), key=lambda entry: -len(entry[1]))
    return [
        [kind, str(len(found)), _names([r.who for r in found]), f"{found[0].round} to {found[-1].round}"]
        for kind, found in ordered
    ]


def failed_rounds(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each round that failed: which and why."""
    return [record["failure"] for record in records if record.get("failure")]


def _of_round(record: Mapping[str, Any]) -> Iterator[Rejection]:
    number = record["round"]
    for failure in record["failed"]:
        if failure["reason"].startswith(REFUSED):
            yield Rejection(f"refused: {_kind(failure['reason'].removeprefix(REFUSED))}", number, who(failure))
    for clipped in record.get("clipped", ()):
        yield Rejection("scaled down: update longer than the bound", number, who(clipped))
    for dropped in record.get("dropped", ()):
        yield Rejection("dropped: late or repeated", number, who(dropped))


def _kind(reason: str) -> str:
    """Return a reason without what differs between replies of the same kind."""
    return VARIABLE.sub("...", reason)


def who(entry: Mapping[str, Any]) -> str:
    """Return the client's id, or its node where no client is known."""
    return f"node {entry['node']}" if entry["client"] is None else str(entry["client"])


def _names(clients: Sequence[str]) -> str:
    """Return the distinct clients, the first few by name."""
    distinct = sorted(set(clients), key=lambda name: (len(name), name))
    more = f" and {len(distinct) - NAMED} more" if len(distinct) > NAMED else ""
    return ", ".join(distinct[:NAMED]) + more
