"""Metrics of the lists that all users are shown: taken out of the clients' answers before a strategy sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from numpy.typing import NDArray

from fedmoe.errors import FailureKind
from fedmoe.metrics import LISTS, CatalogueMetric
from fedmoe_server.rounds.exchange import ClientIds, name_failures
from fedmoe_server.rounds.record import GLOBAL_PREFIX, Exchange, Metrics
from strategies.layers.replies import refused
from strategies.rules.row_wise import ITEM_TABLE


def metrics_of_lists(
    outcome: Exchange, stage: str, names: ClientIds, metrics: Mapping[str, CatalogueMetric], arrays: ArrayRecord
) -> tuple[Exchange, Metrics]:
    """Return an evaluation without the clients' lists, and the metrics of these.

    arrays: the model that was evaluated. A reply without lists, or with ids that the catalogue does not have, is
    refused.
    """
    num_items = arrays[ITEM_TABLE].shape[0] - 1
    length = max(metric.length for metric in metrics.values())
    replies: list[Message] = []
    found: dict[str, list[NDArray[np.int64]]] = {"": [], GLOBAL_PREFIX: []}
    bad = {}
    for reply in outcome.replies:
        if not reply.has_content():
            replies.append(reply)
            continue
        record: Mapping[str, Any] = reply.content.metric_records.get(LISTS, {})
        lists = {kind: _checked(record.get(f"{kind}items"), length, num_items) for kind in found}
        if any(each is None for each in lists.values()):
            reason = f"its lists are not of {length} items from 1 to {num_items}"
            bad[reply.metadata.src_node_id] = FailureKind.REFUSED, reason
            replies.append(refused(reply, reason))
            continue
        for kind, each in lists.items():
            assert each is not None
            found[kind].append(each)
        reply.content = RecordDict({name: each for name, each in reply.content.items() if name != LISTS})
        replies.append(reply)
    failures = (*outcome.failures, *name_failures(bad, stage, names))
    measured: Metrics = {
        f"{kind}{name}": float(metric.of(np.concatenate(each)[:, : metric.length], num_items))
        for kind, each in found.items()
        for name, metric in metrics.items()
        if each
    }
    return replace(outcome, replies=replies, failures=failures), measured


def _checked(items: object, length: int, num_items: int) -> NDArray[np.int64] | None:
    """Return ids as lists ``[users, length]``; None if they are none."""
    if not isinstance(items, Sequence) or not items or len(items) % length:
        return None
    ids = np.asarray(items)
    fits = ids.dtype.kind == "i" and ids.min() >= 1 and ids.max() <= num_items
    return ids.astype(np.int64).reshape(-1, length) if fits else None
