from __future__ import annotations

import errno

import pytest

from rayflow.model.errors import DataError, StorageError, UserFunctionError
from rayflow.runtime.faults import fault_of


def failed(cause: BaseException) -> UserFunctionError:
    error = UserFunctionError("map", "it failed", "job.py:3", "rows")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "cause", [ValueError("bad"), FileNotFoundError(errno.ENOENT, "gone"), OSError("Corrupt snappy data")]
)
def test_what_lies_in_code_or_data_is_met_again(cause: BaseException) -> None:
    assert fault_of(failed(cause)) == "map: it failed"


@pytest.mark.parametrize(
    "cause",
    [
        ConnectionResetError("reset"),
        TimeoutError(),
        OSError(errno.ENOSPC, "full"),
        OSError("AWS Error UNKNOWN"),
    ],
)
def test_what_lies_outside_may_pass(cause: BaseException) -> None:
    assert fault_of(failed(cause)) is None
    data = DataError("cannot read x")
    data.__cause__ = cause
    assert fault_of(failed(data)) is None


def test_only_users_failures_are_faults() -> None:
    assert fault_of(StorageError("no storage")) is None
