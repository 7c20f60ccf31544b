"""What a run shows on the terminal: one live display there, one plain line per evaluation anywhere else."""

from __future__ import annotations

import logging

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar

from fedmoe_server.rounds.record import RoundRecord, experts_of


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
        logging.getLogger(__name__).info(text)  # of a deployment: with the run's number

    def stage(self, text: str) -> None:
        """Show what happens now, where that takes a while."""
        self.note(text)

    def stop(self) -> None:
        """Leave the terminal as it was."""


class LiveProgress(Progress):
    """A bar with the latest round's loss, redrawn in place; evaluations and failures stay above it."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        numbers, left = TextColumn("{task.description}"), TextColumn("[cyan]{task.fields[left]}")
        # Twice a second is smooth enough, and costs the driver next to nothing.
        self._bar = Bar(numbers, BarColumn(), left, console=console, refresh_per_second=2, transient=True)
        self._task = self._bar.add_task("waiting for the first round", total=total, left="")
        self._bar.start()

    def round(self, record: RoundRecord, seconds_left: float | None) -> None:
        """Redraw with a round's numbers; an evaluation leaves a line above."""
        now = f"round {record.round}/{self.total}  loss {number(record.train.get('loss'), 4)}"
        self._bar.update(self._task, completed=record.round, description=now, left=_left(seconds_left))
        if record.validation is not None:
            self.note(evaluation_line(record, self.total))

    def stage(self, text: str) -> None:
        """Show what happens now in the place of the time left."""
        self._bar.update(self._task, left=text)

    def stop(self) -> None:
        """Take the display away."""
        self._bar.stop()


class NotebookProgress(Progress):
    """A bar in a cell's output, redrawn in place; evaluations and failures stay below it."""

    def __init__(self, console: Console, total: int) -> None:
        super().__init__(console, total)
        from IPython.display import HTML, display  # where there is a notebook there is IPython

        self._html, self._now = HTML, "waiting for the first round"
        self._handle = display(HTML(self._now), display_id=True)

    def round(self, record: RoundRecord, seconds_left: float | None) -> None:
        """Redraw with a round's numbers; an evaluation leaves a line below."""
        self._now = (
            f'<progress value="{record.round}" max="{self.total}"></progress> round {record.round}/{self.total}, '
            f"loss {number(record.train.get('loss'), 4)}"
        )
        self._show(_left(seconds_left))
        super().round(record, None)

    def stage(self, text: str) -> None:
        """Show what happens now beside the bar."""
        self._show(text)

    def stop(self) -> None:
        """Leave the bar as it is, without the time left."""
        self._show("")

    def _show(self, more: str) -> None:
        self._handle.update(self._html(f"{self._now} {more}"))


def progress_for(console: Console, total: int, every_round: bool = False) -> Progress:
    """Return a live display for a terminal or a notebook, plain lines for a file or a pipe."""
    if console.is_jupyter:
        return NotebookProgress(console, total)
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
