"""Which keys rows go to, as a sender sees it: exact where that is cheap, a fair sample beyond."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.hashing import hash_columns, key_groups
from rayflow.batch.heavy_hitters import HeavyHitter, HeavyHitters
from rayflow.batch.key_traffic import SPAN_MS, KeyTraffic
from rayflow.batch.partition import HashPartitioner

GROUPS = 16


def batch_of(keys: Any, **columns: Any) -> pa.RecordBatch:
    return pa.record_batch({"key": pa.array(keys), **columns})


def hottest(traffic: KeyTraffic) -> list[HeavyHitter]:
    return HeavyHitters.from_data(traffic.statistics()["hot_keys"]).top()


def share(traffic: KeyTraffic, key: str) -> float:
    found = HeavyHitters.from_data(traffic.statistics()["hot_keys"])
    return sum(entry.estimate for entry in found.top() if entry.key == key) / found.total


@pytest.mark.parametrize("consumers", [1, 4])
def test_a_slow_stream_is_counted_exactly(consumers: int) -> None:
    traffic = KeyTraffic(["key"], GROUPS)
    partitioner = HashPartitioner(["key"], GROUPS, consumers, traffic)
    for _ in range(3):
        partitioner.split(batch_of([1, 1, 1, 2, 2, 3]))
    assert [(entry.key, entry.estimate, entry.error) for entry in hottest(traffic)] == [
        ("1", 9, 0),
        ("2", 6, 0),
        ("3", 3, 0),
    ]
    counted = dict(traffic.statistics()["key_groups"])
    groups = key_groups(batch_of([1, 1, 1, 2, 2, 3]), ["key"], GROUPS).tolist()
    assert counted == {group: 3.0 * groups.count(group) for group in groups}


def test_what_is_sent_where_does_not_depend_on_being_watched() -> None:
    batch = batch_of(np.arange(10_000) % 77)
    plain = HashPartitioner(["key"], GROUPS, 3).split(batch)
    assert HashPartitioner(["key"], GROUPS, 3, KeyTraffic(["key"], GROUPS)).split(batch) == plain


def test_a_fast_skewed_stream_is_estimated_from_few_rows() -> None:
    traffic = KeyTraffic(["key"], GROUPS)
    rng = np.random.default_rng(5)
    exact = np.zeros(GROUPS)
    for _ in range(40):
        batch = batch_of(np.where(rng.random(50_000) < 0.3, 7, rng.integers(0, 1 << 40, 50_000)))
        exact += np.bincount(key_groups(batch, ["key"], GROUPS), minlength=GROUPS)
        traffic.observe(batch, hash_columns(batch, ["key"]))
    assert traffic._stride >= 32
    assert share(traffic, "7") == pytest.approx(0.3, abs=0.02)
    estimated = np.zeros(GROUPS)
    for group, rows in traffic.statistics()["key_groups"]:
        estimated[group] = rows
    assert estimated.sum() == pytest.approx(exact.sum(), rel=0.01)
    np.testing.assert_allclose(estimated / exact.sum(), exact / exact.sum(), atol=0.01)


@pytest.mark.parametrize("period", [61, 64, 128, 1_000])
def test_keys_with_a_period_of_their_own_do_not_meet_that_of_the_sample(period: int) -> None:
    traffic = KeyTraffic(["key"], GROUPS)
    for start in range(0, 2_000_000, 50_000):
        batch = batch_of(np.arange(start, start + 50_000) % period)
        traffic.observe(batch, hash_columns(batch, ["key"]))
    entries = hottest(traffic)
    total = HeavyHitters.from_data(traffic.statistics()["hot_keys"]).total
    assert entries[0].guaranteed / total < 2.5 / period + 0.002


def test_a_hot_key_that_changes_is_seen_within_two_spans() -> None:
    traffic = KeyTraffic(["key"], GROUPS)
    traffic.tick(0)
    rng = np.random.default_rng(5)
    for now_ms in range(0, 30_000, 100):
        hot = 1 if now_ms < 20_000 else 2
        batch = batch_of(np.where(rng.random(5_000) < 0.5, hot, rng.integers(0, 1 << 40, 5_000)))
        traffic.observe(batch, hash_columns(batch, ["key"]))
        traffic.tick(now_ms)
        if now_ms == 19_900:
            assert hottest(traffic)[0].key == "1"
        if now_ms == 20_000 + 2 * SPAN_MS:
            assert hottest(traffic)[0].key == "2"
    assert share(traffic, "1") < 0.03


def test_the_stride_follows_the_rate_down_again() -> None:
    traffic = KeyTraffic(["key"], GROUPS)
    traffic.tick(0)
    batch = batch_of(np.arange(60_000))
    for _ in range(20):
        traffic.observe(batch)
    assert traffic._stride > 32
    traffic.tick(SPAN_MS)
    traffic.tick(2 * SPAN_MS)
    assert traffic._stride == 1
    before = sum(rows for _, rows in traffic.statistics()["key_groups"])
    traffic.observe(batch_of([9] * 10))
    assert sum(rows for _, rows in traffic.statistics()["key_groups"]) == before + 10


def test_equal_streams_give_equal_statistics() -> None:
    def run() -> dict[str, Any]:
        traffic = KeyTraffic(["key"], GROUPS)
        for number in range(60):
            batch = batch_of(np.random.default_rng(number).zipf(1.4, 3_000))
            traffic.observe(batch, hash_columns(batch, ["key"]))
            traffic.tick(number * 300)
        return traffic.statistics()

    assert run() == run()


def test_keys_of_several_columns_nulls_and_times_are_readable() -> None:
    traffic = KeyTraffic(["key", "at"], GROUPS)
    far = pa.array([2**60, 2**60, None], pa.timestamp("s"))
    near = pa.array([datetime.date(2024, 5, 1)] * 3)
    traffic.observe(pa.record_batch({"key": pa.array(["a", None, "b" * 100]), "at": far}))
    texts = {entry.key for entry in hottest(traffic)}
    assert any(text is not None and text.startswith("(None, ") for text in texts)
    assert "(" + "'" + "b" * 58 + "…, None)" in texts
    other = KeyTraffic(["at"], GROUPS)
    other.observe(pa.record_batch({"at": near}))
    assert hottest(other)[0].key == "datetime.date(2024, 5, 1)"


def test_hidden_keys_have_no_text() -> None:
    traffic = KeyTraffic(["key"], GROUPS, show_keys=False)
    for _ in range(3):
        traffic.observe(batch_of(["secret"] * 100))
    assert [entry.key for entry in hottest(traffic)] == [None]
    assert "secret" not in str(traffic.statistics())


def test_what_is_told_is_bounded_however_many_keys_and_groups() -> None:
    traffic = KeyTraffic(["key"], 32_768)
    traffic.observe(batch_of(np.arange(20_000)))
    told = traffic.statistics()
    assert len(told["key_groups"]) == 128
    assert len(told["hot_keys"]["entries"]) == 32
