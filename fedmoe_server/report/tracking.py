"""What a run writes down while it runs: settings, one line a round, trackers, the terminal, the result."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TextIO

import yaml
from rich.console import Console

from fedmoe.errors import FedMoEError
from fedmoe.files import write_file
from fedmoe.settings import Settings
from fedmoe_server.report.progress import Progress, duration, number, progress_for
from fedmoe_server.report.run_folder import METRICS, RESULT, SETTINGS, baselines_of, write_document
from fedmoe_server.report.trackers import Tracked, Trackers, row_of
from fedmoe_server.rounds.record import Result, RoundRecord, list_failures

RECENT_ROUNDS = 20


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
        history: Sequence[RoundRecord] = (),
        console: Console | None = None,
        every_round: bool = False,
    ) -> None:
        self.run_dir = run_dir
        self.total = settings.federation.num_rounds
        self._recent: list[float] = []
        self._ended = Result()
        text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        write_file(run_dir / SETTINGS, text.encode())
        write_file(run_dir / METRICS, "".join(_line(record) for record in history).encode())
        try:
            (run_dir / RESULT).unlink(missing_ok=True)  # of the run before a resume: it is not the result of this one
            self._metrics: TextIO = (run_dir / METRICS).open("a", encoding="utf-8")
        except OSError as error:
            raise FedMoEError(f"run folder {run_dir} cannot be written: {error}") from error
        self._trackers = Trackers(Tracked(run_dir, settings, [row_of(record) for record in history]), self.note)
        self._progress: Progress = progress_for(console or Console(), self.total, every_round)

    def round(self, record: RoundRecord) -> None:
        """Take down a round that is done. Raises FedMoEError if the disk is full."""
        try:
            self._metrics.write(_line(record))
            self._metrics.flush()
        except OSError as error:
            raise FedMoEError(f"{self.run_dir / METRICS} cannot be written: {error}") from error
        self._trackers.round(row_of(record))
        self._recent = [*self._recent[1 - RECENT_ROUNDS :], record.seconds]
        if record.failure:
            self.note(f"round {record.round} failed, the model stays as it was: {record.failure}")
        if record.validation_failure:
            self.note(f"round {record.round}: the model could not be judged: {record.validation_failure}")
        if record.failed and not (record.failure or record.validation_failure):
            self.note(f"round {record.round}: {len(record.failed)} failed - {list_failures(record.failed)}")
        self._progress.round(record, (self.total - record.round) * sum(self._recent) / len(self._recent))

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
        self._end(replace(result, seconds=round(seconds, 1)))
        early = ", stopped early" if result.stopped_early else ""
        self.note(f"{result.rounds} rounds in {duration(seconds)}{early}; best model: round {result.best_round}")
        for split, kinds in (("validation", result.validation), ("test", result.test)):
            own, server = ([number(kinds[kind].get(k), 4) for k in ("hr@10", "ndcg@10")] for kind in kinds)
            alone = f"  (server's model alone {' / '.join(server)})" if kinds["global"] else ""
            self.note(f"{split:<10}  HR@10 {own[0]}  NDCG@10 {own[1]}{alone}")

    def fail(self, reason: str) -> None:
        """Write down that the run ended without a result, and why."""
        self._end(Result(status="failed", error=reason))

    def close(self) -> None:
        """Close the files and leave the terminal as it was; may be called twice."""
        self._trackers.end(self._ended)
        self._progress.stop()
        self._metrics.close()

    def _end(self, result: Result) -> None:
        compared = replace(result, baselines=baselines_of(self.run_dir) or None)
        write_document(self.run_dir / RESULT, compared.to_json())
        self._ended = result
        self.close()


def _line(record: RoundRecord) -> str:
    return json.dumps(record.to_json(), allow_nan=False) + "\n"
