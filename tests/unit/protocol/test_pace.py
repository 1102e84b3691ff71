from __future__ import annotations

import pytest

from rayflow.protocol.pace import Pace


def test_fast_calls_soon_get_all_rows() -> None:
    pace = Pace(200, 65_536)
    for _ in range(8):
        pace.worked(pace.rows, 1)
    assert pace.rows == 65_536


@pytest.mark.parametrize("ms_per_row", [1, 7, 300])
def test_slow_calls_get_as_many_rows_as_are_done_in_time(ms_per_row: int) -> None:
    pace = Pace(200)
    for _ in range(10):
        pace.worked(pace.rows, pace.rows * ms_per_row)
    assert pace.rows == 1 or 50 <= pace.rows * ms_per_row <= 200


def test_without_a_bound_there_is_none() -> None:
    pace = Pace(None, 100)
    pace.worked(100, 1_000_000)
    assert pace.rows == 100
