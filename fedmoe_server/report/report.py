"""One readable report of a run, written from the files of its run folder alone.

``python -m fedmoe_server.report.report RUN_DIR`` writes it again, e.g. after baselines were added.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import yaml

from fedmoe.errors import FedMoEError
from fedmoe_server.report.client_ranks import read_client_ranks
from fedmoe_server.report.diagnosis import findings, signs
from fedmoe_server.report.guard_report import failed_rounds, guard_table, who
from fedmoe_server.report.plots import BASELINE_LABEL, draw_gate, draw_loss, draw_ranking
from fedmoe_server.report.progress import duration
from fedmoe_server.report.run_folder import BASELINES, METRICS, RESULT, SETTINGS
from fedmoe_server.report.tracking import write_text
from fedmoe_server.rounds.privacy import privacy_section

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
    records = _read_records(run_dir / METRICS)
    settings = _read(run_dir / SETTINGS)
    result = _read(run_dir / RESULT) or {"status": "unfinished"}
    baselines = _read(run_dir / BASELINES) or {}
    try:
        drawn = _draw(run_dir, records, baselines, result.get("best_round"))
        parts = [
            _head(settings, records, result),
            _ranking(result, baselines, settings),
            _diagnosis(records, result, baselines),
            _personalisation(run_dir),
            _pictures(drawn, settings),
            privacy_section(run_dir),
            _cost(records, result),
            _failures(records),
            _guards(records),
            _settings(run_dir),
        ]
        write_text(run_dir / REPORT, "\n\n".join(part for part in parts if part) + "\n")
    except OSError as error:
        raise FedMoEError(f"report in {run_dir} cannot be written: {error}") from error
    return run_dir / REPORT


def _draw(run_dir: Path, records: Sequence[Mapping[str, Any]], baselines: Any, best_round: int | None) -> list[str]:
    """Draw what there is to draw and return the names of the pictures."""
    for name in PLOTS:  # a picture of an earlier report must not stay beside newer ones
        (run_dir / name).unlink(missing_ok=True)
    drawn = {
        "loss.png": draw_loss(records, run_dir / "loss.png"),
        "ranking.png": draw_ranking(records, baselines, best_round, run_dir / "ranking.png"),
        "gate.png": draw_gate(records, run_dir / "gate.png"),
    }
    return [name for name, done in drawn.items() if done]


def _head(settings: Mapping[str, Any], records: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    data, federation = settings["data"], settings["federation"]
    what = (
        f"Data set {data['dataset']}, strategy {federation['strategy']}, "
        f"{federation['client_fraction']:.0%} of the clients a round, seed {settings['seed']}."
    )
    if result["status"] == "completed":
        early = f", stopped early of {federation['num_rounds']}" if result["stopped_early"] else ""
        state = (
            f"Completed: {result['rounds']} rounds{early} in {duration(result['seconds'])}. "
            f"The model of round {result['best_round']} is the one reported"
            + (", the best by NDCG@10 on validation." if any(r["validation"] for r in records) else ".")
        )
    elif result["status"] == "failed":
        state = f"**Failed** after round {len(records)} of {federation['num_rounds']}: {result['error']}"
    else:
        state = f"**Not finished**: {len(records)} of {federation['num_rounds']} rounds done."
    return f"# {settings['name']}: federated run\n\n{what}\n\n{state}"


def _ranking(result: Mapping[str, Any], baselines: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return the tables of test and validation: federated, and the baselines that there are."""
    rows: dict[str, Mapping[str, Any]] = {}
    if result["status"] == "completed":
        for kind, title in (
            ("personalised", "federated, with the clients' private parameters"),
            ("global", "federated, server's model alone"),
        ):
            rows[title] = {split: result[split][kind] for split in ("test", "validation")}
    rows |= {BASELINE_LABEL.get(name, name): splits for name, splits in baselines.items()}
    tables = [_ranking_table(split, rows) for split in ("test", "validation")]
    if not any(tables):
        return ""
    evaluation = settings["evaluation"]
    among = (
        "all items that the user has not met"
        if evaluation["protocol"] == "full"
        else f"itself and {evaluation['num_candidates']} sampled items"
    )
    text = f"Leave-one-out: each user's held-out item is ranked among {among}; means over all users, 0 to 1."
    return "\n\n".join(["## Ranking", text, *(table for table in tables if table)])


def _ranking_table(split: str, rows: Mapping[str, Mapping[str, Any]]) -> str:
    values = {title: splits[split] for title, splits in rows.items() if splits.get(split)}
    keys = sorted({key for metrics in values.values() for key in metrics if _is_ranking(key)}, key=_cutoff_first)
    if not keys:
        return ""
    body = [[title, *(_share(metrics.get(key)) for key in keys)] for title, metrics in values.items()]
    return _table([split.capitalize(), *(key.upper() for key in keys)], body)


def _is_ranking(key: str) -> bool:
    name, _, cutoff = key.partition("@")
    return name in ("hr", "ndcg") and cutoff.isdigit()


