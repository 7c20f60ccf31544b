"""What a run shows on the terminal: one live display there, one plain line per evaluation anywhere else."""

from __future__ import annotations

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from fedmoe_server.rounds.record import Metrics, RoundRecord, experts_of


class Progress:
    """One line per evaluation, or per round.

    Args:
        console: where lines go.
        total: number of rounds.
        every_round: whether rounds without an evaluation have a line too.
    """

    def __init__(self, console: Console, total: int, every_round: bool = False) -> None:
        self.console = console
        self.total = total
        self.every_round = every_round

    def round(self, record: RoundRecord, seconds_left: float | None) -> None:
        """Show a round that is done. seconds_left: an estimate, None while there is none."""
        if record.validation is not None or self.every_round:
            self.note(f"{evaluation_line(record, self.total)}  {_left(seconds_left)}".rstrip())

    def note(self, text: str) -> None:
        """Show a line that stays."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def stage(self, text: str) -> None:
        """Show what happens now, where that takes a while."""
        self.note(text)

    def stop(self) -> None:
        """Leave the terminal as it was."""


class LiveProgress(Progress):
    """A bar and a row of numbers that are redrawn in place; evaluations and failures stay above them."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        self._record: RoundRecord | None = None
        self._validation: Metrics = {}
        self._left: float | None = None
        self._stage = "waiting for the first round"
        # Twice a second is smooth enough, and costs the driver next to nothing.
        self._live = Live(console=console, refresh_per_second=2, transient=True, get_renderable=self._render)
        self._live.start()

    def round(self, record: RoundRecord, seconds_left: float | None) -> None:
        """Redraw with a round's numbers; an evaluation leaves a line above."""
        self._record, self._left, self._stage = record, seconds_left, ""
        if record.validation is not None:
            self._validation = record.validation
            self.note(evaluation_line(record, self.total))

    def stage(self, text: str) -> None:
        """Show what happens now in the place of the time left."""
        self._stage = text

    def stop(self) -> None:
        """Take the display away."""
        self._live.stop()

    def _render(self) -> Group:
        done = 0 if self._record is None else self._record.round
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(f"round {done}/{self.total}", style="bold"),
            ProgressBar(total=self.total, completed=done),
            Text(self._stage or _left(self._left), style="cyan"),
        )
        return Group(bar) if self._record is None else Group(bar, self._numbers(self._record))

    def _numbers(self, record: RoundRecord) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
        cells = {
            "loss": number(record.train.get("loss"), 4),
            "HR@10": number(self._validation.get("hr@10"), 4),
            "NDCG@10": number(self._validation.get("ndcg@10"), 4),
            "gate": number(record.train.get("gate"), 3),
            **{name: number(record.train[f"router-{name}"], 2) for name in experts_of(record.train)},
            "clients": str(record.clients),
            "failed": str(len(record.failed)),
            "s/round": number(record.seconds, 1),
        }
        for title, value in cells.items():
            failing = title == "failed" and value != "0"
            table.add_column(title, justify="right", no_wrap=True, style="bold red" if failing else None)
        table.add_row(*cells.values())
        return table


def progress_for(console: Console, total: int, every_round: bool = False) -> Progress:
    """Return a live display for a terminal, plain lines for a file or a pipe."""
    return LiveProgress(console, total) if console.is_terminal else Progress(console, total, every_round)


def evaluation_line(record: RoundRecord, total: int) -> str:
    """Return one line of a round: loss, ranking where there was an evaluation, gate, router, clients."""
    train, validation = record.train, record.validation
    parts = [f"round {record.round:>{len(str(total))}}/{total}", f"loss {number(train.get('loss'), 4)}"]
    if validation is not None:
        parts.append(f"HR@10 {number(validation.get('hr@10'), 4)}")
        parts.append(f"NDCG@10 {number(validation.get('ndcg@10'), 4)}{' best' if record.best else '     '}")
    if train.get("gate") is not None:
        parts.append(f"gate {number(train['gate'], 3)}")
    if experts := experts_of(train):
        parts.append("router " + "/".join(number(train[f"router-{name}"], 2) for name in experts))
    parts.append(f"{record.clients} clients")
    if record.failed:
        parts.append(f"{len(record.failed)} failed")
    return "  ".join(parts)


def number(value: float | None, digits: int) -> str:
    """Return a number with fixed digits, a dash where there is none."""
    return "-" if value is None else f"{value:.{digits}f}"


def duration(seconds: float) -> str:
    """Return seconds as people say it: ``42 s``, ``7 min 05 s``, ``3 h 20 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _left(seconds: float | None) -> str:
    """Return the time left in words."""
    return f"about {duration(seconds)} left" if seconds else ""
