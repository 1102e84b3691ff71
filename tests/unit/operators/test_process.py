"""Process functions in subtasks: rows, timers and states by key, over restarts at another parallelism."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayflow as rf
from rayflow.model.errors import UserFunctionError
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.process import Port, ProcessOperator

EPOCH = datetime(1970, 1, 1)
MS, S = 1_000_000, 1_000_000_000
TIME = pa.timestamp("ms")
SCHEMA = pa.schema([("k", pa.string()), ("t", TIME), ("v", pa.int64())])
KEYS = pa.schema([("k", pa.string())])


def at(seconds: float) -> datetime:
    return EPOCH + timedelta(seconds=seconds)


def maker(fn: Any, returns: Any = None, schema: pa.Schema = SCHEMA, keys: tuple[str, ...] = ("k",)) -> Any:
    time = schema.field("t").type if "t" in schema.names else None
    port = Port(method="process", keys=keys, time_column=None if time is None else "t", time_type=time)
    by = pa.schema([schema.field(key) for key in keys])
    return lambda: ProcessOperator(fn, [port], by, None if returns is None else pa.schema(returns))


def batch(*rows: tuple[Any, ...]) -> pa.RecordBatch:
    """Rows of key, seconds, value."""
    columns = [[row[i] for row in rows] for i in range(3)]
    columns[1] = [None if t is None else at(t) for t in columns[1]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA)]
    return pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)


class Count(rf.KeyedProcessFunction):
    count = rf.ValueState("int64", default=0)

    def process(self, row: Any, ctx: Any) -> Iterator[Any]:
        self.count.value += 1
        yield {"k": row["k"], "n": self.count.value}


def test_rows_of_a_key_are_processed_in_order_of_arrival_with_its_state(harness: Any) -> None:
    driven = harness(maker(Count)).feed(batch(("a", 1, 1), ("b", 1, 1), ("a", 0, 1))).feed(batch(("a", 0, 1)))
    assert [(r["k"], r["n"]) for r in driven.rows] == [("a", 1), ("b", 1), ("a", 2), ("a", 3)]


class Lately(rf.KeyedProcessFunction):
    seen = rf.ValueState("int64", ttl="1s")

    def process(self, row: Any, ctx: Any) -> None:
        self.seen.value = row["v"]


def test_state_that_has_outlived_its_time_goes_while_new_keys_keep_coming(harness: Any) -> None:
    # 50 new keys every 100 ms: 500 live at a time, and each batch looks at 100 slots.
    now = [0]
    driven = harness(maker(Lately), now_ms=lambda: now[0])
    for step in range(200):
        driven.feed(batch(*((f"{step}-{i}", 0, 1) for i in range(50))))
        now[0] += 100
    assert len(driven.operator._keyed) <= 1_500


def test_null_nan_and_composite_keys_are_keys(harness: Any) -> None:
    schema = pa.schema([("k", pa.float64()), ("j", pa.string())])

    class Keys(Count):
        def process(self, row: Any, ctx: Any) -> Iterator[Any]:
            self.count.value += 1
            yield {"k": repr(ctx.current_key), "n": self.count.value}

    arrays = [
        pa.array([math.nan, None, -math.nan, 0.0, -0.0, None]),
        pa.array(["x", "x", "x", "x", "x", None]),
    ]
    rows = pa.RecordBatch.from_arrays(arrays, schema=schema)
    one = harness(maker(Keys, schema=schema)).feed(rows).rows
    assert [(r["k"], r["n"]) for r in one] == [
        ("nan", 1), ("None", 1), ("nan", 2), ("0.0", 1), ("0.0", 2), ("None", 2),
    ]  # fmt: skip
    two = harness(maker(Keys, schema=schema, keys=("k", "j"))).feed(rows).rows
    assert [(r["k"], r["n"]) for r in two][-2:] == [("(0.0, 'x')", 2), ("(None, None)", 1)]


class Recorder(rf.KeyedProcessFunction):
    """Sets timers as its rows say: v seconds after the row's time."""

    def process(self, row: Any, ctx: Any) -> None:
        ctx.register_event_timer(ctx.timestamp + timedelta(seconds=row["v"]))

    def on_timer(self, ts: datetime, ctx: Any) -> Iterator[Any]:
        yield {"k": ctx.current_key, "ts": ts, "watermark": ctx.watermark, "domain": ctx.time_domain}


