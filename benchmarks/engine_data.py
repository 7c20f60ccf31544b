"""The process that makes a case's data set, so that all engines find it in the cache, and says how long that took."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from benchmarks.engine_report import Report, Round, plan_and_place
from data.registry import load_dataset


def main(words: Sequence[str]) -> None:
    """Load the data set of a plan, which makes it the first time; its users are the "clients" of the only "round"."""
    settings, _, _, place = plan_and_place(words)
    report = Report()
    begun = time.time()
    interactions = load_dataset(settings.data, settings.seed).interactions
    report.rounds.append(Round(0, interactions.num_users, begun, time.time()))
    report.notes["items"] = interactions.num_items
    report.notes["interactions"] = int(interactions.offsets[-1])
    report.write(place)


if __name__ == "__main__":
    main(sys.argv[1:])
