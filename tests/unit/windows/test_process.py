from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import OP_SYMBOLS, ops
from rayflow.model.errors import UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.windows.count import CountWindowOperator
from rayflow.windows.global_window import GlobalWindowOperator
from rayflow.windows.process import ROWS, ProcessWindowsOperator, rows_of
from rayflow.windows.session import SessionSpec, SessionWindowOperator

MS = 1_000_000
SCHEMA = pa.schema(
    [
        ("k", pa.string()),
        ("t", pa.timestamp("ms")),
        ("v", pa.int64()),
        ("d", pa.dictionary(pa.int32(), pa.string())),
        ("l", pa.list_(pa.int8())),
    ]
)
COLLECT = [(ROWS, rows_of(SCHEMA))]
RETURNS = pa.schema({"n": pa.int64(), "values": pa.list_(pa.int64())})
EPOCH = datetime(1970, 1, 1)


def at(ms: int) -> datetime:
    return EPOCH + timedelta(milliseconds=ms)


def session(**spec: Any) -> Any:
    made = SessionSpec(gap_ns=10 * MS, **spec)
    return lambda: SessionWindowOperator(("k",), made, COLLECT, SCHEMA, "t", bool(spec))


def maker(fn: Any, windows: Any = None, returns: Any = RETURNS, **options: Any) -> Any:
    windows = windows or session()
    return lambda: ProcessWindowsOperator(windows, fn, ("k",), SCHEMA, pa.timestamp("ms"), returns, **options)


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    full = [(k, t, v, f"d{v}", [1, None]) for k, t, v in rows]
    arrays = [pa.array([row[i] for row in full], SCHEMA.field(i).type) for i in range(5)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


def values(rows: list[dict[str, Any]], ctx: Any) -> dict[str, Any]:
    return {"n": len(rows), "values": [row["v"] for row in rows]}


def test_windows_owe_their_results_until_the_function_has_seen_them(harness: Any) -> None:
    driven = harness(maker(values, session(early_ns=100 * MS)), now_ms=lambda: 5000)
    driven.feed(batch(("a", 0, 1)))
    assert not driven.operator.drained()
    driven.operator.on_timer(5100)
    assert driven.operator.drained()
    assert [row["values"] for row in driven.rows] == [[1]]


def test_the_function_gets_all_rows_of_a_window_in_order_of_time(harness: Any) -> None:
    seen: list[Any] = []

    def fn(rows: list[dict[str, Any]], ctx: Any) -> Iterator[dict[str, Any]]:
        seen.append((ctx.current_key, ctx.window_start, ctx.window_end, ctx.watermark, rows))
        yield {"n": len(rows)}
        yield {"n": -len(rows)}

    driven = harness(maker(fn)).feed(batch(("a", 5, 1), ("a", 3, 2), ("b", 90, 3), ("a", 5, 4)))
    driven.watermark(50 * MS).watermark(WATERMARK_MAX)
    (first, second) = seen
    assert first[:4] == ("a", at(3), at(15), at(50))
    assert first[4] == [
        {"k": "a", "t": at(3), "v": 2, "d": "d2", "l": [1, None]},
        {"k": "a", "t": at(5), "v": 1, "d": "d1", "l": [1, None]},
        {"k": "a", "t": at(5), "v": 4, "d": "d4", "l": [1, None]},
    ]
    assert second[3] == datetime.max
    assert driven.batches[0].schema.names == ["k", "window_start", "window_end", "n", "values"]
    assert [(row["k"], row["n"]) for row in driven.rows] == [("a", 3), ("a", -3), ("b", 1), ("b", -1)]
    assert [event[0] for event in driven.events] == ["rows", "watermark", "rows", "watermark"]


def test_columns_that_the_function_makes_take_the_place_of_keys_and_bounds(harness: Any) -> None:
    returns = pa.schema({"n": pa.int64(), "window_start": pa.string(), "k": pa.int32()})

    def fn(rows: Any, ctx: Any) -> Any:
        return [{"k": 7, "window_start": "now", "n": 1}]

    driven = harness(maker(fn, returns=returns)).feed(batch(("a", 5, 1))).watermark(WATERMARK_MAX)
    assert driven.batches[0].schema.names == ["k", "window_start", "window_end", "n"]
    assert driven.rows[0] == {"k": 7, "window_start": "now", "window_end": at(15), "n": 1}


def test_nothing_and_no_rows_make_no_rows(harness: Any) -> None:
    def fn(rows: Any, ctx: Any) -> Any:
        return None if ctx.current_key == "a" else []

    driven = harness(maker(fn)).feed(batch(("a", 5, 1), ("b", 5, 1))).watermark(WATERMARK_MAX)
    assert (driven.rows, driven.watermarks) == ([], [WATERMARK_MAX])


@pytest.mark.parametrize("batch_format", ["pyarrow", "pandas", "polars", "numpy"])
def test_rows_come_in_the_format_that_was_asked_for(harness: Any, batch_format: str) -> None:
    kinds = {"pyarrow": "RecordBatch", "pandas": "DataFrame", "polars": "DataFrame", "numpy": "dict"}

    def fn(rows: Any, ctx: Any) -> Any:
        assert type(rows).__name__ == kinds[batch_format]
        if batch_format == "pyarrow":
            assert rows.schema == SCHEMA
        yield pa.table({"n": [len(rows["v"])]})
        yield {"n": [int(v) for v in rows["v"]]}

    returns = pa.schema({"n": pa.int64()})
    driven = harness(maker(fn, returns=returns, batch_format=batch_format))
    driven.feed(batch(("a", 5, 7), ("a", 6, 8), ("b", 5, 9))).watermark(WATERMARK_MAX)
    assert [(row["k"], row["n"]) for row in driven.rows] == [("b", 1), ("b", 9), ("a", 2), ("a", 7), ("a", 8)]


def test_updates_delete_what_the_function_made_of_the_rows_before(harness: Any) -> None:
    driven = harness(maker(values, session(lateness_ns=50 * MS))).feed(batch(("a", 0, 1), ("a", 20, 2)))
    driven.watermark(40 * MS).feed(batch(("a", 10, 3)))
    assert [
        (OP_SYMBOLS[op], row["values"])
        for b in driven.batches
        for op, row in zip(ops(b).tolist(), b.to_pylist())
    ] == [("+I", [1]), ("+I", [2]), ("-D", [1]), ("-D", [2]), ("+I", [1, 3, 2])]


def test_the_context_puts_aside_and_counts(harness: Any) -> None:
    def fn(rows: Any, ctx: Any) -> None:
        ctx.counter("windows").inc()
        ctx.output("big", {"rows": len(rows)})
        ctx.output("nobody", {"x": 1})

    big = pa.schema({"rows": pa.int64()})
    driven = harness(maker(fn, session(late_to="late")), side_outputs={"big": big, "late": SCHEMA})
    driven.feed(batch(("a", 5, 1), ("b", None, 2), ("a", 6, 1))).watermark(WATERMARK_MAX)
    sides = {event[1]: event[2].to_pylist() for event in driven.events if event[0] == "side"}
    assert sides["big"] == [{"rows": 2}]
    assert [row["k"] for row in sides["late"]] == ["b"]
    counted = driven.metrics.snapshot()
    assert (counted["windows"], counted["unread_side_rows"], counted["null_time_rows"]) == (1, 1, 1)


def test_classes_are_opened_and_closed(harness: Any) -> None:
    log: list[str] = []

    class Called:
        def open(self, ctx: Any) -> None:
            log.append(f"open {ctx.subtask_index} of {ctx.parallelism}")

        def __call__(self, rows: Any, ctx: Any) -> Any:
            return values(rows, ctx)

        def close(self) -> None:
            log.append("close")

    class Processing(Called):
        __call__ = None  # type: ignore[assignment]

        def process(self, rows: Any, ctx: Any) -> Any:
            return values(rows, ctx)

    for fn in (Called, Called()):
        driven = harness(maker(fn)).feed(batch(("a", 5, 1))).watermark(WATERMARK_MAX)
        driven.operator.close()
        assert driven.rows[0]["n"] == 1
    assert log == ["open 0 of 1", "close"] * 2


def test_mistakes_are_the_functions(harness: Any) -> None:
    def fn(rows: Any, ctx: Any) -> Any:
        if ctx.current_key == "a":
            raise ValueError("no a")
        return {"m": 1}

    with pytest.raises(UserFunctionError, match=r"ValueError: no a[\s\S]*v: 77"):
        harness(maker(fn)).feed(batch(("a", 5, 77))).watermark(WATERMARK_MAX)
    with pytest.raises(UserFunctionError, match="column 'm', which the schema does not name"):
        harness(maker(fn)).feed(batch(("b", 5, 1))).watermark(WATERMARK_MAX)


def count_windows() -> CountWindowOperator:
    return CountWindowOperator(("k",), 3, COLLECT, SCHEMA)


def global_window() -> GlobalWindowOperator:
    return GlobalWindowOperator(("k",), COLLECT, SCHEMA)


@given(
    st.lists(
        st.lists(st.tuples(st.sampled_from(["a", "b", "", None]), st.integers(0, 40), st.integers(0, 99))),
        max_size=5,
    ),
    st.sampled_from([1, 7, 100]),
    st.integers(0, 5),
    st.integers(1, 3),
    st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_windows_without_time_get_their_rows_as_they_came(
    subtasks: Any, steps: list[Any], cut: int, restart_at: int, before: int, after: int
) -> None:
    by_count, of_all = (
        subtasks(maker(values, make), ["k"], before) for make in (count_windows, global_window)
    )
    arrived: dict[Any, list[int]] = {}
    for number, rows in enumerate(steps):
        for driven in (by_count, of_all):
            if number == restart_at:
                driven.restart(1, after)
            for begin in range(0, len(rows), cut):
                driven.feed(batch(*rows[begin : begin + cut]))
        for key, _, value in rows:
            arrived.setdefault(key, []).append(value)
    for driven in (by_count, of_all):
        driven.watermark(WATERMARK_MAX)
    assert {row["k"]: row["values"] for row in of_all.rows} == arrived
    threes = sorted((str(k), vs[i : i + 3]) for k, vs in arrived.items() for i in range(0, len(vs) - 2, 3))
    assert sorted((str(row["k"]), row["values"]) for row in by_count.rows) == threes
