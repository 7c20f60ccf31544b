"""The link in user space: its arithmetic, and the real thing where that is allowed."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.echo import checksum, request
from benchmarks.lossy_link import Wire
from benchmarks.namespaces import namespace, resent_segments, tell, why_not
from benchmarks.slow_links import SKIPPED, lost, main, told


def test_a_frame_arrives_after_its_delay() -> None:
    wire = Wire(delay=0.1, loss=0.0, seed=0)
    assert wire.wait(0.0) is None
    wire.put(b"first", 1.0)
    wire.put(b"second", 1.05)
    assert wire.wait(1.0) == pytest.approx(0.1)
    assert wire.take(1.09) == []
    assert wire.take(1.12) == [b"first"]
    assert wire.wait(1.12) == pytest.approx(0.03)
    assert wire.wait(9.0) == 0.0
    assert wire.take(9.0) == [b"second"]
    assert wire.take(9.0) == []
    assert (wire.carried, wire.lost) == (2, 0)


def lost_frames(seed: int, loss: float = 0.02, count: int = 50_000) -> list[int]:
    wire = Wire(0.0, loss, seed)
    for number in range(count):
        wire.put(number.to_bytes(4), 0.0)
    arrived = {int.from_bytes(frame) for frame in wire.take(0.0)}
    assert (wire.carried, wire.lost) == (len(arrived), count - len(arrived))
    return [number for number in range(count) if number not in arrived]


def test_a_share_of_the_frames_is_lost_and_the_seed_says_which() -> None:
    assert len(lost_frames(1)) == pytest.approx(1000, abs=150)  # five standard deviations
    assert lost_frames(1) == lost_frames(1)
    assert lost_frames(1) != lost_frames(2)
    assert lost_frames(1, loss=0.0) == []
    assert len(lost_frames(1, loss=1.0)) == 50_000


@given(st.lists(st.floats(0, 10), max_size=30), st.floats(0, 1), st.integers(0, 9))
def test_order_is_kept_and_no_frame_is_early_or_forgotten(steps: list[float], loss: float, seed: int) -> None:
    wire, now, due = Wire(0.5, loss, seed), 0.0, []
    for number, step in enumerate(steps):
        now += step
        before = wire.carried
        wire.put(bytes([number]), now)
        if wire.carried > before:
            due.append((now + 0.5, bytes([number])))
    assert wire.carried + wire.lost == len(steps)
    for moment in (now / 2, now, now + 1):
        assert wire.take(moment) == [frame for at, frame in due if at <= moment]
        due = [(at, frame) for at, frame in due if at > moment]
    assert due == []


def test_an_echo_request_by_hand() -> None:
    assert request(1, 2) == bytes([8, 0, 0xF7, 0xFC, 0, 1, 0, 2])  # 0x0800 + 1 + 2 = 0x0803, complemented
    assert checksum(request(0xFFFF, 0xFFFF)) == 0


def test_retransmissions_are_found_by_name() -> None:
    text = "Ip: A B\nIp: 1 2\nTcp: OutSegs RetransSegs\nTcp: 50 7\nUdp: RetransSegs\nUdp: 9\n"
    assert resent_segments(text) == 7


REASON = why_not("switch")


@pytest.mark.skipif(bool(REASON), reason=REASON)
def test_a_namespace_behind_a_slow_link() -> None:
    with namespace(98, "switch") as space:
        words = [*space.command, sys.executable, "-m", "benchmarks.echo", space.outside, "--count", "40"]
        found = json.loads(tell(*words))
        assert 30 <= found["answered"] <= 40
        assert found["least"] >= 200.0
        assert sum(wire.carried + wire.lost for wire in space.wires) >= 40 + found["answered"]
        assert "round trip 2" in told(space, count=20)
        assert len(lost(space)) == 2
        assert space.resent() == 0  # nothing has spoken TCP
    assert "fedmoe-98" not in tell("ip", "netns", "list")
    assert "fmo98" not in tell("ip", "-brief", "link", "show", "type", "tun")


def test_without_rights_it_is_skipped(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("benchmarks.namespaces.os.geteuid", lambda: 1000)
    monkeypatch.setattr("benchmarks.namespaces.shutil.which", lambda tool: tool)
    assert main([]) == SKIPPED
    said = capsys.readouterr().out
    assert "netem: not root" in said
    assert "switch: not root" in said
    monkeypatch.setattr("benchmarks.namespaces.shutil.which", lambda tool: None)
    assert why_not("netem") == "there is no 'ip'"
