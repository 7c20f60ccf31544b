"""Ids, chunks and shared records, without Ray."""

from __future__ import annotations

import pytest
import simulation_apps as apps
from flwr.app import RecordDict

from simulation.dispatch import (
    CHUNK_BYTES,
    CHUNK_MESSAGES,
    MERGED_MESSAGES,
    STACKED_MESSAGES,
    ClientIds,
    batches,
    chunk_size,
    shared_records,
)
from simulation.flower_runtime import begin_run


def test_a_million_ids_need_no_table() -> None:
    ids = ClientIds(1_000_000)
    assert (len(ids), ids[2], ids[1_000_001], next(iter(ids))) == (1_000_000, 0, 999_999, 2)
    assert list(ClientIds(3).values()) == [0, 1, 2] and 2 in ClientIds(3).values()
    for nobody in (0, 1, 1_000_002):
        with pytest.raises(KeyError):
            ids[nobody]
    assert ids.clients == range(1_000_000)
    assert [ids[ids.node_of(client)] for client in (0, 7, 999_999)] == [0, 7, 999_999]


@pytest.mark.parametrize(
    ("messages", "content_bytes", "size"),
    [
        (1, 1, 1),
        (8, 1, 1),
        (9, 1, 2),
        (100, 1, 13),
        (10_000, 1, CHUNK_MESSAGES),
        (10_000, CHUNK_BYTES // 3, 3),
        (10_000, CHUNK_BYTES * 3, 1),
    ],
)
def test_chunk_size(messages: int, content_bytes: int, size: int) -> None:
    assert chunk_size(messages, content_bytes) == size


@pytest.mark.parametrize(
    ("messages", "reply_bytes", "stacked", "size"),
    [
        (1, None, False, 1),
        (MERGED_MESSAGES, None, False, MERGED_MESSAGES),
        (MERGED_MESSAGES + 1, None, False, MERGED_MESSAGES // 2 + 1),
        (STACKED_MESSAGES, None, True, STACKED_MESSAGES),
        (302, None, True, 151),
        (302, 1, True, 151),
        (302, CHUNK_BYTES // 100, True, 76),
        (302, CHUNK_BYTES * 2, True, 1),
        (3, 0, False, 1),
    ],
)
def test_chunk_size_of_merged_replies_and_stacks(
    messages: int, reply_bytes: int | None, stacked: bool, size: int
) -> None:
    assert chunk_size(messages, reply_bytes, stacked) == size


def test_batches() -> None:
    begin_run()
    requests = apps.requests(list(range(2, 9)))
    cut = list(batches(requests, 3))
    assert [len(part) for part in cut] == [3, 3, 1]
    assert [request for part in cut for request in part] == requests


def test_shared_records_are_those_of_several_contents() -> None:
    one, two, three = apps.start_arrays(), apps.start_arrays(), apps.start_arrays()
    contents = [RecordDict({"a": one, "b": two}), RecordDict({"c": one}), RecordDict({"a": three}), RecordDict()]
    assert list(shared_records(contents)) == [id(one)], "equal is not the same"
