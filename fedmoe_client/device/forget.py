"""``python -m fedmoe_client forget``: erase what a client keeps: private parameters, memory, number, global model.

The user's history is the user's own file, and stays. A client that takes part again starts from the server's values;
one that had drawn its number draws another, so that it cannot be told to be the same.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedmoe.errors import FedMoEError
from fedmoe_client.device.resident_call import stop
from fedmoe_client.store.folder import ClientStore


def main(words: Sequence[str]) -> int:
    """Erase a state folder's content; return the exit status: 0 done, 2 something for the user to put right."""
    parser = argparse.ArgumentParser("python -m fedmoe_client forget", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--state-dir", type=Path, required=True, help="the client's state folder")
    given = parser.parse_args(list(words))
    try:
        erased = forget(given.state_dir)
    except FedMoEError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"erased {', '.join(erased) or 'nothing: there was nothing'} in {given.state_dir}")
    return 0


def forget(state_dir: Path) -> list[str]:
    """Erase what is in a state folder and return the files' names.

    A training that is under way is ended with the resident process, which holds private parameters in its memory.

    Raises FedMoEError if the folder does not exist, or another process keeps it busy.
    """
    store = ClientStore.existing(state_dir)
    stop(state_dir)
    with store.lock(seconds=60.0):
        return store.erase()
