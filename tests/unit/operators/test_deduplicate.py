"""Deduplication, compared with a model that remembers every row it kept."""

from __future__ import annotations

import datetime as dt
import decimal
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import PlanError
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.dedup.memories import CHUNK_COLUMN, Deduplication
from rayflow.operators.dedup.operator import DeduplicateOperator
from rayflow.state.dedup.id_set import CHUNK_BITS
from rayflow.state.parts import KEY_GROUP_COLUMN

SECOND_NS = 1_000_000_000
SCHEMA = pa.schema([("k", pa.int64()), ("n", pa.int64()), ("t", pa.timestamp("s"))])
CHUNKED = SCHEMA.append(pa.field(CHUNK_COLUMN, pa.int64()))
METHODS = ["exact", "bitmap", "bloom"]
# So rarely wrong that no test will see it.
SURE = {"false_positive_rate": 1e-6, "expected": 50}

Row = tuple[int | None, int | None]


def todo(method: Any, **options: Any) -> Deduplication:
    by = ("k",) if method != "bitmap" else (CHUNK_COLUMN,)
    return Deduplication(method=method, schema=CHUNKED, columns=("k",), partition=by, **{**SURE, **options})


def batch(rows: Sequence[Row], first: int = 0) -> pa.RecordBatch:
    """Return rows of (key, second), numbered."""
    keys = [key for key, _ in rows]
    columns = [
        pa.array(keys, pa.int64()),
        pa.array(range(first, first + len(rows)), pa.int64()),
        pa.array([second for _, second in rows], pa.timestamp("s")),
        pa.array([None if key is None else key >> CHUNK_BITS for key in keys], pa.int64()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=CHUNKED)


def kept(driven: Any) -> list[int]:
    subtasks = [*driven.done, *driven.subtasks] if hasattr(driven, "subtasks") else [driven]
    return [n for subtask in subtasks for rows in subtask.batches for n in rows.column("n").to_pylist()]


def owner(method: str) -> list[str]:
    return [CHUNK_COLUMN] if method == "bitmap" else ["k"]


# ----------------------------------------------------------------------------------- for ever

KEYS = st.none() | st.integers(-5, 5) | st.integers(-(2**63), 2**63 - 1) | st.integers(65_530, 65_545)


DISK = st.sampled_from([None, 1, 1 << 20])
"""Bytes for state with `state.backend=disk`; those of one byte keep next to nothing in memory."""


@pytest.mark.parametrize("method", METHODS)
@given(
    st.lists(st.lists(KEYS, max_size=25), max_size=6),
    st.integers(0, 6),
    st.integers(1, 4),
    st.integers(1, 4),
    DISK,
    DISK,
)
@settings(max_examples=25, deadline=None)
def test_the_first_row_of_each_key_is_kept_whatever_was_restarted(
    subtasks: Any,
    method: str,
    batches: list[list[int | None]],
    restart_before: int,
    before: int,
    after: int,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    made = lambda: DeduplicateOperator(todo(method))  # noqa: E731
    driven = subtasks(made, owner(method), before, disk_bytes=disk_before)
    expected: dict[int | None, int] = {}
    number = 0
    for at, keys in enumerate(batches):
        if at == restart_before:
            driven.restart(1, after, disk_bytes=disk_after)
        driven.feed(batch([(key, 0) for key in keys], number))
        for key in keys:
            expected.setdefault(key, number)
            number += 1
    assert sorted(kept(driven)) == sorted(expected.values())
    assert driven.count("rows_deduplicated") == number - len(expected)


@pytest.mark.parametrize("method", METHODS)
def test_rows_pass_unchanged_in_their_order_and_without_the_hidden_column(harness: Any, method: str) -> None:
    driven = harness(lambda: DeduplicateOperator(todo(method)))
    driven.feed(batch([(3, 1), (1, None), (3, 2), (None, 3), (None, 4)])).feed(batch([(1, 5), (2, 6)], 5))
    assert driven.batches[0].schema == SCHEMA
    assert kept(driven) == [0, 1, 3, 6]
    assert driven.rows[1] == {"k": 1, "n": 1, "t": None}
    assert driven.metrics.snapshot()["rows_deduplicated"] == 3
    assert driven.metrics.snapshot()["state_keys"] == 4
    assert driven.metrics.snapshot()["state_bytes"] > 0


VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "bool": (pa.bool_(), [True, False, None]),
    "int8": (pa.int8(), [-128, 127, 0, None]),
    "uint64": (pa.uint64(), [0, 2**64 - 1, 2**63, None]),
    "float": (pa.float32(), [0.0, 1.5, math.inf, math.nan, None]),
    "string": (pa.string(), ["", "a", "aa", "ä", None]),
    "large binary": (pa.large_binary(), [b"", b"\0", b"\0\0", None]),
    "decimal": (pa.decimal128(20, 2), [decimal.Decimal("1.00"), decimal.Decimal("-1.00"), None]),
    "timestamp": (pa.timestamp("us", "UTC"), [dt.datetime(2026, 1, 1, tzinfo=dt.timezone.utc), None]),
    "date": (pa.date32(), [dt.date(1969, 12, 31), dt.date(2026, 1, 1), None]),
}


@pytest.mark.parametrize("name", VALUES)
@pytest.mark.parametrize("method", ["exact", "bloom"])
def test_any_type_that_can_be_a_key_can_tell_rows_apart(harness: Any, method: Any, name: str) -> None:
    type_, values = VALUES[name]
    schema = pa.schema([("a", type_), ("b", pa.string()), ("n", pa.int64())])
    columns = ("a", "b")
    spec = Deduplication(method=method, schema=schema, columns=columns, partition=("a",), **SURE)
    rows = [{"a": value, "b": other} for value in values for other in ("x", None)]
    driven = harness(lambda: DeduplicateOperator(spec))
    for numbers in (range(len(rows)), range(len(rows), 2 * len(rows))):
        numbered = [{**row, "n": n} for row, n in zip(rows, numbers, strict=True)]
        driven.feed(pa.RecordBatch.from_pylist(numbered, schema=schema))
    assert kept(driven) == list(range(len(rows)))


def test_nan_is_nan_and_minus_zero_is_zero(harness: Any) -> None:
    schema = pa.schema([("a", pa.float64()), ("n", pa.int64())])
    values = np.array([0.0, -0.0, np.nan, -np.nan, 0.0])
    for method in ("exact", "bloom"):
        spec = Deduplication(method=method, schema=schema, columns=("a",), partition=("a",), **SURE)  # type: ignore[arg-type]
        driven = harness(lambda spec=spec: DeduplicateOperator(spec))
        driven.feed(pa.RecordBatch.from_arrays([pa.array(values), pa.array(range(5))], schema=schema))
        assert kept(driven) == [0, 2]


# --------------------------------------------------------------------------------- for a time

TTL_S = 8
PERIOD_S = TTL_S // 4


class Model:
    """What must be kept, and what may be: exact remembers for the time to live, the others up to a quarter longer."""

    def __init__(self) -> None:
        self.rows: dict[Any, list[int]] = {}

    def verdict(self, key: Any, second: int, watermark: int | None) -> bool | None:
        """Return whether the row is to be kept; None where that depends on the method."""
        alive = [t for t in self.rows.get(key, []) if watermark is None or t + TTL_S + PERIOD_S > watermark]
        if any(abs(second - t) < TTL_S and (watermark is None or t + TTL_S > watermark) for t in alive):
            return False
        return None if any(abs(second - t) < TTL_S + PERIOD_S for t in alive) else True

    def keep(self, key: Any, second: int) -> None:
        self.rows.setdefault(key, []).append(second)


TIMED = st.lists(
    st.lists(st.tuples(st.none() | st.integers(0, 2), st.integers(0, 6)), max_size=12),
    min_size=1,
    max_size=10,
)


@pytest.mark.parametrize("method", METHODS)
@given(TIMED, st.integers(0, 10), st.integers(1, 3), st.integers(1, 3), DISK, DISK)
@settings(max_examples=40, deadline=None)
def test_by_event_time_rows_less_than_the_ttl_apart_are_duplicates(
    subtasks: Any,
    method: str,
    batches: list[list[Row]],
    restart_before: int,
    before: int,
    after: int,
    disk_before: int | None,
    disk_after: int | None,
) -> None:
    """Batch i has rows of the seconds 3i to 3i + 6, and the watermark follows 3 s behind its beginning: disorder stays
    below the time to live, no row is late."""
    make = lambda: DeduplicateOperator(todo(method, ttl_ns=TTL_S * SECOND_NS, time_column="t"))  # noqa: E731
    driven, model, number = subtasks(make, owner(method), before, disk_bytes=disk_before), Model(), 0
    watermark: int | None = None
    for at, offsets in enumerate(batches):
        if at == restart_before:
            driven.restart(1, after, disk_bytes=disk_after)
        rows = [(key, 3 * at + offset) for key, offset in offsets if offset is not None]
        found = set(kept(driven))
        driven.feed(batch(rows, number))
        new = set(kept(driven)) - found
        for key, second in rows:
            expected = model.verdict(key, second, watermark)
            if method == "exact":
                expected = expected is not False
            if expected is not None:
                assert (number in new) is expected, (key, second, watermark)
            if number in new:
                model.keep(key, second)
            number += 1
        watermark = 3 * at - 3
        driven.watermark(watermark * SECOND_NS)
    assert driven.count("rows_past_ttl") == 0


@pytest.mark.parametrize("method", METHODS)
def test_memory_is_freed_as_the_watermark_passes(harness: Any, method: str) -> None:
    spec = todo(method, ttl_ns=TTL_S * SECOND_NS, time_column="t")
    driven = harness(lambda: DeduplicateOperator(spec))
    driven.feed(batch([(key, 0) for key in range(1000)]))
    driven.watermark((TTL_S - 1) * SECOND_NS)
    assert driven.metrics.snapshot()["state_keys"] == 1000
    driven.feed(batch([(1, TTL_S - 1)], 1000))
    assert len(kept(driven)) == 1000
    driven.watermark((TTL_S + PERIOD_S) * SECOND_NS)
    assert driven.metrics.snapshot()["state_keys"] == 0
    driven.feed(batch([(1, TTL_S + PERIOD_S + 1)], 1001))
    assert kept(driven)[-1] == 1001
    driven.watermark(WATERMARK_MAX)
    assert driven.snapshot(1)[0].table.num_rows == 0


@pytest.mark.parametrize("method", METHODS)
def test_a_row_that_comes_when_it_would_be_forgotten_passes_and_is_counted(harness: Any, method: str) -> None:
    driven = harness(lambda: DeduplicateOperator(todo(method, ttl_ns=TTL_S * SECOND_NS, time_column="t")))
    driven.watermark(100 * SECOND_NS)
    driven.feed(batch([(1, 50), (1, 95), (1, 96)])).feed(batch([(1, 50), (1, 97), (2, None), (2, None)], 3))
    assert kept(driven) == [0, 1, 3, 5]
    assert driven.metrics.counter("rows_past_ttl").value == 2
    assert driven.metrics.counter("null_time_rows").value == 2


@pytest.mark.parametrize("method", METHODS)
def test_times_at_the_ends_of_64_bits_do_no_harm(harness: Any, method: str) -> None:
    schema = CHUNKED.set(2, pa.field("t", pa.timestamp("ms")))
    spec = Deduplication(
        method=method,  # type: ignore[arg-type]
        schema=schema,
        columns=("k",),
        partition=(CHUNK_COLUMN,) if method == "bitmap" else ("k",),
        ttl_ns=1_000_000,
        time_column="t",
        **SURE,
    )
    driven = harness(lambda: DeduplicateOperator(spec))
    times = [2**63 - 1, -(2**63), 2**63 - 1, -(2**63), 0]
    arrays = [pa.array([7] * 5), pa.array(range(5)), pa.array(times, pa.timestamp("ms")), pa.array([0] * 5)]
    driven.feed(pa.RecordBatch.from_arrays(arrays, schema=schema))
    assert kept(driven)[:2] == [0, 1]
    assert 4 in kept(driven)
    driven.snapshot(1)


@pytest.mark.parametrize("method", METHODS)
def test_without_event_time_the_clock_decides_and_frees_memory_though_nothing_comes(
    subtasks: Any, method: str
) -> None:
    now = [1_000_000]
    driven = subtasks(
        lambda: DeduplicateOperator(todo(method, ttl_ns=TTL_S * SECOND_NS)),
        owner(method),
        2,
        now_ms=lambda: now[0],
    )
    rows = [(key, 0) for key in range(100)]
    driven.feed(batch(rows))
    now[0] += 1000 * (TTL_S - 1)
    driven.restart(1, 3)
    driven.feed(batch(rows, 100))
    assert len(kept(driven)) == 100
    now[0] += 1000 * (PERIOD_S + 1)
    for subtask in driven.subtasks:
        assert subtask.operator.next_timer_ms() <= now[0]
        subtask.operator.on_timer(now[0])
        assert now[0] < subtask.operator.next_timer_ms() <= now[0] + 1000 * PERIOD_S
    assert sum(subtask.metrics.snapshot()["state_keys"] for subtask in driven.subtasks) == 0
    driven.feed(batch(rows, 200))
    assert len(kept(driven)) == 200


# ------------------------------------------------------------------------------------ restores


def tables(driven: Any) -> dict[str, pa.Table]:
    return {part.name: part.table for part in driven.snapshot(1)}


def test_state_says_something_to_people(harness: Any) -> None:
    rows = [(key, 90) for key in (-1, 5, None, *range(65_536, 70_000))]
    timed = {"ttl_ns": TTL_S * SECOND_NS, "time_column": "t"}
    exact = tables(harness(lambda: DeduplicateOperator(todo("exact", **timed))).feed(batch(rows)))["keys"]
    assert exact.schema.names == ["k", "__seen_at", KEY_GROUP_COLUMN]
    assert exact.column("__seen_at").unique().to_pylist() == [dt.datetime(1970, 1, 1, 0, 1, 30)]
    bitmap = tables(harness(lambda: DeduplicateOperator(todo("bitmap", **timed))).feed(batch(rows)))["ids"]
    shown = [(r["ids"], r["lowest"], r["highest"]) for r in bitmap.to_pylist()]
    assert sorted(shown, key=str) == sorted(
        [(1, -1, -1), (1, 5, 5), (1, None, None), (4464, 65_536, 69_999)], key=str
    )
    assert bitmap.column("from").unique().to_pylist() == [dt.datetime(1970, 1, 1, 0, 1, 30)]
    bloom = tables(harness(lambda: DeduplicateOperator(todo("bloom"))).feed(batch(rows)))["filters"]
    assert sum(bloom.column("keys").to_pylist()) == len(rows)
    assert all(0 < fill < 0.7 for fill in bloom.column("fill").to_pylist())
    assert all(0 < rate <= 1e-6 for rate in bloom.column("rate").to_pylist())
    assert bloom.column("from").null_count == bloom.num_rows


@pytest.mark.parametrize(("method", "other"), [("exact", "bloom"), ("bloom", "bitmap"), ("bitmap", "exact")])
def test_state_of_another_method_is_refused(harness: Any, method: str, other: str) -> None:
    parts = harness(lambda: DeduplicateOperator(todo(method))).feed(batch([(1, 0)])).snapshot(1)
    with pytest.raises(
        PlanError, match=f"method='{method}', and in this job it is '{other}'; .*\\.uid\\(\\)"
    ):
        harness(lambda: DeduplicateOperator(todo(other)), restored=parts)


@pytest.mark.parametrize("method", ["exact", "bitmap"])
def test_state_of_other_columns_is_refused(harness: Any, method: Any) -> None:
    parts = harness(lambda: DeduplicateOperator(todo(method))).feed(batch([(1, 0)])).snapshot(1)
    schema = CHUNKED.set(0, pa.field("k", pa.int32()))
    by = (CHUNK_COLUMN,) if method == "bitmap" else ("k",)
    spec = Deduplication(method=method, schema=schema, columns=("k",), partition=by)
    with pytest.raises(PlanError, match=r"other columns: .*int64 there, .*int32 here; .*\.uid\(\)"):
        harness(lambda: DeduplicateOperator(spec), restored=parts)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("ttls", [(None, 8), (8, None), (8, 16), (16, 8)], ids=str)
def test_the_time_to_live_may_change_with_a_restart(harness: Any, method: str, ttls: Any) -> None:
    now = [1_000_000]
    first, second = (todo(method, ttl_ns=None if ttl is None else ttl * SECOND_NS) for ttl in ttls)
    driven = harness(lambda: DeduplicateOperator(first), now_ms=lambda: now[0])
    for at in range(3):
        driven.feed(batch([(key, 0) for key in range(100 * at, 100 * at + 100)]))
        now[0] += 2000
    again = harness(lambda: DeduplicateOperator(second), restored=driven.snapshot(1), now_ms=lambda: now[0])
    # The oldest key is 6 s old.
    again.feed(batch([(key, 0) for key in range(400)]))
    assert kept(again) == list(range(300, 400))
    now[0] += 1000 * 24
    again.feed(batch([(key, 0) for key in range(400)], 400))
    assert (len(kept(again)) == 100) is (ttls[1] is None)


def test_a_bloom_filter_says_how_wrong_it_is(harness: Any) -> None:
    count = 20_000
    spec = todo("bloom", false_positive_rate=0.05, expected=count)
    driven = harness(lambda: DeduplicateOperator(spec))
    for at in range(0, count, 1000):
        driven.feed(batch([(key, 0) for key in range(at, at + 1000)], at))
    metrics = driven.metrics.snapshot()
    lost = count - len(kept(driven))
    assert metrics["rows_deduplicated"] == lost
    assert 0.5 * lost - 20 <= metrics["false_positives_estimated"] <= 2 * lost + 20
