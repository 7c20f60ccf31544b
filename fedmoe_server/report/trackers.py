"""Where a run's numbers go beside its folder: ``tracking`` names trackers, several at once.

A tracker of one's own derives from ``RunTracker`` and is named as ``package.module:Class``. One that fails while the
run goes on is left out from then on, and the run says so.
"""

from __future__ import annotations

import csv
import io
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedmoe.components import Kind
from fedmoe.errors import FedMoEError, reason_of
from fedmoe.files import write_file
from fedmoe.settings import Settings
from fedmoe_server.report.run_folder import TENSORBOARD
from fedmoe_server.rounds.record import Result, RoundRecord

TABLE = "metrics.csv"
MLFLOW_RUN = "mlflow.txt"  # the run's id there, for a resume
MOST = 100  # parameters in one request to MLflow
Values = Mapping[str, float]


@dataclass(frozen=True)
class Tracked:
    """The run: its folder, its settings, and the rows of the rounds that were done before a resume."""

    folder: Path
    settings: Settings
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def flat_settings(self) -> dict[str, Any]:
        """The settings by their keys."""
        return dict(_leaves(self.settings.model_dump(mode="json")))


class RunTracker(ABC):
    """The base of a tracker. A constructor takes ``run``, a ``Tracked``, and the arguments in ``tracking.NAME``.

    needs: the package that it cannot do without.
    """

    needs = ""

    @abstractmethod
    def round(self, number: int, values: Values) -> None:
        """Take down a round that is done: its numbers, such as ``train/loss`` and ``validation/ndcg@10``."""

    def end(self, status: str, values: Values) -> None:  # noqa: B027  # not every tracker has anything to end
        """Take down the end: ``completed`` with figures such as ``test/ndcg@10``, ``failed``, or ``unfinished``."""


class TensorBoard(RunTracker):
    """Event files in the folder ``tensorboard`` of the run."""

    def __init__(self, run: Tracked) -> None:
        # Imported here: everything else in this package, the report included, does without torch.
        from torch.utils.tensorboard import SummaryWriter

        writer: Any = SummaryWriter  # torch leaves its signature untyped
        # purge_step hides the events of rounds that a resume does again.
        purge = len(run.rows) + 1 if run.rows else None
        self._events = writer(str(run.folder / TENSORBOARD), purge_step=purge, max_queue=1000)

    def round(self, number: int, values: Values) -> None:
        """Write an event for each number."""
        for tag, value in values.items():
            self._events.add_scalar(_tag(tag), value, number)

    def end(self, status: str, values: Values) -> None:
        """Close the file."""
        self._events.close()


class Table(RunTracker):
    """``metrics.csv`` in the run's folder: a line a round, a column a number; what was not measured stays empty."""

    def __init__(self, run: Tracked) -> None:
        self._path, self._columns, self._rows = run.folder / TABLE, ["round"], list(run.rows)
        self._write_all()

    def round(self, number: int, values: Values) -> None:
        """Write a line; a number that is new makes a new column."""
        self._rows.append({"round": number, **values})
        if set(values) <= set(self._columns):
            with self._path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self._columns, lineterminator="\n").writerow(self._rows[-1])
        else:
            self._write_all()

    def _write_all(self) -> None:
        self._columns = list(dict.fromkeys([*self._columns, *(key for row in self._rows for key in row)]))
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        write_file(self._path, text.getvalue().encode())


