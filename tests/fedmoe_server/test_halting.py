"""A callback, or Ctrl-C, ends a run before its time."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedmoe_server.rounds.halting import Halt, Interrupted, Paused, halting
from fedmoe_server.rounds.record import LoopState, RoundRecord

RECORD = RoundRecord(1)


def test_a_callback_that_asks_to_stop_gets_the_best_model_judged(fakes: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    loop = fakes.make_loop(fakes.FakeGrid(), tmp_path, fakes.make_settings())
    stop = [lambda record: seen.append(record.round), lambda record: Halt.STOP if record.round == 3 else [1, 2]]
    result = replace(loop, callbacks=stop).run(LoopState(fakes.model_arrays()))
    assert seen == [1, 2, 3]
    assert (result.status, result.stopped_early, result.rounds, result.best_round) == ("completed", True, 3, 2)
    assert (tmp_path / "checkpoints" / "round-000003").is_dir()


def test_a_callback_that_asks_for_a_pause_gets_a_checkpoint_and_no_result(fakes: Any, tmp_path: Path) -> None:
    loop = fakes.make_loop(fakes.FakeGrid(), tmp_path, fakes.make_settings())
    with pytest.raises(Paused, match="paused after round 1") as paused:
        replace(loop, callbacks=[lambda _: Halt.STOP, lambda _: Halt.PAUSE]).run(LoopState(fakes.model_arrays()))
    assert paused.type is Paused
    assert (tmp_path / "checkpoints" / "round-000001").is_dir()


def test_ctrl_c_asks_for_a_pause_and_the_second_one_does_not_ask() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted), halting([], interruptible=True) as asked:
        assert asked(RECORD) is None
        signal.raise_signal(signal.SIGINT)
        assert asked(RECORD) is Halt.PAUSE
        raise Paused
    assert signal.getsignal(signal.SIGINT) is before
    with pytest.raises(KeyboardInterrupt), halting([], interruptible=True):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), halting([], interruptible=False):
        signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_what_a_callback_raises_comes_out() -> None:
    def broken(record: RoundRecord) -> None:
        raise LookupError(record.round)

    with pytest.raises(LookupError), halting([broken], interruptible=True) as asked:
        asked(RECORD)