def test_event_timers_fire_once_in_order_before_the_watermark_that_reaches_them_is_passed_on(
    harness: Any,
) -> None:
    driven = harness(maker(Recorder)).feed(batch(("a", 0, 5), ("b", 0, 3), ("a", 2, 3), ("a", 0, 9)))
    driven.watermark(3 * S - 1)
    assert driven.rows == []
    driven.watermark(5 * S)
    assert [(r["k"], r["ts"]) for r in driven.rows] == [("b", at(3)), ("a", at(5))]
    assert driven.rows[0]["watermark"] == at(5)
    assert driven.rows[0]["domain"] == "event"
    assert [event[0] for event in driven.events] == ["watermark", "rows", "watermark"]
    driven.watermark(6 * S)
    assert len(driven.rows) == 2


def test_a_timer_set_in_the_past_fires_at_the_next_watermark(harness: Any) -> None:
    driven = harness(maker(Recorder)).watermark(10 * S).feed(batch(("a", 0, 1)))
    assert driven.rows == []
    driven.watermark(10 * S + 1)
    assert [r["ts"] for r in driven.rows] == [at(1)]


def test_at_the_end_all_timers_fire_and_only_then_the_last_watermark_is_passed_on(harness: Any) -> None:
    class Both(Recorder):
        def process(self, row: Any, ctx: Any) -> None:
            ctx.register_event_timer(at(100))
            ctx.register_processing_timer(ctx.processing_time + timedelta(days=1))

        def on_timer(self, ts: datetime, ctx: Any) -> Iterator[Any]:
            yield {"ts": ts, "domain": ctx.time_domain, "end": ctx.watermark == datetime.max}
            if ctx.time_domain == "event" and ts == at(100):
                ctx.register_event_timer(at(200))
            if ctx.time_domain == "processing":
                ctx.register_event_timer(at(50))
                ctx.register_processing_timer(ts + timedelta(days=1))

    driven = harness(maker(Both)).feed(batch(("a", 0, 5)))
    driven.watermark(WATERMARK_MAX)
    driven.operator.end()
    assert [(r["ts"], r["domain"], r["end"]) for r in driven.rows] == [
        (at(100), "event", True),
        (at(200), "event", True),
        (at(86400), "processing", True),
        (at(50), "event", True),
    ]
    assert driven.events[-1] == ("watermark", WATERMARK_MAX)
    assert driven.watermarks == [WATERMARK_MAX]
    assert driven.metrics.counter("timers_after_end").value == 1
    assert driven.operator.next_timer_ms() is None
    assert sum(part.table.num_rows for part in driven.snapshot(1)) == 0, "not even the watermark is kept"


def test_timers_that_never_stop_setting_timers_are_an_error_at_the_end(harness: Any) -> None:
    class Periodic(Recorder):
        def on_timer(self, ts: datetime, ctx: Any) -> None:
            ctx.register_event_timer(ts + timedelta(seconds=1))

    driven = harness(maker(Periodic)).feed(batch(("a", 0, 5))).watermark(100 * S)
    with pytest.raises(UserFunctionError, match=r"goes on setting timers at the end.*datetime.max"):
        driven.watermark(WATERMARK_MAX)


