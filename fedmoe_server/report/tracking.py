"""What a run writes down while it runs: settings, one line a round, TensorBoard events, the terminal, the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

import yaml
from rich.console import Console

from fedmoe.errors import FedMoEError
from fedmoe.settings import Settings
from fedmoe_server.report.progress import Progress, duration, number, progress_for
from fedmoe_server.report.run_folder import BASELINES, METRICS, RESULT, SETTINGS, TENSORBOARD
from fedmoe_server.rounds.exchange import Failure, list_failures
from fedmoe_server.rounds.record import Metrics, Result, split_global

RECENT_ROUNDS = 20


class _EventWriter(Protocol):
    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None: ...
    def close(self) -> None: ...


class Tracker:
    """Writes a run's records into its folder and shows them on the terminal.

    Args:
        run_dir: folder of the run; it must exist (``run_folder.check_run_dir`` sees to that).
        settings: the settings as resolved, written to ``settings.yaml``.
        history: records of the rounds done before a resume; ``metrics.jsonl`` is cut back to exactly these.
        console: where to show progress; default: standard output.
        every_round: whether to show a line for each round, not just for evaluations, where there is no terminal.

    Raises:
        FedMoEError: a file of the run folder cannot be written.
    """

    def __init__(
        self,
        run_dir: Path,
        settings: Settings,
        history: Sequence[Mapping[str, Any]] = (),
        console: Console | None = None,
        every_round: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.settings = settings
        self.total = settings.federation.num_rounds
        self._recent: list[float] = []
        try:
            text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
            write_text(run_dir / SETTINGS, text)
            write_text(run_dir / METRICS, "".join(_line(record) for record in history))
            (run_dir / RESULT).unlink(missing_ok=True)  # of the run before a resume: it is not the result of this one
            self._metrics: TextIO = (run_dir / METRICS).open("a", encoding="utf-8")
            self._events = _event_writer(run_dir / TENSORBOARD, first_step=len(history) + 1)
        except OSError as error:
            raise FedMoEError(f"run folder {run_dir} cannot be written: {error}") from error
        self._progress: Progress = progress_for(console or Console(), self.total, every_round)

    def round(self, record: Mapping[str, Any], failures: Sequence[Failure] = ()) -> None:
        """Take down a round that is done.

        Args:
            record: its line of ``metrics.jsonl``.
            failures: the clients that failed in it.

        Raises:
            FedMoEError: the disk is full.
        """
        try:
            self._metrics.write(_line(record))
            self._metrics.flush()
        except OSError as error:
            raise FedMoEError(f"{self.run_dir / METRICS} cannot be written: {error}") from error
        for tag, value in _scalars(record).items():
            self._events.add_scalar(tag, value, record["round"])
        self._recent = [*self._recent[1 - RECENT_ROUNDS :], record["seconds"]]
        seconds_left = (self.total - record["round"]) * sum(self._recent) / len(self._recent)
        if record.get("failure"):
            self.note(f"round {record['round']} failed, the model stays as it was: {record['failure']}")
        if record.get("validation_failure"):
            self.note(f"round {record['round']}: the model could not be judged: {record['validation_failure']}")
        if failures and not (record.get("failure") or record.get("validation_failure")):
            self.note(f"round {record['round']}: {len(failures)} failed - {list_failures(failures)}")
        self._progress.round(record, seconds_left)

    def failures(self, what: str, asked: int, failures: Sequence[Failure]) -> None:
        """Show the clients that failed, the first few by name."""
        if failures:
            self.note(f"{what}: {len(failures)} of {asked} clients failed - {list_failures(failures)}")

    def note(self, text: str) -> None:
        """Show one line."""
        self._progress.note(text)

    def stage(self, text: str) -> None:
        """Show what happens now."""
        self._progress.stage(text)

    def finish(self, result: Result, seconds: float) -> None:
        """Write ``result.json`` and show the result.

        Args:
            seconds: duration of the whole run, the parts before a resume included.
        """
        summary = {
            "status": "completed",
            "stopped_early": result.stopped_early,
            "rounds": result.rounds,
            "best_round": result.best_round,
            "validation": _both(result.validation),
            "test": _both(result.test),
            "bytes_down": result.bytes_down,
            "bytes_up": result.bytes_up,
            "failed_replies": result.failed_replies,
            "failed_rounds": [record["round"] for record in result.history if record.get("failure")],
            "seconds": round(seconds, 1),
            "baselines": _baselines(self.run_dir),
        }
        self._write_result(summary)
        self.close()
        early = ", stopped early" if result.stopped_early else ""
        self.note(f"{result.rounds} rounds in {duration(seconds)}{early}; best model: round {result.best_round}")
        for split, metrics in (("validation", result.validation), ("test", result.test)):
            personal, shared = split_global(metrics)
            parts = [f"HR@10 {number(personal.get('hr@10'), 4)}", f"NDCG@10 {number(personal.get('ndcg@10'), 4)}"]
            if shared:
                parts.append(
                    f"(server's model alone {number(shared.get('hr@10'), 4)} / {number(shared.get('ndcg@10'), 4)})"
                )
            self.note(f"{split:<10}  {'  '.join(parts)}")

    def fail(self, reason: str) -> None:
        """Write down that the run ended without a result, and why."""
        self._write_result({"status": "failed", "error": reason, "baselines": _baselines(self.run_dir)})
        self.close()

    def close(self) -> None:
        """Close the files and leave the terminal as it was; may be called twice."""
        self._progress.stop()
        self._metrics.close()
        self._events.close()

    def _write_result(self, summary: Mapping[str, Any]) -> None:
        try:
            write_text(self.run_dir / RESULT, json.dumps(summary, indent=2) + "\n")
        except OSError as error:
            raise FedMoEError(f"{self.run_dir / RESULT} cannot be written: {error}") from error


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is either the old or the new one, whatever happens meanwhile."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


def _event_writer(folder: Path, first_step: int) -> _EventWriter:
    # Imported here: everything else in this package, the report included, does without torch.
    from torch.utils.tensorboard import SummaryWriter

    # purge_step hides the events of rounds that a resume does again.
    writer: Any = SummaryWriter  # torch leaves its signature untyped
    created: _EventWriter = writer(str(folder), purge_step=first_step if first_step > 1 else None, max_queue=1000)
    return created


def _scalars(record: Mapping[str, Any]) -> dict[str, float]:
    """Return TensorBoard tag -> value of one round; ``@`` is no letter of a tag."""
    values = {f"train/{key}": value for key, value in record["train"].items()}
    values |= {f"validation/{key}": value for key, value in (record["validation"] or {}).items()}
    values |= {f"round/{key}": record[key] for key in ("seconds", "bytes_down", "bytes_up", "clients")}
    if record.get("privacy"):
        values["round/epsilon"] = record["privacy"]["epsilon"]
    values["round/failed"] = len(record["failed"])
    return {tag.replace("@", "_at_"): float(value) for tag, value in values.items() if value is not None}


def _both(metrics: Metrics) -> dict[str, Metrics]:
    personal, shared = split_global(metrics)
    return {"personalised": personal, "global": shared}


def _baselines(run_dir: Path) -> Any:
    """Return the baselines that were put into the run folder, None without any."""
    path = run_dir / BASELINES
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    except (OSError, ValueError) as error:
        raise FedMoEError(f"{path} is not readable JSON: {error}") from error
