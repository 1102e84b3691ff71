"""Process functions and connected streams in a plan: what is inferred, and mistakes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypedDict

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col


class Made(TypedDict):
    k: str
    n: int


class Keyed(rf.KeyedProcessFunction):
    count = rf.ValueState(int)

    def process(self, row: dict[str, Any], ctx: Any) -> Iterator[Made]:
        yield {"k": "a", "n": 1}


class Both(rf.CoProcessFunction):
    def process1(self, row: dict[str, Any], ctx: Any) -> Iterator[Made]:
        yield {"k": "a", "n": 1}

    def process2(self, row: dict[str, Any], ctx: Any) -> None:
        return None


class BothKeyed(Both):
    count = rf.ValueState(int)


class BothBroadcast(Both):
    rules = rf.MapState(str, int, broadcast=True)


@pytest.fixture
def rows() -> rf.DataStream:
    env = rf.StreamEnvironment()
    return env.from_arrow(pa.table({"k": ["a"], "v": [1], "t": pa.array([0], pa.timestamp("ms"))}))


def other(rows: rf.DataStream, type_: pa.DataType | None = None) -> rf.DataStream:
    return rows._env.from_arrow(pa.table({"id": pa.array(["a"]).cast(type_ or pa.string())}))


def test_columns_come_from_returns_or_the_hints_of_process(rows: rf.DataStream) -> None:
    assert rows.key_by("k").process(Keyed).schema == pa.schema({"k": pa.string(), "n": pa.int64()})
    assert rows.key_by("k").process(Keyed(), returns={"x": "int8"}).schema == pa.schema({"x": pa.int8()})
    assert rows.connect(other(rows)).process(Both).schema == pa.schema({"k": pa.string(), "n": pa.int64()})


def test_event_time_stays_where_its_column_does(rows: rf.DataStream) -> None:
    timed = rows.assign_watermarks(rf.Watermark("t"))
    keeps = {"t": pa.timestamp("ms"), "n": int}
    assert timed.key_by("k").process(Keyed, returns=keeps)._info.time_column == "t"
    assert timed.key_by("k").process(Keyed)._info.time_column is None
    rules = other(rows).broadcast()
    assert timed.connect(rules).process(BothBroadcast, returns=keeps)._info.time_column == "t"
    by_key = timed.key_by("k").connect(other(rows).key_by("id"))
    assert by_key.process(BothKeyed, returns=keeps)._info.time_column is None


def test_the_plan_shows_both_inputs(rows: rf.DataStream) -> None:
    rows.key_by("k").connect(other(rows).key_by("id")).process(BothKeyed).uid("both").discard()
    rows.connect(other(rows).broadcast()).process(BothBroadcast).uid("rules").discard()
    graph = rows._env.plan()
    assert [(e.exchange.kind, e.exchange.keys, e.port) for e in graph.edges if e.target == "both"] == [
        ("hash", ("k",), 0),
        ("hash", ("id",), 1),
    ]
    assert [(e.exchange.kind, e.port) for e in graph.edges if e.target == "rules"] == [
        ("forward", 0),
        ("broadcast", 1),
    ]


@pytest.mark.parametrize("fn", [print, lambda row, ctx: None, Both, Both(), 5, rf.KeyedProcessFunction])
def test_what_is_no_keyed_process_function_is_refused(rows: rf.DataStream, fn: Any) -> None:
    with pytest.raises(
        rf.PlanError, match=r"expected an rf\.KeyedProcessFunction|has no process\(self, row, ctx\)"
    ):
        rows.key_by("k").process(fn)


@pytest.mark.parametrize("fn", [print, Keyed, rf.CoProcessFunction])
def test_what_is_no_function_of_two_inputs_is_refused(rows: rf.DataStream, fn: Any) -> None:
    with pytest.raises(rf.PlanError, match=r"expected an rf\.CoProcessFunction|has no process1"):
        rows.connect(other(rows)).process(fn)


def test_streams_that_do_not_fit_are_refused(rows: rf.DataStream) -> None:
    keyed = rows.key_by("k")
    with pytest.raises(rf.PlanError, match=r"'k' is string, the other stream's 'id' is large_string.*cast"):
        keyed.connect(other(rows, pa.large_string()).key_by("id"))
    with pytest.raises(rf.PlanError, match="as many key columns"):
        rows.key_by("k", "v").connect(other(rows).key_by("id"))
    with pytest.raises(rf.PlanError, match="one stream is keyed and the other is not"):
        keyed.connect(other(rows))
    with pytest.raises(rf.PlanError, match="one stream is keyed and the other is not"):
        rows.connect(other(rows).key_by("id"))
    with pytest.raises(rf.PlanError, match="the broadcast stream comes second"):
        rows.broadcast().connect(other(rows))
    with pytest.raises(rf.PlanError, match="expected a stream"):
        rows.connect("rows")  # type: ignore[arg-type]
    with pytest.raises(rf.PlanError, match="different environments"):
        rows.connect(rf.StreamEnvironment().from_rows([{"a": 1}]))
    with pytest.raises(rf.PlanError, match="not supported on upsert streams"):
        rows.connect(keyed.aggregate(n=rf.count()))


def test_states_need_what_they_belong_to(rows: rf.DataStream) -> None:
    with pytest.raises(rf.PlanError, match="'count' of BothKeyed is state by key, but the rows have none"):
        rows.connect(other(rows)).process(BothKeyed)
    with pytest.raises(rf.PlanError, match="'rules' of BothBroadcast is broadcast state; connect"):
        rows.connect(other(rows)).process(BothBroadcast)


def test_a_plan_error_has_the_users_line(rows: rf.DataStream) -> None:
    with pytest.raises(rf.PlanError) as caught:
        rows.with_columns(v=col("v") + 1).key_by("k").process(print)  # type: ignore[arg-type]
    assert "test_processing.py" in str(caught.value.location)