def test_processing_timers_fire_by_the_clock(harness: Any) -> None:
    class Later(Recorder):
        def process(self, row: Any, ctx: Any) -> None:
            ctx.register_processing_timer(ctx.processing_time + timedelta(seconds=row["v"]))
            if row["t"] is None:
                ctx.delete_processing_timer(ctx.processing_time + timedelta(seconds=row["v"]))

    clock = [5_000]
    driven = harness(maker(Later), now_ms=lambda: clock[0])
    driven.feed(batch(("a", 0, 10), ("b", 0, 2), ("c", 0, -1), ("d", None, 3)))
    assert driven.operator.next_timer_ms() == 4_000
    for clock[0] in (5_000, 6_999, 7_000, 20_000):
        due = driven.operator.next_timer_ms()
        if due is not None and due <= clock[0]:
            driven.operator.on_timer(clock[0])
        driven.watermark(clock[0] * MS)
    assert [(r["k"], r["ts"], r["domain"]) for r in driven.rows] == [
        ("c", at(4), "processing"),
        ("b", at(7), "processing"),
        ("a", at(15), "processing"),
    ]
    assert driven.operator.next_timer_ms() is None


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("tz", [None, "UTC", "Europe/Berlin"])
def test_times_look_as_in_rows_whatever_the_column(harness: Any, unit: str, tz: str | None) -> None:
    schema = pa.schema([("k", pa.string()), ("t", pa.timestamp(unit, tz))])

    class Times(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Iterator[Any]:
            assert ctx.timestamp == row["t"]
            assert ctx.watermark < row["t"] < ctx.watermark.max.replace(tzinfo=row["t"].tzinfo)
            ctx.register_event_timer(ctx.timestamp + timedelta(seconds=1))
            ctx.register_processing_timer(ctx.processing_time + timedelta(seconds=1))
            ctx.delete_processing_timer(ctx.processing_time + timedelta(seconds=1))
            yield {"ts": ctx.timestamp}

        def on_timer(self, ts: Any, ctx: Any) -> Iterator[Any]:
            assert ts == ctx.timestamp <= ctx.watermark
            assert (ts.tzinfo is None) == (tz is None)
            yield {"ts": ts}

    rows = pa.RecordBatch.from_arrays(
        [
            pa.array(["a"]),
            pa.array([1_700_000_000], pa.int64()).cast(pa.timestamp("s")).cast(schema.field("t").type),
        ],
        schema=schema,
    )
    driven = harness(maker(Times, {"ts": schema.field("t").type}, schema)).feed(rows)
    driven.watermark(1_700_000_001 * S)
    assert [
        r["ts"].timestamp() if tz else r["ts"].replace(tzinfo=timezone.utc).timestamp() for r in driven.rows
    ] == [
        1_700_000_000,
        1_700_000_001,
    ]


def test_a_row_without_a_time_has_none(harness: Any) -> None:
    class Times(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Any:
            return [{"none": ctx.timestamp is None}]

    assert harness(maker(Times)).feed(batch(("a", None, 1), ("a", 1, 1))).rows == [
        {"none": True},
        {"none": False},
    ]


def test_side_outputs_are_read_or_counted(harness: Any) -> None:
    class Split(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> None:
            ctx.output("odd" if row["v"] % 2 else "even", {"v": row["v"]})

    tags = {"odd": pa.schema({"v": pa.int16()})}
    driven = harness(maker(Split), side_outputs=tags).feed(batch(("a", 0, 1), ("a", 0, 2), ("b", 0, 3)))
    ((_, tag, aside),) = driven.events
    assert (tag, aside.schema, aside.to_pydict()) == ("odd", tags["odd"], {"v": [1, 3]})
    assert driven.metrics.snapshot() == {"unread_side_rows": 1}


def test_output_is_cut_to_the_size_of_batches(harness: Any) -> None:
    class Many(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Iterator[Any]:
            for i in range(row["v"]):
                yield {"i": i}
                ctx.output("x", {"i": i})

    driven = harness(maker(Many), batch_rows=4, side_outputs={"x": None})
    driven.feed(batch(("a", 0, 3), ("a", 0, 3), ("a", 0, 9)))
    assert max(b.num_rows for b in driven.batches) <= 4
    assert len(driven.rows) == 15
    assert all(event[-1].num_rows <= 4 for event in driven.events)


def test_open_and_close_are_called_and_each_subtask_has_a_function_of_its_own(harness: Any) -> None:
    log: list[Any] = []

    class Logged(Count):
        def open(self, ctx: Any) -> None:
            log.append(("open", ctx.subtask_index, ctx.parallelism))
            ctx.counter("opened").inc()

        def close(self) -> None:
            log.append("close")

    driven = harness(maker(Logged), index=1, parallelism=2)
    driven.operator.close()
    assert log == [("open", 1, 2), "close"]
    assert driven.metrics.snapshot()["opened"] == 1


def test_keys_without_state_or_timers_are_forgotten(harness: Any) -> None:
    class Fleeting(rf.KeyedProcessFunction):
        value = rf.ValueState(int)
        items = rf.ListState(int)
        entries = rf.MapState(int, int)

        def process(self, row: Any, ctx: Any) -> None:
            if row["v"] > 0:
                self.value.value = 1
                self.items.append(1)
                self.entries[1] = 1
                ctx.register_event_timer(at(5))
            else:
                self.value.clear()
                self.items.clear()
                del self.entries[1]

        def on_timer(self, ts: datetime, ctx: Any) -> None:
            assert self.value.get() is None

    driven = harness(maker(Fleeting))
    driven.feed(batch(*((str(i), 0, 1) for i in range(100))))
    assert len(driven.operator._keyed) == 100
    driven.feed(batch(*((str(i), 0, 0) for i in range(100))))
    assert len(driven.operator._keyed) == 100
    driven.watermark(5 * S)
    assert len(driven.operator._keyed) == 0


def fails(driven: Any, rows: pa.RecordBatch) -> str:
    with pytest.raises(UserFunctionError) as caught:
        driven.feed(rows)
    return str(caught.value)


def test_an_error_names_the_row_and_the_users_line(harness: Any) -> None:
    class Fails(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Iterator[Any]:
            yield {"x": 1 // row["v"]}

    message = fails(harness(maker(Fails)), batch(("a", 0, 1), ("b", 0, 0), ("c", 0, 1)))
    assert "ZeroDivisionError" in message
    assert "1 // row[" in message
    assert "job.py:7" in message
    assert "rows at hand: {k: 'b'" in message


def test_an_error_in_a_timer_names_the_key(harness: Any) -> None:
    class Fails(Recorder):
        def on_timer(self, ts: datetime, ctx: Any) -> Any:
            raise ValueError("no")

    driven = harness(maker(Fails)).feed(batch(("a", 0, 1)))
    with pytest.raises(UserFunctionError, match=r"ValueError: no(.|\n)*rows at hand: \{k: 'a'\}"):
        driven.watermark(WATERMARK_MAX)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ({"x": 1}, "expected a list or generator of rows; yield the row"),
        (5, "expected a list or generator of rows"),
        ([1], "expected a dict with 'x', 'y'"),
        ([{"x": "a"}], "column 'x' is 'a', expected int64"),
    ],
)
def test_what_is_no_row_is_an_error(harness: Any, returned: Any, message: str) -> None:
    class Odd(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Any:
            return returned

    assert message in fails(harness(maker(Odd, {"x": pa.int64(), "y": pa.int64()})), batch(("a", 0, 1)))


@pytest.mark.parametrize(
    "wrong", [5, 1.5, "2024-01-01", None, datetime(2024, 1, 1).date(), timedelta(seconds=1), True]
)
def test_a_timer_that_is_no_time_is_an_error(harness: Any, wrong: Any) -> None:
    class Odd(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> None:
            ctx.register_event_timer(wrong)

    message = fails(harness(maker(Odd)), batch(("a", 0, 1)))
    assert "ctx.register_event_timer: expected a datetime, such as ctx.timestamp + timedelta" in message
    assert repr(wrong) in message


def test_event_timers_need_event_time(harness: Any) -> None:
    schema = pa.schema([("k", pa.string())])

    class Timed(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> None:
            assert ctx.timestamp is None
            ctx.register_event_timer(at(1))

    message = fails(harness(maker(Timed, schema=schema)), pa.record_batch({"k": ["a"]}))
    assert "the stream has no event time" in message


def test_timers_that_are_set_but_not_served_are_an_error(harness: Any) -> None:
    class NoService(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> None:
            ctx.register_event_timer(at(1))

    driven = harness(maker(NoService)).feed(batch(("a", 0, 1)))
    with pytest.raises(UserFunctionError, match=r"NoService sets timers, but has no on_timer"):
        driven.watermark(WATERMARK_MAX)


def test_context_and_states_outside_of_rows_and_timers_are_errors(harness: Any) -> None:
    class Early(Count):
        def open(self, ctx: Any) -> None:
            self.use(ctx)

    uses = {
        "state 'count' belongs to a key, but open has none": lambda fn, ctx: fn.count.value,
        "ctx.current_key: open has none": lambda fn, ctx: ctx.current_key,
        "a timer belongs to a key, but open has none": lambda fn, ctx: ctx.register_processing_timer(at(1)),
        "ctx.output can be used only while": lambda fn, ctx: ctx.output("x", {}),
    }
    for message, use in uses.items():
        Early.use = use  # type: ignore[attr-defined]
        with pytest.raises(UserFunctionError, match=message):
            harness(maker(Early))
    driven = harness(maker(Count)).feed(batch(("a", 0, 1)))
    with pytest.raises(RuntimeError, match="there is none now"):
        _ = driven.operator._function.instance.count.value


# -------------------------------------------------------------------- two inputs and broadcast state


class Rules(rf.CoProcessFunction):
    limits = rf.MapState(str, int, broadcast=True)
    over = rf.ValueState("int64", default=0)

    def process1(self, row: Any, ctx: Any) -> Iterator[Any]:
        limit = self.limits.get(row["k"])
        if limit is not None and row["v"] > limit:
            self.over.value += 1
            yield {"k": row["k"], "over": self.over.value}

    def process2(self, row: Any, ctx: Any) -> Iterator[Any]:
        if row["v"] is None:
            self.limits.remove(row["k"])
        else:
            self.limits[row["k"]] = row["v"]
        yield {"k": "limits", "over": len(self.limits)}


def two(
    fn: Any, first_keys: tuple[str, ...], second_keys: tuple[str, ...], is_broadcast: bool = False
) -> Any:
    ports = [
        Port(method="process1", keys=first_keys, time_column="t", time_type=TIME),
        Port(method="process2", keys=second_keys, is_broadcast=is_broadcast),
    ]
    return lambda: ProcessOperator(fn, ports, KEYS if first_keys else None, None)


def test_broadcast_state_is_written_by_one_side_read_by_the_other_and_restored_everywhere(
    subtasks: Any,
) -> None:
    driven = subtasks(two(Rules, ("k",), (), True), ["k"], 2)
    for subtask in driven.subtasks:
        subtask.feed(batch(("a", 0, 5), ("b", 0, 7)), port=1)
    driven.feed(batch(("a", 0, 6), ("b", 0, 6), ("c", 0, 6)))
    parts = [part for subtask in driven.subtasks for part in subtask.snapshot(1) if part.kind == "broadcast"]
    assert [part.table.to_pylist() for part in parts] == [[{"limits.map": [("a", 5), ("b", 7)]}]]
    driven.restart(1, 5)
    driven.feed(batch(("a", 0, 6), ("b", 0, 8), ("c", 0, 6)))
    found = [(r["k"], r["over"]) for r in driven.rows if r["k"] != "limits"]
    assert sorted(found) == [("a", 1), ("a", 2), ("b", 1)]


def test_broadcast_state_cannot_be_changed_by_the_other_side(harness: Any) -> None:
    class Writes(Rules):
        def process1(self, row: Any, ctx: Any) -> None:
            self.limits["x"] = 1

    assert "only the broadcast side may change it" in fails(
        harness(two(Writes, ("k",), (), True)), batch(("a", 0, 1))
    )


def test_the_broadcast_side_has_no_key(harness: Any) -> None:
    class Keyed(Rules):
        def process2(self, row: Any, ctx: Any) -> None:
            self.over.value = 1

    driven = harness(two(Keyed, ("k",), (), True))
    with pytest.raises(UserFunctionError, match="belongs to a key, but rows of the broadcast side have none"):
        driven.feed(batch(("a", 0, 1)), port=1)


def test_two_keyed_inputs_share_state_and_timers_by_key(harness: Any) -> None:
    class Match(rf.CoProcessFunction):
        left = rf.ListState("int64")

        def process1(self, row: Any, ctx: Any) -> None:
            self.left.append(row["v"])
            ctx.register_event_timer(ctx.timestamp + timedelta(seconds=10))

        def process2(self, row: Any, ctx: Any) -> Iterator[Any]:
            for v in self.left:
                yield {"k": ctx.current_key, "left": v, "right": row["w"]}

        def on_timer(self, ts: datetime, ctx: Any) -> None:
            self.left.clear()

    driven = harness(two(Match, ("k",), ("id",)))
    right = pa.record_batch({"w": [1.5, 2.5], "id": ["b", "a"]})
    driven.feed(batch(("a", 0, 1), ("b", 0, 2), ("a", 0, 3))).feed(right, port=1)
    expected = [("b", 2, 1.5), ("a", 1, 2.5), ("a", 3, 2.5)]
    assert [tuple(r.values()) for r in driven.rows] == expected
    driven.watermark(10 * S).feed(right, port=1)
    assert len(driven.rows) == 3


# -------------------------------------------------------------------------------------- against a model


class Everything(rf.KeyedProcessFunction):
    """Uses all states and both kinds of timers, as its rows say."""

    total = rf.ValueState("int64", default=100)
    text = rf.ValueState(str)
    items = rf.ListState("int16")
    counts = rf.MapState("int64", "int64")

    def process(self, row: Any, ctx: Any) -> Iterator[Any]:
        v = row["v"]
        self.total.value += v
        self.text.set(None if v % 5 == 0 else (self.text.get() or "") + "x")
        if v % 7 == 0:
            self.items.clear()
        self.items.append(v)
        self.counts[v % 3] = self.counts.get(v % 3, 0) + 1
        if v % 4 == 0:
            self.counts.remove(1)
        if ctx.timestamp is not None:
            (ctx.delete_event_timer if v % 6 == 5 else ctx.register_event_timer)(
                ctx.timestamp + timedelta(seconds=v)
            )
        yield self.shown(row["k"])

    def on_timer(self, ts: datetime, ctx: Any) -> Iterator[Any]:
        self.total.value += 1
        self.items.append(-1)
        if len(self.items) > 4:
            self.items.set(list(self.items)[-2:])
        elif ts < at(40):
            ctx.register_event_timer(ts + timedelta(seconds=7))
        yield {**self.shown(ctx.current_key), "ts": ts}

    def shown(self, key: Any) -> dict[str, Any]:
        counts = sorted(self.counts.items())
        return {
            "k": key,
            "total": self.total.value,
            "text": self.text.value,
            "items": self.items.get(),
            "c": str(counts),
        }


RETURNS = {
    "k": pa.string(), "total": pa.int64(), "text": pa.string(), "items": pa.list_(pa.int64()), "c": pa.string(),
    "ts": TIME,
}  # fmt: skip


class Model:
    """The same, one row and one timer at a time, with dictionaries."""

    def __init__(self) -> None:
        self.total: dict[Any, int] = defaultdict(lambda: 100)
        self.text: dict[Any, str | None] = defaultdict(lambda: None)
        self.items: dict[Any, list[int]] = defaultdict(list)
        self.counts: dict[Any, dict[int, int]] = defaultdict(dict)
        self.timers: set[tuple[float, Any]] = set()
        self.out: dict[Any, list[Any]] = defaultdict(list)

    def row(self, k: Any, t: float | None, v: int) -> None:
        self.total[k] += v
        self.text[k] = None if v % 5 == 0 else (self.text[k] or "") + "x"
        self.items[k] = [*([] if v % 7 == 0 else self.items[k]), v]
        self.counts[k][v % 3] = self.counts[k].get(v % 3, 0) + 1
        if v % 4 == 0:
            self.counts[k].pop(1, None)
        if t is not None:
            (self.timers.discard if v % 6 == 5 else self.timers.add)((t + v, k))
        self.show(k, None)

    def watermark(self, reached: float) -> None:
        waiting = set()
        while due := [timer for timer in self.timers if timer[0] <= reached]:
            timer = min(due, key=lambda due_timer: due_timer[0])
            self.timers.remove(timer)
            time, k = timer
            self.total[k] += 1
            self.items[k].append(-1)
            if len(self.items[k]) > 4:
                self.items[k] = self.items[k][-2:]
            elif time < 40:
                self.timers.add((time + 7, k))
            self.show(k, at(time))
        self.timers |= waiting

    def show(self, k: Any, ts: Any) -> None:
        shown = (self.total[k], self.text[k], list(self.items[k]), str(sorted(self.counts[k].items())), ts)
        self.out[k].append(shown)


ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "", None]), st.none() | st.integers(0, 60), st.integers(0, 30)),
    max_size=8,
)


@given(
    st.lists(st.tuples(ROWS, st.integers(0, 70)), max_size=6),
    st.sampled_from([1, 3, 100]),
    st.sets(st.integers(0, 5)),
    st.lists(st.integers(1, 3), min_size=7, max_size=7),
    st.sampled_from([2, 1000]),
    st.lists(st.sampled_from([None, 1, 60_000]), min_size=7, max_size=7),
)
@settings(max_examples=120, deadline=None)
def test_states_and_timers_are_those_of_a_naive_model_whatever_the_restarts(
    subtasks: Any,
    steps: Any,
    cut: int,
    restarts: set[int],
    parallelism: list[int],
    batch_rows: int,
    disk: list[int | None],
) -> None:
    make = maker(Everything, RETURNS)
    driven = subtasks(make, ["k"], parallelism[6], batch_rows=batch_rows, disk_bytes=disk[6])
    model, reached = Model(), 0
    for number, (rows, watermark) in enumerate(steps):
        if number in restarts:
            driven.restart(number, parallelism[number], disk_bytes=disk[number])
        for begin in range(0, len(rows), cut):
            driven.feed(batch(*rows[begin : begin + cut]))
        for row in rows:
            model.row(*row)
        reached = max(reached, watermark)
        driven.watermark(reached * S)
        model.watermark(reached)
    for subtask in driven.subtasks:
        subtask.watermark(WATERMARK_MAX)
        subtask.operator.end()
    model.watermark(math.inf)
    got = defaultdict(list)
    for r in driven.rows:
        got[r["k"]].append((r["total"], r["text"], r["items"], r["c"], r["ts"]))
    assert got == model.out


def test_the_watermark_is_known_after_a_restart(subtasks: Any) -> None:
    class Late(rf.KeyedProcessFunction):
        def process(self, row: Any, ctx: Any) -> Iterator[Any]:
            yield {"late": ctx.timestamp <= ctx.watermark, "watermark": ctx.watermark}

    driven = subtasks(maker(Late), ["k"])
    driven.feed(batch(("a", 1, 0)))
    driven.watermark(5 * S)
    driven.restart(1, 3)
    driven.feed(batch(("a", 1, 0), ("b", 6, 0)))
    driven.watermark(4 * S)
    driven.feed(batch(("a", 4.5, 0)))
    assert [r["late"] for r in driven.rows if r["watermark"] == datetime.min] == [False]
    assert sorted(r["late"] for r in driven.rows if r["watermark"] == at(5)) == [False, True, True]
