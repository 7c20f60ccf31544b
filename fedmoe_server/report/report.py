"""One readable report of a run, written from the files of its run folder alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from data.sampling import AMONG_NEW, NEW
from fedmoe.errors import FedMoEError
from fedmoe.files import write_file
from fedmoe_server.report.client_ranks import read_client_ranks
from fedmoe_server.report.diagnosis import findings, guard_table, signs
from fedmoe_server.report.plots import draw_gate, draw_loss, draw_ranking
from fedmoe_server.report.progress import duration, number
from fedmoe_server.report.run_folder import PRIVACY, SETTINGS, Run, Splits, baselines_of, federated_metrics, read_run
from fedmoe_server.rounds.record import Failure, Metrics
from strategies import privacy_section, read_ledger, sums_section

REPORT = "report.md"
PLOTS = {
    "loss.png": "Training loss over the rounds",
    "ranking.png": "HR@10 and NDCG@10 on validation over the rounds",
    "gate.png": "Gate and router weights over the rounds",
}
NAMED_FAILURES = 20


def write_report(run_dir: Path) -> Path:
    """Draw the plots and write ``report.md`` into a run folder; return the report's path.

    Raises:
        FedMoEError: the folder holds no run, or one of its files cannot be read or written.
    """
    run = read_run(run_dir)
    try:
        drawn = _draw(run)
    except OSError as error:
        raise FedMoEError(f"report in {run_dir} cannot be written: {error}") from error
    parts = [
        _head(run),
        _ranking(run),
        _new_items(run),
        _diagnosis(run),
        _personalisation(run_dir),
        _pictures(drawn, run.settings),
        privacy_section(read_ledger(run_dir / PRIVACY)),
        sums_section(run.settings["privacy"]),
        run.server_section,
        _cost(run),
        _failures(run),
        _guards(run),
        f"## Settings\n\n```yaml\n{(run_dir / SETTINGS).read_text(encoding='utf-8').rstrip()}\n```",
    ]
    write_file(run_dir / REPORT, ("\n\n".join(part for part in parts if part) + "\n").encode())
    return run_dir / REPORT


def comparison(run_dir: Path) -> str:
    """Return, as a table of text, HR@10 and NDCG@10 of a completed run and its baselines; of new items HR@50 too."""
    rows = {**baselines_of(run_dir), **federated_metrics(run_dir)}
    columns = [(split, metric) for split in ("validation", "test") for metric in ("hr@10", "ndcg@10")]
    if any(NEW in splits for splits in rows.values()):
        columns += [(NEW, "hr@10"), (NEW, "hr@50")]
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{split} {metric.upper()}".rjust(20) for split, metric in columns)]
    for name, splits in rows.items():
        cells = (number(splits.get(split, {}).get(metric), 4) for split, metric in columns)
        lines.append(name.ljust(width) + "".join(cell.rjust(20) for cell in cells))
    return "\n".join(lines)


def ranked_among(evaluation: Mapping[str, Any]) -> str:
    """Return the items among which a held-out one is ranked, in words. evaluation: that part of the settings."""
    if evaluation["protocol"] == "full":
        return "all items that the user has not met (or all items, where that item was met before)"
    return f"itself and {evaluation['num_candidates']} sampled items"


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """Return a Markdown table; columns of ``text`` stand at the left, numbers at the right."""
    lines = [titles, ["---" if column in text else "---:" for column in range(len(titles))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _draw(run: Run) -> list[str]:
    """Draw what there is to draw and return the names of the pictures."""
    for name in PLOTS:  # a picture of an earlier report must not stay beside newer ones
        (run.folder / name).unlink(missing_ok=True)
    drawn = {
        "loss.png": draw_loss(run.records, run.folder / "loss.png"),
        "ranking.png": draw_ranking(run.records, run.baselines, run.result.best_round, run.folder / "ranking.png"),
        "gate.png": draw_gate(run.records, run.folder / "gate.png"),
    }
    return [name for name, done in drawn.items() if done]


def _head(run: Run) -> str:
    settings, result, done = run.settings, run.result, len(run.records)
    federation = settings["federation"]
    rounds = federation["num_rounds"]
    what = (
        f"Data set {settings['data']['dataset']}, strategy {federation['strategy']}, "
        f"{federation['client_fraction']:.0%} of the clients a round, seed {settings['seed']}."
    )
    if result.status == "completed":
        early = f", stopped early of {rounds}" if result.stopped_early else ""
        chosen = ", the best by NDCG@10 on validation" if any(record.validation for record in run.records) else ""
        state = (
            f"Completed: {result.rounds} rounds{early} in {duration(result.seconds or 0.0)}. "
            f"The model of round {result.best_round} is the one reported{chosen}."
        )
    elif result.status == "failed":
        state = f"**Failed** after round {done} of {rounds}: {result.error}"
    else:
        state = f"**Not finished**: {done} of {rounds} rounds done."
    return f"# {settings['name']}: federated run\n\n{what}\n\n{state}"


def _rows(run: Run) -> dict[str, Splits]:
    """Return the rows of the tables of ranking: federated, and the baselines that there are."""
    rows: dict[str, Splits] = {}
    if run.result.status == "completed":
        for kind, title in (
            ("personalised", "federated, with the clients' private parameters"),
            ("global", "federated, server's model alone"),
        ):
            splits = {"test": run.result.test, "validation": run.result.validation, NEW: run.result.new}
            rows[title] = {split: found[kind] for split, found in splits.items() if found}
    return rows | dict(run.baselines)


def _new_items(run: Run) -> str:
    """Return the table of the withheld items, where there were any."""
    rows = {title: splits for title, splits in _rows(run).items() if splits.get(NEW)}
    few = {title: {NEW: _among_new(splits[NEW])} for title, splits in rows.items()}
    tables = _ranking_table(NEW, rows), _ranking_table(NEW, few)
    if not all(tables):
        return ""
    share = run.settings["data"]["new_items"]
    text = (
        f"{share:.0%} of the catalogue was withheld from all training. The last such item that a user met is ranked "
        "among all items that the user had not met before;"
    )
    return "\n\n".join(["## New items", text, tables[0], "and among the withheld items alone:", tables[1]])


def _among_new(metrics: Metrics) -> Metrics:
    return {name.removeprefix(AMONG_NEW): value for name, value in metrics.items() if name.startswith(AMONG_NEW)}


def _ranking(run: Run) -> str:
    """Return the tables of test and validation."""
    rows = _rows(run)
    tables = [_ranking_table(split, rows) for split in ("test", "validation")]
    if not any(tables):
        return ""
    text = (
        f"Leave-one-out: each user's held-out item is ranked among {ranked_among(run.settings['evaluation'])}; "
        f"means over {run.averaged}, 0 to 1."
    )
    return "\n\n".join(["## Ranking", text, *(each for each in tables if each)])


def _ranking_table(split: str, rows: Mapping[str, Splits]) -> str:
    values: dict[str, Metrics] = {title: splits[split] for title, splits in rows.items() if splits.get(split)}
    found = {tuple(key.split("@")) for metrics in values.values() for key in metrics if key.count("@") == 1}
    cutoffs = sorted((int(at), name) for name, at in found if name in ("hr", "ndcg") and at.isdigit())
    keys = [f"{name}@{at}" for at, name in cutoffs]
    if not keys:
        return ""
    body = [[title, *(number(metrics.get(key), 4) for key in keys)] for title, metrics in values.items()]
    return table([split.capitalize(), *(key.upper() for key in keys)], body)


def _diagnosis(run: Run) -> str:
    """Return what the numbers say of the run's health, and the signs of the experts'."""
    found = findings(run.records, run.result, run.baselines)
    parts = ["## Diagnosis", "\n".join(f"* {line}" for line in found) or "Nothing stands out."]
    rows = [[name, f"{first:.4g}", f"{last:.4g}"] for name, (first, last) in signs(run.records).items()]
    if rows:
        parts.append(table(["", "first rounds", "last rounds"], rows))
    return "\n\n".join(parts)


def _personalisation(run_dir: Path) -> str:
    """Return how many clients their private parameters helped, how many they cost, and the mean ranks."""
    rows, known = [], read_client_ranks(run_dir)
    for split in ("test", "validation"):
        ranks = [rank for rank in known if rank.split == split]
        if any(rank.personal != rank.common for rank in ranks):
            better = sum(rank.personal < rank.common for rank in ranks) / len(ranks)
            worse = sum(rank.personal > rank.common for rank in ranks) / len(ranks)
            shares = (better, worse, 1 - better - worse)
            means = (geometric_mean(rank.common for rank in ranks), geometric_mean(rank.personal for rank in ranks))
            rows.append([split, *(f"{share:.1%}" for share in shares), *(f"{mean:.1f}" for mean in means)])
    if not rows:
        return ""
    text = (
        "Share of the clients whose held-out item their private parameters rank better than the server's model alone, "
        "and the geometric mean of its ranks without them and with them."
    )
    head = ["", "better", "worse", "the same", "rank without", "with"]
    return "\n\n".join(["## Personalisation", text, table(head, rows)])


def _pictures(drawn: Sequence[str], settings: Mapping[str, Any]) -> str:
    if not drawn:
        return ""
    sample = settings["federation"]["evaluate_clients"]
    clients = f"a fixed sample of at most {sample} clients" if sample else "all clients"
    text = f"Losses, gate and router are means over the clients of a round, validation over {clients}."
    return "\n\n".join(["## Course of the run", text, *(f"![{PLOTS[name]}]({name})" for name in drawn)])


def _cost(run: Run) -> str:
    records, result = run.records, run.result
    if not records:
        return ""
    seconds = sum(record.seconds for record in records)
    down = sum(record.bytes_down for record in records) if result.bytes_down is None else result.bytes_down
    up = sum(record.bytes_up for record in records) if result.bytes_up is None else result.bytes_up
    rows = [
        ["time of the rounds", duration(seconds)],
        ["time per round, mean", duration(seconds / len(records))],
        ["clients trained, all rounds", f"{sum(record.clients for record in records):,}"],
        ["sent to clients", _bytes(down)],
        ["received from clients", _bytes(up)],
    ]
    if result.seconds is not None:
        rows.insert(0, ["time of the run, all together", duration(result.seconds)])
    return f"## Time and traffic\n\n{table(['', ''], rows)}"


def _failures(run: Run) -> str:
    failed = [(str(record.round), failure) for record in run.records for failure in record.failed]
    failed += [("final evaluation", failure) for failure in run.result.final_failures]
    if not failed:
        return "## Failed clients\n\nNo client failed in any round."
    counts = Counter(failure.name for _, failure in failed)
    last: dict[str, tuple[str, Failure]] = {failure.name: (number, failure) for number, failure in failed}
    rows = [
        [name, str(count), last[name][0], f"{last[name][1].stage}: {last[name][1].said}"]
        for name, count in counts.most_common(NAMED_FAILURES)
    ]
    more = f"\n\nand {len(counts) - NAMED_FAILURES} more clients." if len(counts) > NAMED_FAILURES else ""
    named = table(["client", "failures", "last in round", "last reason"], rows, text=(0, 3))
    return f"## Failed clients\n\n{_count(len(failed), 'failure')} of {_count(len(counts), 'client')}.\n\n{named}{more}"


def _guards(run: Run) -> str:
    rows = guard_table(run.records)
    titles = ["replies", "times", "clients", "rounds"]
    parts = ["## Guards", table(titles, rows, text=(0, 2)) if rows else "Every reply counted as it was sent."]
    if failed := [record.failure for record in run.records if record.failure]:
        parts += [f"{_count(len(failed), 'round')} failed:", "\n".join(f"* {line}" for line in failed)]
    return "\n\n".join(parts)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"
