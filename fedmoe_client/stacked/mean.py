"""The weighted mean of stacked clients' updates: what the server would make of their replies, without the replies.

``server + sum_c n_c (x_c - server) / sum_c n_c``, with n_c the clients' weights. Summing differences keeps
the precision of float32 where it matters.

Shapes: C clients, V items, R touched rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedmoe.wire import packed_size
from fedmoe_client.learning.sub_catalogue import ROWS, TABLE, travels_as_rows
from fedmoe_client.stacked.training import Trained


class UpdateSum:
    """Sums the shared parameters and the metrics of stacks of clients."""

    def __init__(self, server: Mapping[str, Tensor], rows_travel: bool) -> None:
        """server: the shared parameters that the clients started from; rows_travel: whether touched rows are sent
        alone where that is smaller, or always the whole item table."""
        self._server = server
        self._rows_travel = rows_travel
        self._total = {name: torch.zeros_like(each) for name, each in server.items()}
        self._touched = torch.zeros(len(server[TABLE]), dtype=torch.bool, device=server[TABLE].device)
        self._metrics: dict[str, float] = {}
        self._sizes: dict[int, int] = {}  # rows of the item table -> bytes of a client's arrays
        self.weight = 0
        self.clients = 0
        self.bytes = 0

    def add(self, trained: Trained) -> None:
        """Add the clients of a stack."""
        weights_given = [member.steps.weight for member in trained.members]
        weights = torch.tensor(weights_given, dtype=torch.float32, device=trained.touched.device)
        for name, server in self._server.items():
            parameters = trained.parameters[name]
            if name == TABLE:
                ids = trained.touched.flatten()
                moved = (parameters - server[trained.touched]) * weights.view(-1, 1, 1)
                self._total[name].index_add_(0, ids, moved.flatten(0, 1))
                self._touched[ids] = True
            else:
                moved = (parameters - server).view(len(weights), -1)
                self._total[name] += (weights @ moved).view(server.shape)
        for name, values in trained.metrics.items():
            self._metrics[name] = self._metrics.get(name, 0.0) + float(values @ weights)
        self.weight += sum(weights_given)
        self.clients += len(weights)
        self.bytes += self._bytes_of_replies(trained.touched)

    def mean(self) -> dict[str, NDArray[Any]]:
        """Return the mean by name; of the item table the rows that any client touched, where that is smaller."""
        means = {
            name: (server + self._total[name] / self.weight).cpu().numpy() for name, server in self._server.items()
        }
        ids = np.flatnonzero(self._touched.cpu().numpy())
        if self._rows_travel and travels_as_rows(means[TABLE], ids):
            ids = ids[ids > 0]
            return means | {TABLE: means[TABLE][ids], ROWS: ids}
        return means

    def metrics(self) -> dict[str, float]:
        """Return the means of the clients' numbers."""
        return {name: total / self.weight for name, total in self._metrics.items()}

    def _bytes_of_replies(self, touched: Tensor) -> int:
        """Return the bytes of the arrays that the clients of a stack would have sent, one by one."""
        return sum(self._bytes_of_reply(rows) for rows in (touched > 0).sum(dim=1).tolist())

    def _bytes_of_reply(self, rows: int) -> int:
        """Return the bytes of the arrays of a client that has touched so many rows of the item table."""
        if rows not in self._sizes:
            table = self._server[TABLE]
            layout: dict[str, tuple[np.dtype[Any], tuple[int, ...]]]
            layout = {name: (np.dtype(np.float32), tuple(each.shape)) for name, each in self._server.items()}
            if self._rows_travel and (table[0].nbytes + 8) * rows < table.nbytes:
                layout[TABLE] = np.dtype(np.float32), (rows, *table.shape[1:])
                layout[ROWS] = np.dtype(np.int64), (rows,)
            self._sizes[rows] = packed_size([(name, *about) for name, about in layout.items()])
        return self._sizes[rows]
