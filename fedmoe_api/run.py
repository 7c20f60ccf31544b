"""A run that is on disk, to be looked at and worked with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedmoe.errors import FedMoEError, nearest
from fedmoe.loading import settings_of_run
from fedmoe.settings import Settings
from fedmoe_server.rounds.halting import Callback

if TYPE_CHECKING:  # all of these import Flower, torch or Matplotlib
    from matplotlib.figure import Figure

    from fedmoe_client.learning.workbench import Workbench
    from fedmoe_server.rounds.checkpoints import Checkpoint
    from fedmoe_server.rounds.record import Result


@dataclass(frozen=True)
class Run:
    """A run by its folder. What is read from disk is read when it is asked for."""

    folder: Path

    @property
    def settings(self) -> Settings:
        """All settings, those included that were chosen for the run."""
        return settings_of_run(self.folder)

    @property
    def result(self) -> Result:
        """The end of the run: status, best round, and metrics as ``result.test["personalised"]["ndcg@10"]``."""
        from fedmoe_server.report.run_folder import read_result

        return read_result(self.folder)

    @property
    def metrics(self) -> Any:
        """A row for each round, by ``train/loss``, ``validation/ndcg@10`` ...: a DataFrame, or dicts without pandas."""
        from fedmoe_server.report.run_folder import METRICS, read_records
        from fedmoe_server.report.trackers import row_of

        return _table([row_of(record) for record in read_records(self.folder / METRICS)])

    def plot(self) -> Figure:
        """Return a figure of Matplotlib with loss, HR@10 and NDCG@10 over the rounds, and popularity beside them."""
        from fedmoe_server.report.plots import overview
        from fedmoe_server.report.run_folder import read_run

        return overview(read_run(self.folder))

    def recommend(self, user: str | int, top: int = 10) -> Any:
        """Return the best items for a user after its whole history, with titles, as a table like ``metrics``.

        They come of the run's best model, with what the user's client keeps to itself in it. Raises FedMoEError for a
        user whom the data set does not have.
        """
        from fedmoe_api.chosen import private_names, private_parameters
        from fedmoe_client.device.recommend import best_items

        bench, checkpoint = self._chosen
        histories = bench.dataset.interactions
        numbers = {name: number for number, name in enumerate(histories.user_ids.tolist())}
        if (number := numbers.get(str(user))) is None:
            raise FedMoEError(f"the data set has no user '{user}'{nearest(str(user), numbers)}")
        server = bench.take(names := private_names(bench, checkpoint))
        if checkpoint.clients is not None and names:
            kept = private_parameters(checkpoint.clients, histories.num_users, names, lambda client: client == number)
            bench.load(kept.get(number, {}))
        found = best_items(bench, histories.history(number), top)
        bench.load(server)
        return _table([{"rank": rank, **asdict(item)} for rank, item in enumerate(found, start=1)])

    def export(self, out: Path | str | None = None) -> Path:
        """Write the model for others to use into a new folder (None: ``export`` in the run's), and return that."""
        from fedmoe_server.report.export import export

        return export(self.folder, self.folder / "export" if out is None else Path(out)).folder

    def resume(self, callbacks: Sequence[Callback] = ()) -> Run:
        """Go on from the run's last checkpoint, to the numbers of a run that was never stopped."""
        from fedmoe_api.simulation import federate, planned

        return Run(federate(planned(self.settings), self.folder, callbacks))

    def __str__(self) -> str:
        from fedmoe_server.report.report import comparison

        status = self.result.status
        return f"{self.folder}: {status}" + (f"\n{comparison(self.folder)}" if status == "completed" else "")

    @cached_property
    def _chosen(self) -> tuple[Workbench, Checkpoint]:
        from data.registry import load_dataset
        from fedmoe_api.chosen import load_chosen

        settings = self.settings
        return load_chosen(self.folder, settings, load_dataset(settings))


def load(folder: Path | str) -> Run:
    """Return the run of a run folder. Raises FedMoEError if the folder holds none, or a damaged one."""
    from fedmoe_server.report.run_folder import read_run

    read_run(Path(folder))
    return Run(Path(folder))


def _table(rows: list[dict[str, Any]]) -> Any:
    """Return rows as a DataFrame of pandas where that is installed, else as they are."""
    if find_spec("pandas") is None:
        return rows
    from pandas import DataFrame

    return DataFrame(rows)
