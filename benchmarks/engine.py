"""``python -m benchmarks.engine``: what the engines cost, beside central training and pfl-research.

Each engine is run in a process of its own, in all cases one after the other and this ``--repeats`` times, on the same
clients with the same seeds. Results are kept in ``--folder`` and not measured again, so a benchmark can be made in
parts (``--cases``); the page with medians, ratios and plots is written from all that is there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path

from benchmarks.engine_cases import (
    DEFAULT_ENGINES,
    ENGINES,
    FLOWER_USERS,
    Case,
    Options,
    Plan,
    cases,
    plan_of,
    settings_of,
    smoke_cases,
)
from benchmarks.engine_page import write_page
from benchmarks.engine_runs import ROOT, EngineFailed, Result, Results, run
from fedmoe.errors import FedMoEError, nearest


def main(words: Sequence[str]) -> int:
    """Measure what is missing and write the page; return the exit status."""
    given = _parser().parse_args(list(words))
    options = Options(
        given.engines or DEFAULT_ENGINES, given.users, given.cohort, given.rounds, given.data_dir, given.features
    )
    try:
        with tempfile.TemporaryDirectory() as temporary:
            smoke_folder = Path(temporary) if given.smoke and given.folder is None else None
            folder = smoke_folder or given.folder or Path("runs/engine")
            everything = cases(options)  # which checks the options, for the small ones too
            chosen = _chosen(smoke_cases(options.engines) if given.smoke else everything, given.cases)
            results = Results(folder)
            repeats = 1 if given.smoke else given.repeats
            left_out, failed = _measure(chosen, results, folder / "cache", repeats, given.pfl_python)
            target = (ROOT / "docs", Path("images")) if given.write_docs else (folder, Path("."))
            command = f"python -m benchmarks.engine {' '.join(words)}"
            page = write_page(results, left_out | failed, command, *target)
            print(page.read_text(encoding="utf-8") if given.smoke else f"page: {page}")
            return 1 if failed else 0
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--engines", nargs="+", help=f"of {', '.join(ENGINES)}; default: {' '.join(DEFAULT_ENGINES)}")
    parser.add_argument("--cases", nargs="+", help="names of cases (ml-1m, ml-100k, synthetic-943 ...); default: all")
    parser.add_argument(
        "--users", type=int, nargs="+", default=[943, 6040, 100_000, 1_000_000], help="numbers of users of the sweep"
    )
    parser.add_argument(
        "--cohort",
        type=int,
        nargs="+",
        default=[604, 100, 2000],
        help="clients of the sweep's rounds; all of them are run with the most users, the first with the others",
    )
    parser.add_argument("--rounds", type=int, default=3, help="warm rounds of a process (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="0: only write the page (default: %(default)s)")
    parser.add_argument(
        "--data-dir", type=Path, help="folder that holds ml-1m and ml-100k; default: synthetic stand-ins"
    )
    parser.add_argument("--features", action="store_true", help="with the text and visual feature files of --data-dir")
    parser.add_argument("--pfl-python", type=Path, help="an interpreter that has torch, pfl, pydantic and pyyaml")
    parser.add_argument("--folder", type=Path, help="where results are kept; default: runs/engine")
    parser.add_argument("--write-docs", action="store_true", help="write docs/performance.md, not a page in --folder")
    parser.add_argument("--smoke", action="store_true", help="everything tiny and once, in less than a minute")
    return parser


def _chosen(everything: Sequence[Case], names: Sequence[str] | None) -> list[Case]:
    known = {case.name: case for case in everything}
    for name in names or ():
        if name not in known:
            raise FedMoEError(f"no case '{name}'{nearest(name, known)} They are: {', '.join(known)}")
    return [case for case in everything if names is None or case.name in names]


def _measure(
    chosen: Sequence[Case], results: Results, cache: Path, repeats: int, pfl_python: Path | None
) -> tuple[dict[str, str], dict[str, str]]:
    """Run what is missing. Return why which engine was left out, and why which engine failed where.

    A repeat goes through all cases before the next one begins: a machine that slows down in the course of hours then
    does so for small and large federations alike.
    """
    left_out: dict[str, str] = {}
    failed: dict[str, str] = {}
    plans = [
        plan for case in chosen if repeats for plan in _plans(case, _users(case, results, cache), pfl_python, left_out)
    ]
    for engine, reason in left_out.items():
        print(f"{engine} is left out: {reason}", flush=True)
    for repeat, plan in product(range(repeats), plans):
        label = f"{plan.case}  {plan.engine}"
        if label in failed or results.has(plan, repeat):
            continue
        try:
            result = run(plan, repeat, cache, pfl_python)
        except EngineFailed as error:  # the others' hours should not be lost with it
            failed[label] = str(error)
            print(f"{label}  failed: {error}", flush=True)
            continue
        results.add(result)
        print(f"{label}  {repeat + 1}/{repeats}: {_summary(result)}", flush=True)
    return left_out, failed


def _users(case: Case, results: Results, cache: Path) -> int:
    """Return the number of users of a case, whose data are made and kept if they are not there yet."""
    data = Plan(case.name, "data", settings_of(case).model_dump(mode="json"), [[0, 0]], [])
    if not results.has(data, 0):
        results.add(run(data, 0, cache))
    return results.of(case.name, "data")[0].phases[0].clients


def _plans(case: Case, users: int, pfl_python: Path | None, left_out: dict[str, str]) -> list[Plan]:
    """Return the plans of a case; the engines that cannot be run are put into ``left_out`` with the reason."""
    plans = []
    for engine in case.engines:
        if engine == "pfl" and pfl_python is None:
            left_out[engine] = "--pfl-python does not name an interpreter that has pfl"
        elif engine == "flower" and users > FLOWER_USERS:
            left_out[engine] = f"its dispatcher scans all messages for each of {users} nodes"
        else:
            try:
                plans.append(plan_of(case, engine, users))
            except FedMoEError as error:  # settings that do not know it
                left_out[engine] = str(error)
    return plans


def _summary(result: Result) -> str:
    clients = sum(phase.clients * len(phase.seconds) for phase in result.phases)
    seconds = sum(sum(phase.seconds) for phase in result.phases)
    return f"{clients / seconds:.0f} clients/s, first round {result.first:.1f} s"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