def _cutoff_first(key: str) -> tuple[int, str]:
    name, _, cutoff = key.partition("@")
    return int(cutoff), name


def _diagnosis(records: Sequence[Mapping[str, Any]], result: Mapping[str, Any], baselines: Mapping[str, Any]) -> str:
    """Return what the numbers say of the run's health, and the signs of the experts'."""
    found = findings(records, result, baselines)
    lines = [f"* {line}" for line in found] or ["Nothing stands out."]
    parts = ["## Diagnosis", "\n".join(lines)]
    rows = [[name, f"{first:.4g}", f"{last:.4g}"] for name, (first, last) in signs(records).items()]
    if rows:
        parts.append(_table(["", "first rounds", "last rounds"], rows))
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
    return "\n\n".join(["## Personalisation", text, _table(head, rows)])


def _pictures(drawn: Sequence[str], settings: Mapping[str, Any]) -> str:
    if not drawn:
        return ""
    sample = settings["federation"]["evaluate_clients"]
    clients = f"a fixed sample of at most {sample} clients" if sample else "all clients"
    text = f"Losses, gate and router are means over the clients of a round, validation over {clients}."
    return "\n\n".join(["## Course of the run", text, *(f"![{PLOTS[name]}]({name})" for name in drawn)])


def _cost(records: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> str:
    if not records:
        return ""
    down = result.get("bytes_down", sum(record["bytes_down"] for record in records))
    up = result.get("bytes_up", sum(record["bytes_up"] for record in records))
    seconds = sum(record["seconds"] for record in records)
    trained = sum(record["clients"] for record in records)
    rows = [
        ["time of the rounds", duration(seconds)],
        ["time per round, mean", duration(seconds / len(records))],
        ["clients trained, all rounds", f"{trained:,}"],
        ["sent to clients", _bytes(down)],
        ["received from clients", _bytes(up)],
    ]
    if "seconds" in result:
        rows.insert(0, ["time of the run, all together", duration(result["seconds"])])
    return f"## Time and traffic\n\n{_table(['', ''], rows)}"


def _failures(records: Sequence[Mapping[str, Any]]) -> str:
    failed = [(f, record["round"]) for record in records for f in record["failed"]]
    if not failed:
        return "## Failed clients\n\nNo client failed in any round."
    counts = Counter(who(f) for f, _ in failed)
    last = {who(f): (number, f) for f, number in failed}
    rows = [
        [who, str(count), str(last[who][0]), f"{last[who][1]['stage']}: {last[who][1]['reason']}"]
        for who, count in counts.most_common(NAMED_FAILURES)
    ]
    more = f"\n\nand {len(counts) - NAMED_FAILURES} more clients." if len(counts) > NAMED_FAILURES else ""
    table = _table(["client", "failures", "last in round", "last reason"], rows, text=(0, 3))
    return f"## Failed clients\n\n{_count(len(failed), 'failure')} of {_count(len(counts), 'client')}.\n\n{table}{more}"


def _guards(records: Sequence[Mapping[str, Any]]) -> str:
    rows = guard_table(records)
    titles = ["replies", "times", "clients", "rounds"]
    parts = ["## Guards", _table(titles, rows, text=(0, 2)) if rows else "Every reply counted as it was sent."]
    if failed := failed_rounds(records):
        intro = f"{_count(len(failed), 'round')} failed:"
        parts += [intro, "\n".join(f"* {line}" for line in failed)]
    return "\n\n".join(parts)


def _settings(run_dir: Path) -> str:
    return f"## Settings\n\n```yaml\n{(run_dir / SETTINGS).read_text(encoding='utf-8').rstrip()}\n```"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], text: Sequence[int] = (0,)) -> str:
    """Return a Markdown table; columns of ``text`` stand at the left, numbers at the right."""
    lines = [titles, ["---" if column in text else "---:" for column in range(len(titles))], *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _read_records(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise FedMoEError(f"{path} cannot be read: {error}; give the folder of a run") from error
    records = []
    for position, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            if position == len(lines):  # the run was cut off while it wrote this line
                break
            raise FedMoEError(f"{path}, line {position}, is not JSON: {error}") from error
    return records


def _read(path: Path) -> Any:
    """Read a YAML or JSON file, None if there is none; settings.yaml must be there."""
    try:
        text = path.read_text(encoding="utf-8")
        return yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
    except FileNotFoundError as error:
        if path.name == SETTINGS:
            raise FedMoEError(f"{path} is missing; give the folder of a run") from error
        return None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise FedMoEError(f"{path} cannot be read: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of a run folder again."""
    parser = argparse.ArgumentParser(
        prog="python -m fedmoe_server.report.report", description="write a run's report again"
    )
    parser.add_argument("run_dir", type=Path, help="run folder, e.g. runs/20250101-120000-ml-100k")
    try:
        print(write_report(parser.parse_args(arguments).run_dir))
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
