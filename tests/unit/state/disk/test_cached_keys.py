"""Keys and rows are those of a dictionary, wherever they are; barriers see all of them, or what changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayflow.batch.aggregates import count
from rayflow.batch.expressions import col
from rayflow.observe.metrics import MetricGroup
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.accumulators.slot_rows import AggregateRows
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.disk.row_store import MemoryRows, RowStore
from rayflow.state.disk.stored_rows import StoredRows

Open = Callable[[], RowStore]
SCHEMAS = {
    "number": pa.schema([("k", pa.int64())]),
    "text": pa.schema([("k", pa.string())]),
    "both": pa.schema([("k", pa.string()), ("j", pa.int8())]),
}


class Counted:
    """Counts and lists rows by key, over a store."""

    def __init__(self, schema: pa.Schema, store: RowStore, budget_bytes: int) -> None:
        self.schema = schema
        self.input = pa.schema([*schema, ("v", pa.int64())])
        self.columns = AggregateColumns([("n", count()), ("all", col("v").collect_list())], self.input)
        self.metrics = MetricGroup()
        self.keys = CachedKeys(
            schema, AggregateRows(self.columns), store, budget_bytes, lambda: 0, self.metrics
        )

    def add(self, rows: list[tuple[Any, int]]) -> set[Any]:
        """Add (key, value)s; return the keys that are new."""
        values = [(*key, value) for key, value in rows]
        batch = pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(zip(*values), self.input)],
            schema=self.input,
        )
        slots, fresh = self.keys.insert(batch.select(self.schema.names))
        self.columns.update(batch, slots, self.keys.slot_limit)
        return {rows[i][0] for i in fresh.tolist()}

    def drop(self, keys: list[Any]) -> None:
        batch = pa.RecordBatch.from_arrays(
            [pa.array(column, field.type) for column, field in zip(zip(*keys), self.schema)],
            schema=self.schema,
        )
        slots, fresh = self.keys.insert(batch)
        assert len(fresh) == 0
        self.columns.clear(slots)
        self.keys.remove(slots)


def shown(key: Any) -> tuple[Any, ...]:
    return tuple(key.values())


def rows_of(tables: Any) -> dict[Any, Any]:
    """What tables say of each key: its rows, None where it is gone."""
    found: dict[Any, Any] = {}
    for keys, rows, gone in tables:
        columns = rows.to_pydict()
        listed = next(name for name in columns if name.startswith("all"))
        for i, key in enumerate(keys.to_pylist()):
            found[shown(key)] = None if gone[i] else sorted(columns[listed][i])
    return found


KEY = st.integers(0, 11) | st.none()
STEP = st.one_of(
    st.tuples(st.just("add"), st.lists(st.tuples(KEY, st.integers(0, 9)), min_size=1, max_size=8)),
    st.tuples(st.just("drop"), st.sets(KEY, max_size=3)),
    st.tuples(st.just("barrier"), st.none()),
    st.tuples(st.just("complete"), st.none()),
    st.tuples(st.just("revisit"), st.integers(1, 4)),
)


@given(st.lists(STEP, max_size=25), st.sampled_from(sorted(SCHEMAS)), st.sampled_from([1, 60_000]))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_rows_are_those_of_a_dictionary_and_a_barrier_sees_them_or_what_changed(
    open_rows: Open, steps: list[Any], kind: str, budget_bytes: int
) -> None:
    def key_of(number: int | None) -> tuple[Any, ...]:
        text = None if number is None else f"key {number}"
        return {"number": (number,), "text": (text,), "both": (text, None if number == 3 else 1)}[kind]

    counted = Counted(SCHEMAS[kind], open_rows(), budget_bytes)
    model: dict[Any, list[int]] = {}
    taken: list[tuple[int, StoredRows, dict[Any, Any], int]] = []
    completed, number = 0, 0
    states = {0: {}}
    for what, given_ in [*steps, ("barrier", None)]:
        if what == "add":
            new = counted.add([(key_of(k), v) for k, v in given_])
            assert new == {key_of(k) for k, _ in given_} - model.keys()
            for k, v in given_:
                model.setdefault(key_of(k), []).append(v)
        elif what == "drop":
            gone = [key_of(k) for k in sorted(given_, key=str) if key_of(k) in model]
            if gone:
                counted.drop(gone)
            model = {key: values for key, values in model.items() if key not in gone}
        elif what == "barrier":
            number += 1
            held = {key: sorted(values) for key, values in model.items()}
            states[number] = held
            taken.append((number, counted.keys.barrier(number), held, completed))
        elif what == "complete" and number:
            # Any that is not older than what was completed before.
            completed = max(completed, number - 1)
            counted.keys.completed(completed)
        elif what == "revisit":
            slots = counted.keys.revisit(given_)
            assert len(slots) == len(set(slots.tolist()))
    # Read when all is over: views stand still.
    for at, stored, held, since in taken:
        assert rows_of(stored.all()) == held
        changes = rows_of(stored.since(since))
        after = {key: values for key, values in (states[since] | changes).items() if values is not None}
        assert after == held, f"changes of {at} since {since}"


def test_what_did_not_change_is_not_told(open_rows: Open) -> None:
    counted = Counted(SCHEMAS["number"], open_rows(), 1)
    counted.add([((k,), 1) for k in range(1000)])
    counted.keys.barrier(1)
    counted.add([((7,), 1)])
    counted.keys.completed(1)
    assert rows_of(counted.keys.barrier(2).since(1)) == {(7,): [1, 1]}


def test_memory_stays_within_its_budget_and_rows_are_written_once(open_rows: Open) -> None:
    budget = 2 << 20
    counted = Counted(SCHEMAS["number"], MemoryRows(), budget)
    rng = np.random.default_rng(3)
    keys = rng.permutation(100_000)
    for begin in range(0, len(keys), 2_000):
        counted.add([((int(k),), 1) for k in keys[begin : begin + 2_000]])
        assert counted.keys.nbytes < 1.1 * budget
    evicted = counted.metrics.counter("state_evicted_keys").value
    assert evicted + len(counted.keys) == 100_000
    # Those in memory that were read and not changed need no second writing.
    counted.keys.barrier(1)
    assert not counted.keys._dirty.any()
    assert len(rows_of(counted.keys.barrier(2).since(1))) == 0


def test_hot_keys_stay_in_memory() -> None:
    counted = Counted(SCHEMAS["number"], MemoryRows(), 1 << 19)
    for begin in range(0, 40_000, 1_000):
        counted.add([((k,), 1) for k in [*range(100), *range(1_000 + begin, 2_000 + begin)]])
    assert counted.metrics.counter("state_evicted_keys").value > 10_000
    assert counted.metrics.counter("state_fetched_keys").value == 0


def test_columns_that_cannot_be_bytes_are_refused() -> None:
    from rayflow.state.disk.share import DiskShare

    class Intervals(AggregateRows):
        schema = pa.schema([("x", pa.month_day_nano_interval())])

        def __init__(self) -> None:
            pass

    share = DiskShare(lambda nbytes: MemoryRows(), 1 << 20, lambda: 0, MetricGroup())
    with pytest.raises(TypeError, match="interval"):
        share.keys(SCHEMAS["number"], Intervals())


def test_what_is_on_its_way_to_a_checkpoint_is_bounded_however_wide_rows_are(open_rows: Open) -> None:
    counted = Counted(SCHEMAS["number"], open_rows(), 2 << 20)
    # 8 KiB of state each, after some thousand keys that have a few bytes.
    counted.add([((k,), k) for k in range(4_000)])
    counted.add([((k,), v) for k in range(4_000, 4_100) for v in range(512)])
    first = counted.keys.barrier(1)
    counted.add([((k,), 0) for k in range(0, 4_100, 2)])
    changed = counted.keys.barrier(2)
    chunk_bytes = counted.keys.file_bytes // 4
    for tables, keys in ((first.all(), 4_100), (changed.since(1), 2_050)):
        sizes = [(rows.num_rows, names.nbytes + rows.nbytes) for names, rows, _ in tables]
        assert sum(rows for rows, _ in sizes) == keys
        # One chunk is read before it is known how wide rows are; twice as many rows as before at most.
        assert sorted(nbytes for _, nbytes in sizes)[-3] <= 2.5 * chunk_bytes


def test_rows_go_to_the_store_in_the_order_of_their_bytes() -> None:
    written: list[bytes] = []

    class Watched(MemoryRows):
        def write(self, puts: Any, deletes: Any = ()) -> None:
            written.extend(key for key, _ in puts if key[:1] == b"R")
            super().write(puts, deletes)

    for kind, keys in (
        ("number", [(k * 7919 % 1000,) for k in range(1000)]),
        ("text", [(str(k * 7919 % 1000),) for k in range(1000)]),
    ):
        written.clear()
        counted = Counted(SCHEMAS[kind], Watched(), 10 << 20)
        counted.add([(key, 1) for key in keys])
        counted.keys.barrier(1)
        assert len(written) == 1000
        assert written == sorted(written)
