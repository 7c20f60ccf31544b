"""Strategies of one's own that ask more of clients than a sum answers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg


class Asks(FedAvg):
    """Lets clients train while it configures a round."""

    needs_every_reply = False

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Any:
        """Ask once more."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        list(grid.send_and_receive(messages[:1]))
        return messages


class Parts(FedAvg):
    """Sends one client another config."""

    needs_every_reply = False

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Change one message's config."""
        messages = list(super().configure_train(server_round, arrays, config, grid))
        other = config.copy()
        other["more"] = 1
        content = messages[0].content.__class__({**dict(messages[0].content.items()), "config": other})
        messages[0].content = content
        return messages
