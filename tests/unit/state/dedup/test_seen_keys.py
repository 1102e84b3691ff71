"""Keys with times: memory is given back as they are forgotten."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from rayflow.state.dedup.seen_keys import SeenKeys
from rayflow.state.dedup.times import TimeToLive

SCHEMA = pa.schema([("k", pa.int64())])
TTL_NS = 1_000


def keys(begin: int, end: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array(np.arange(begin, end))], schema=SCHEMA)


def test_state_follows_what_lives_though_nobody_asks_it_to_expire() -> None:
    seen = SeenKeys(SCHEMA, TimeToLive(TTL_NS))
    sizes = []
    for step in range(200):
        # A thousand new keys every tenth of the time to live: 10,000 live at a time.
        clock = step * TTL_NS // 10
        batch = keys(step * 1000, (step + 1) * 1000)
        assert len(seen.first(batch, np.full(1000, clock), clock)) == 1000
        sizes.append(len(seen))
    assert 10_000 <= sizes[-1] <= 15_000
    assert max(sizes) <= 15_000


def test_after_a_burst_its_memory_is_given_back() -> None:
    seen = SeenKeys(SCHEMA, TimeToLive(TTL_NS))
    for at in range(0, 400_000, 50_000):
        seen.first(keys(at, at + 50_000), np.zeros(50_000, np.int64), 0)
    full = seen.nbytes
    seen.first(keys(-1000, 0), np.full(1000, TTL_NS - 1), TTL_NS - 1)
    seen.expire(TTL_NS)
    assert len(seen) == 1000
    assert seen.nbytes < full / 20
    again = seen.first(keys(-2000, 10), np.full(2010, TTL_NS), TTL_NS)
    assert again.tolist() == [*range(1000), *range(2000, 2010)]


def test_without_a_time_to_live_nothing_is_forgotten() -> None:
    seen = SeenKeys(SCHEMA, None)
    assert seen.first(keys(0, 1000), None, 0).tolist() == list(range(1000))
    seen.expire(10**18)
    assert seen.first(keys(500, 1500), None, 10**18).tolist() == list(range(500, 1000))
