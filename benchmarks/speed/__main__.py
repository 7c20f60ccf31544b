"""``python -m benchmarks.speed``: the cost of a round on each engine, beside central training and pfl-research.

Each engine is run in a process of its own, in all cases one after the other and this ``--repeats`` times, on the same
clients with the same seeds. Results are kept in ``--folder`` and not measured again, so a benchmark can be made in
parts (``--cases``). Medians, ratios and plots are made of all results in the folder.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.runs import Kept, check_names, exit_status, job
from benchmarks.speed.cases import DEFAULT_ENGINES, ENGINES, Case, Plan, cases, plan_of, smoke_cases
from benchmarks.speed.page import page
from benchmarks.speed.process import EngineFailed, Result, run
from benchmarks.tables import page_text, replaced
from data.registry import load_dataset


def main(words: Sequence[str]) -> int:
    """Measure what is missing and write the page; return the exit status, 1 if an engine failed."""
    parser = argparse.ArgumentParser("python -m benchmarks.speed", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--engines", nargs="+", default=list(DEFAULT_ENGINES), help=f"of {', '.join(ENGINES)}")
    parser.add_argument("--cases", nargs="+", help="names of cases (ml-1m, ml-100k, synthetic-943-604 ...)")
    parser.add_argument("--repeats", type=int, default=5, help="0: only write the page (default: %(default)s)")
    parser.add_argument("--data-dir", type=Path, help="folder that holds ml-1m and ml-100k; default: they are fetched")
    parser.add_argument("--pfl-python", type=Path, help="an interpreter that has torch, pfl, pydantic and pyyaml")
    parser.add_argument("--folder", type=Path, help="where results and pictures are kept; default: runs/speed")
    parser.add_argument("--page", type=Path, help="a page whose figures are replaced, as docs/performance.md")
    parser.add_argument("--smoke", action="store_true", help="everything tiny and once, in less than a minute")
    given = parser.parse_args(words)
    with tempfile.TemporaryDirectory() as temporary:
        given.folder = given.folder or Path(temporary if given.smoke else "runs/speed")
        return exit_status(lambda: _run(given, shlex.join(["python", "-m", "benchmarks.speed", *words])))


def _run(given: argparse.Namespace, command: str) -> bool:
    """Return whether no engine has failed."""
    check_names(given.engines, ENGINES, "engine")
    everything = cases(given.engines, given.data_dir)  # which checks the options, for the small ones too
    if given.smoke:
        everything, given.repeats = smoke_cases(given.engines), 1
    check_names(given.cases or (), [case.name for case in everything], "case")
    text = None if given.page is None else page_text(given.page)
    chosen = [case for case in everything if given.cases is None or case.name in given.cases]
    data, kept = Kept(given.folder / "data"), Kept(given.folder)
    left_out: dict[str, str] = {}
    plans = [plan for case in chosen if given.repeats and case.engines for plan in _plans(case, data, given, left_out)]
    for engine, reason in left_out.items():
        print(f"{engine} is left out: {reason}", flush=True)
    failed: dict[str, str] = {}
    # A machine that slows down in the course of hours does so for all cases alike.
    for repeat, plan in product(range(given.repeats), plans):
        label = f"{plan.case}  {plan.engine}"
        if label not in failed:
            try:
                kept.get(f"{label}  {repeat}", asdict(plan), partial(_measured, plan, given, repeat))
            except EngineFailed as error:  # the others' hours should not be lost with it
                failed[label] = str(error)
                print(f"{label}  failed: {error}", flush=True)
    results = [Result(**found) for found in kept.results().values()]
    folder = given.folder if given.page is None else given.page.parent
    figures = page(data.results(), results, left_out | failed, command, folder)
    if text is None:
        print(figures)
    else:
        given.page.write_text(replaced(text, figures), encoding="utf-8")
    return not failed


def _plans(case: Case, data: Kept, given: argparse.Namespace, left_out: dict[str, str]) -> list[Plan]:
    """Return the plans of a case; the engines that cannot be run are put into ``left_out`` with the reason."""
    users = data.get(case.name, {"words": case.words}, lambda: _made(case, given.folder / "cache"))["users"]
    if "pfl" in case.engines and given.pfl_python is None:
        left_out["pfl"] = "--pfl-python does not name an interpreter that has pfl"
    return [plan_of(case, engine, users) for engine in case.engines if engine not in left_out]


def _made(case: Case, cache: Path) -> dict[str, Any]:
    """Make the data set of a case, which all engines then find in the cache; return what it is, and the seconds."""
    settings = job(case.words.split())
    begun = time.time()
    found = load_dataset(settings, cache).interactions
    sizes = {"users": found.num_users, "items": found.num_items, "interactions": len(found.items)}
    return {**sizes, "seconds": time.time() - begun}


def _measured(plan: Plan, given: argparse.Namespace, repeat: int) -> dict[str, Any]:
    found = run(plan, given.folder / "cache", given.pfl_python, repeat)
    speed = f"{1 / found.seconds_of_client:.0f} clients/s, first round {found.first:.1f} s"
    print(f"{plan.case}  {plan.engine}  {repeat + 1}/{given.repeats}: {speed}", flush=True)
    return asdict(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
