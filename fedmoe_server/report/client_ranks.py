"""Each client's rank of its held-out item in the final evaluation: who gained and who lost by personalisation."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from math import inf
from pathlib import Path
from typing import TypeGuard

from flwr.app import Message, MetricRecord

from fedmoe.errors import FedMoEError
from fedmoe.files import write_file

CLIENTS = "clients.csv"


@dataclass(frozen=True)
class ClientRank:
    """Ranks, from 1, of one client's held-out item.

    Attributes:
        client: its client id.
        split: ``validation`` or ``test``.
        personal: with the client's private parameters.
        common: with the server's copy of everything.
    """

    client: int
    split: str
    personal: float
    common: float


def ranks_of(split: str, replies: Iterable[Message], client_ids: Mapping[int, int]) -> list[ClientRank]:
    """Return the ranks that the replies to an evaluation report, by client; what cannot be a rank is left out."""
    found = []
    for reply in replies:
        records = list(reply.content.metric_records.values()) if reply.has_content() else []
        metrics = records[0] if records else MetricRecord()
        client = client_ids.get(reply.metadata.src_node_id)
        personal, common = metrics.get("rank"), metrics.get("global-rank")
        if client is not None and _is_rank(personal) and _is_rank(common):
            found.append(ClientRank(client, split, personal, common))
    return sorted(found, key=lambda rank: rank.client)


def _is_rank(value: object) -> TypeGuard[float]:
    """Whether a value from a client can be a rank."""
    return isinstance(value, float) and 1.0 <= value < inf


def write_client_ranks(run_dir: Path, ranks: Sequence[ClientRank]) -> None:
    """Write ``clients.csv``: a line for each client and split."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([field.name for field in fields(ClientRank)])
    writer.writerows(astuple(rank) for rank in ranks)
    write_file(run_dir / CLIENTS, text.getvalue().encode())


def read_client_ranks(run_dir: Path) -> list[ClientRank]:
    """Return what ``clients.csv`` holds, nothing if it is not there; raises FedMoEError if it is damaged."""
    path = run_dir / CLIENTS
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            found = [
                ClientRank(int(row["client"]), row["split"], float(row["personal"]), float(row["common"]))
                for row in csv.DictReader(file)
            ]
        if wrong := [rank for rank in found if not (_is_rank(rank.personal) and _is_rank(rank.common))]:
            raise ValueError(f"client {wrong[0].client} has a rank below 1 or none")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FedMoEError(f"{path} cannot be read ({error}): delete it, the report does without") from error