class MLflow(RunTracker):
    """A run of an MLflow experiment, with the settings as its parameters.

    tracking_uri: where MLflow keeps its runs; None: where MLflow does by itself.
    """

    needs = "mlflow"

    def __init__(self, run: Tracked, experiment: str = "fedmoe", tracking_uri: str | None = None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._metric, self._client = Metric, MlflowClient(tracking_uri)
        note = run.folder / MLFLOW_RUN
        if run.rows and note.is_file():  # a resume
            self._id = note.read_text(encoding="utf-8").strip()
            self._client.set_terminated(self._id, "RUNNING")
            return
        known = self._client.get_experiment_by_name(experiment)
        number = self._client.create_experiment(experiment) if known is None else known.experiment_id
        self._id = self._client.create_run(number, run_name=run.folder.name).info.run_id
        write_file(note, f"{self._id}\n".encode())
        parameters = [Param(key, str(value)[:500]) for key, value in run.flat_settings.items()]
        for at in range(0, len(parameters), MOST):
            self._client.log_batch(self._id, params=parameters[at : at + MOST])

    def round(self, number: int, values: Values) -> None:
        """Log the numbers as metrics of a step."""
        now = int(time.time() * 1000)
        metrics = [self._metric(_tag(key), value, now, number) for key, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def end(self, status: str, values: Values) -> None:
        """Log the figures of the end, and how the run ended."""
        for key, value in values.items():
            self._client.log_metric(self._id, _tag(key), value)
        words = {"completed": "FINISHED", "failed": "FAILED"}
        self._client.set_terminated(self._id, words.get(status, "KILLED"))


class WandB(RunTracker):
    """A run of Weights & Biases, kept in the run's folder; ``wandb sync`` uploads it, or ``mode="online"`` at once."""

    needs = "wandb"

    def __init__(self, run: Tracked, project: str = "fedmoe", mode: Any = "offline") -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=run.folder.name,
            id=run.folder.name,  # the same on a resume
            resume="allow",
            config=run.flat_settings,
            mode=mode,
            dir=str(run.folder),
            reinit="create_new",
            # Neither the terminal, whose lines name clients and files, nor code: settings and figures are the run.
            settings={"console": "off", "disable_code": True, "disable_git": True, "quiet": True},
        )

    def round(self, number: int, values: Values) -> None:
        """Log the numbers of a step."""
        self._run.log(dict(values), step=number)

    def end(self, status: str, values: Values) -> None:
        """Put the figures of the end into the summary."""
        self._run.summary.update(dict(values))
        self._run.finish(exit_code=int(status != "completed"))


TRACKERS: Kind[RunTracker] = Kind(
    "tracking",
    "tracking.NAME",
    RunTracker,  # type: ignore[type-abstract]  # the base is only asked for its subclasses
    {"tensorboard": TensorBoard, "csv": Table, "mlflow": MLflow, "wandb": WandB},
)


class Trackers:
    """All trackers of a run. note: shows a line. Raises FedMoEError that names a tracker that cannot begin."""

    def __init__(self, run: Tracked, note: Callable[[str], None]) -> None:
        check_trackers(run.settings)
        self._note, self._all = note, dict[str, RunTracker]()
        for name, arguments in run.settings.tracking.items():
            try:
                self._all[name] = TRACKERS.build(name, arguments, run=run)
            except FedMoEError:
                raise
            except Exception as error:  # each package has errors of its own
                raise FedMoEError(f"tracking {name}: {reason_of(error)}") from error

    def round(self, row: Mapping[str, Any]) -> None:
        """Hand on a round's row."""
        values = {key: value for key, value in row.items() if key != "round"}
        self._each(lambda tracker: tracker.round(row["round"], values))

    def end(self, result: Result) -> None:
        """Hand on the end of the run, once."""
        splits = {"validation": result.validation, "test": result.test, "new": result.new}
        found = {
            f"final/{split}/{prefix}{key}": float(value)
            for split, kinds in splits.items()
            for kind, prefix in (("personalised", ""), ("global", "global-"))
            for key, value in kinds.get(kind, {}).items()
            if value is not None and math.isfinite(value)
        }
        self._each(lambda tracker: tracker.end(result.status, found))
        self._all.clear()

    def _each(self, act: Callable[[RunTracker], None]) -> None:
        for name, tracker in list(self._all.items()):
            try:
                act(tracker)
            except Exception as error:  # each package has errors of its own, and none is worth a run
                del self._all[name]
                self._note(f"tracking {name} failed, and the run goes on without it: {reason_of(error)}")


def check_trackers(settings: Settings) -> None:
    """Raise FedMoEError for a tracker that is not known, lacks its package, or does not take its arguments."""
    for name, arguments in settings.tracking.items():
        needs = TRACKERS.find(name).needs
        if needs and find_spec(needs) is None:
            raise FedMoEError(f"tracking {name} needs the package {needs}: pip install 'fedmoe[{needs}]'")
        if faults := TRACKERS.faults(name, arguments, ("run",)):
            raise FedMoEError(f"tracking.{name}: {'; '.join(faults)}")


def row_of(record: RoundRecord) -> dict[str, Any]:
    """Return a round's numbers by flat names such as ``train/loss``, after the number of the round itself."""
    row: dict[str, Any] = {"round": record.round} | {f"train/{key}": value for key, value in record.train.items()}
    row |= {f"validation/{key}": value for key, value in (record.validation or {}).items()}
    row |= {f"round/{key}": getattr(record, key) for key in ("seconds", "bytes_down", "bytes_up", "clients")}
    if record.privacy:
        row["round/epsilon"] = record.privacy["epsilon"]
    row["round/failed"] = len(record.failed)
    return {key: value for key, value in row.items() if value is not None}


def _tag(key: str) -> str:
    """``@`` is no letter of a name, neither in TensorBoard nor in MLflow."""
    return key.replace("@", "_at_")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, value in tree.items():
        found += _leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else [(prefix + key, value)]
    return found
