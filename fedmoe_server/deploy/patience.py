"""How long a round of a deployment waits for its last clients: as long as the others took, and not for the deadline."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from statistics import median

from flwr.app import Message
from flwr.serverapp import Grid

POLL = 3.0  # seconds between two looks for replies at most, as Flower's own grid has it
SHORTEST_POLL = 0.2  # at least; in between a quarter of the time that has passed, for the short phases of a secure sum


class PatientGrid:
    """A grid whose ``send_and_receive`` does not wait until the deadline for the few that stay silent.

    Once all but a quarter of the clients (at least one) have answered, after m seconds in the median, the rest have
    ``rest_seconds`` more, and in any case 2 m from the start. Everything else is the grid's own.
    """

    def __init__(self, grid: Grid, rest_seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        """rest_seconds: 0 is to wait until the deadline; clock: seconds."""
        self._grid = grid
        self._rest = rest_seconds or math.inf
        self._clock = clock

    def __getattr__(self, name: str) -> object:
        """Return what the grid itself has."""
        return getattr(self._grid, name)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Return the replies that came in time, in the order in which they came."""
        open_ids = set(self._grid.push_messages(messages))
        enough = len(open_ids) - max(1, len(open_ids) // 4)
        started = self._clock()
        end = started + (math.inf if timeout is None else timeout)
        replies: list[Message] = []
        took: list[float] = []
        while open_ids and self._clock() < end:
            found = list(self._grid.pull_messages(open_ids))
            seconds = self._clock() - started
            replies += found
            open_ids -= {reply.metadata.reply_to_message_id for reply in found}
            had_enough = len(took) >= enough
            took += [seconds for reply in found if reply.has_content()]  # an error comes early and says nothing
            if 0 < enough <= len(took) and not had_enough:
                end = min(end, started + max(seconds + self._rest, 2 * median(took)))
            if open_ids:
                pause = min(POLL, max(SHORTEST_POLL, seconds / 4))
                time.sleep(min(pause, max(0.0, end - self._clock())))
        return replies
