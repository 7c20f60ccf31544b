"""``python -m benchmarks.quality [CONFIG] [key=value ...] --seeds 1 2 3``: what is learned, in numbers to be believed.

Trains popularity, central and federated variants on one data set with several seeds, and writes a Markdown page with
means and standard deviations over seeds, paired tests over users, and slices by history length, item popularity and
modality. What is in the folder already is not trained again, so that the page can be extended.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.quality_plots import draw
from benchmarks.quality_runs import Ranks, run
from benchmarks.quality_tables import Floats, comparison_table, main_table, slice_table, slices_of
from benchmarks.variants import COMPARISONS, VARIANTS
from data.registry import load_dataset
from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import load_settings


def main(words: Sequence[str]) -> int:
    """Train what is missing and write the page; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.split("\n\n")[0])
    parser.add_argument("settings", nargs="*", help="a YAML file or its name in configs/, then key=value")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), help="names of variants; default: all")
    parser.add_argument("--against", default="federated SASRec, id", help="the row that the others are tested against")
    parser.add_argument("--folder", type=Path, default=Path("runs/quality"), help="where runs and the page are kept")
    given = parser.parse_args(words)
    try:
        base, _ = load_settings(given.settings)
        for name in [*given.variants, given.against]:
            if name not in VARIANTS:
                raise FedMoEError(f"no variant '{name}'{nearest(name, VARIANTS)} They are: {'; '.join(VARIANTS)}")
        if base.data.dataset == "synthetic" and given.seeds != [base.seed]:
            # The seed makes the histories as well: another one's users are others.
            raise FedMoEError(
                f"synthetic data are those of one seed: name it twice, seed={given.seeds[0]} --seeds {given.seeds[0]}"
            )
        names = list(dict.fromkeys([given.against, *given.variants]))
        found: dict[str, list[Ranks]] = {name: [] for name in VARIANTS if name in names}
        for seed in given.seeds:
            for name in found:
                print(f"seed {seed}: {name}", flush=True)
                found[name].append(run(name, VARIANTS[name], base, seed, given.folder / base.name))
        rows: dict[str, list[Floats]] = {}
        for name, seeds in found.items():
            rows[name] = [ranks.full for ranks in seeds]
            personal = [ranks.personal for ranks in seeds if ranks.personal is not None]
            if any((p != ranks.full).any() for p, ranks in zip(personal, seeds, strict=False)):
                rows[f"{name}, personalised"] = personal
        sampled = {name: [ranks.sampled for ranks in seeds] for name, seeds in found.items()}
        slices = slices_of(load_dataset(base.data, base.seed))
        validation = {name: [ranks.validation for ranks in seeds] for name, seeds in found.items()}
        tail = next((members for name, members in slices.items() if name.startswith("tail")), None)
        page = given.folder / base.name / "quality.md"
        draw(rows, slices, base.name, page.with_name("quality.png"))
        parts = [
            f"# {base.name}",
            f"    {shlex.join(['python', '-m', 'benchmarks.quality', *words])}",
            main_table(rows, sampled, given.against),
            "" if tail is None else comparison_table(rows, validation, COMPARISONS, tail),
            slice_table(rows, slices),
            "![NDCG@10](quality.png)",
        ]
        parts = [part for part in parts if part]
        page.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        print("\n\n".join(parts[2:]))
        print(f"page: {page}")
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
