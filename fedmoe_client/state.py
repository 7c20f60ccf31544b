"""A client's private parameters, kept between rounds in the Flower context and sent nowhere."""

from __future__ import annotations

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

_RECORD = "private"


class PrivateParameters:
    """The client's own value of each parameter that is private, by name."""

    def __init__(self, state: RecordDict) -> None:
        """state: ``context.state``, which Flower keeps for this client."""
        self._state = state

    def load(self) -> dict[str, NDArray[np.float32]]:
        """Return the kept arrays; empty before the client first trained with private parameters."""
        record = self._state.array_records.get(_RECORD)
        return {} if record is None else {name: array.numpy() for name, array in record.items()}

    def save(self, arrays: dict[str, NDArray[np.float32]]) -> None:
        """Keep these arrays and no others: what has become shared is the server's again."""
        if arrays:
            self._state[_RECORD] = packed(arrays)
        else:
            self._state.pop(_RECORD, None)


def packed(arrays: dict[str, NDArray[np.float32]]) -> ArrayRecord:
    """Return named arrays as the record that Flower keeps or sends, in their order."""
    record = ArrayRecord()  # filled one by one: made from a dict it would copy each array
    for name, array in arrays.items():
        record[name] = Array(array)
    return record
