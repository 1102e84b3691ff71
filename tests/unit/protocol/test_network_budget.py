from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.network_budget import SMALLEST_FRAME_BYTES, NetworkBudget
from rayflow.protocol.pace import Portion

SHARES = st.integers(64 << 20, 1 << 30)
CHANNELS = st.integers(0, 512)


@given(SHARES, CHANNELS, CHANNELS)
def test_all_that_waits_is_within_the_network_share_whatever_the_channels(nbytes, inputs, outputs):
    budget = NetworkBudget(nbytes)
    assert budget.most_bytes(inputs, outputs) <= nbytes


@given(SHARES, st.integers(1, 512), st.integers(1, 512))
def test_neither_end_of_a_channel_can_be_made_to_hold_more_than_it_has(nbytes, inputs, outputs):
    budget = NetworkBudget(nbytes)
    share = budget.share_bytes(inputs, outputs)
    assert inputs * share <= budget.gate_bytes // 2
    assert outputs * share <= budget.sent_bytes
    # One frame under way while another is worked on.
    assert 2 * budget.frame_bytes(inputs, outputs) <= max(share, 2 * SMALLEST_FRAME_BYTES)
    assert outputs * budget.queue_bytes(outputs) <= budget.queued_bytes


def test_the_default_share_of_a_job_of_parallelism_4():
    budget = NetworkBudget(int(76.8 * 2**20))
    assert budget.share_bytes(4, 4) == 2 * (int(76.8 * 2**20) // 16) // 4
    assert budget.frame_bytes(4, 4) >> 10 == 1228


def test_frames_are_not_shredded():
    assert NetworkBudget(1024).frame_bytes(100, 100) == SMALLEST_FRAME_BYTES
    assert NetworkBudget(1024).share_bytes(1000, 1000) == 1


def test_a_share_of_nothing_is_refused():
    with pytest.raises(ProtocolViolation, match="at least 16"):
        NetworkBudget(15)


@given(
    st.integers(1, 1 << 20),
    st.integers(1, 100_000),
    st.lists(st.tuples(st.integers(1, 10**5), st.integers(0, 1 << 30))),
)
def test_a_portion_is_as_many_rows_as_the_last_ones_say(most_bytes, most_rows, reads):
    portion = Portion(most_bytes, most_rows)
    assert 1 <= portion.rows <= most_rows
    for rows, nbytes in reads:
        portion.took(rows, nbytes)
        assert 1 <= portion.rows <= most_rows
        assert portion.rows == 1 or portion.rows * nbytes / rows <= most_bytes * 1.000001


def test_where_the_size_of_a_row_is_known_no_small_portion_is_needed_first():
    assert Portion(1 << 20, 65_536, row_bytes=16).rows == 65_536
    assert Portion(1 << 20, 65_536, row_bytes=1024).rows == 1024
    assert Portion(1 << 20, 65_536).rows == 4096
