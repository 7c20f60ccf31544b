"""Kinds of failure, and the line that says why."""

from __future__ import annotations

import pytest
from flwr.common.constant import ErrorCode

from fedmoe.errors import FailureKind, FedMoEError, TellableError, one_line, reason_of, told_reason


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (ErrorCode.UNKNOWN, FailureKind.RAISED),
        (ErrorCode.CLIENT_APP_RAISED_EXCEPTION, FailureKind.RAISED),
        (ErrorCode.MESSAGE_UNAVAILABLE, FailureKind.NO_REPLY),
        (ErrorCode.REPLY_MESSAGE_UNAVAILABLE, FailureKind.NO_REPLY),
        (ErrorCode.NODE_UNAVAILABLE, FailureKind.LOST),
        (ErrorCode.CLIENT_APP_CRASHED, FailureKind.LOST),
        *((int(kind), kind) for kind in FailureKind),
        (999, FailureKind.RAISED),
    ],
)
def test_every_code_has_a_kind(code: int, kind: FailureKind) -> None:
    assert FailureKind.of_code(code) is kind


def test_a_reason_is_one_short_line() -> None:
    assert reason_of(ValueError("bad\n luck")) == "ValueError: bad luck"
    assert reason_of(FedMoEError("the catalogue differs")) == "the catalogue differs"
    assert reason_of(KeyboardInterrupt()) == "KeyboardInterrupt"
    assert one_line("x" * 400) == "x" * 297 + "..."


def test_a_real_client_tells_no_more_than_may_leave_the_device() -> None:
    planted = "/home/alice/history.txt, line 7: item 'secret film' is unknown"
    for error in (FedMoEError(planted), ValueError(planted), FileNotFoundError(2, planted, "/home/alice")):
        assert told_reason(error) == f"{type(error).__name__}: see the client's own log"
    assert told_reason(TellableError("the model version differs")) == "the model version differs"
