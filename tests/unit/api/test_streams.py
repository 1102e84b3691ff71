from __future__ import annotations

import pickle
from typing import Any

import cloudpickle
import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.model.errors import PlanError


def here(error: pytest.ExceptionInfo[PlanError], text: str) -> bool:
    """Whether the error names this file and the line with `text`."""
    return "test_streams.py" in str(error.value.location) and text in str(error.value.location)


def fields(stream: Any) -> dict[str, str]:
    return {field.name: str(field.type) for field in stream.schema}


# --------------------------------------------------------------------------------------- projections


def test_select_takes_names_expressions_and_named_expressions(rows: Any) -> None:
    stream = rows.select("k", col("n").alias("m"), half=col("n") / 2, same="x", one=1)
    assert fields(stream) == {"k": "string", "m": "int64", "half": "double", "same": "double", "one": "int64"}


def test_with_columns_replaces_in_place_and_appends(rows: Any) -> None:
    stream = rows.with_columns(n=col("n").cast("int32"), s=col("k").utf8_upper())
    assert list(fields(stream)) == ["k", "n", "x", "t", "tags", "s"]
    assert fields(stream)["n"] == "int32"


def test_drop_and_rename(rows: Any) -> None:
    assert list(fields(rows.drop("tags", "x").rename(k="key").rename({"n": "N"}))) == ["key", "N", "t"]


def test_explode_gives_the_element_type(rows: Any) -> None:
    assert fields(rows.explode("tags"))["tags"] == "string"


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.select("nn"),
        lambda s: s.with_columns(y=col("nn") + 1),
        lambda s: s.drop("nn"),
        lambda s: s.rename(nn="m"),
        lambda s: s.filter(col("nn") > 1),
        lambda s: s.key_by("nn"),
        lambda s: s.explode("nn"),
        lambda s: s.assign_watermarks(rf.Watermark("nn")),
        lambda s: s.key_by("k").aggregate(y=col("nn").sum()),
        lambda s: s.write_parquet("/tmp/x", partition_by="nn"),
    ],
)
def test_an_unknown_column_names_the_nearest_and_the_users_line(rows: Any, call: Any) -> None:
    with pytest.raises(PlanError, match=r"unknown column 'nn'.*did you mean 'n'") as error:
        call(rows)
    assert here(error, "lambda s:")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s: s.filter(col("n") + 1), "expected a condition"),
        (lambda s: s.filter("n"), "expected a function"),
        (lambda s: s.select(y=col("k") + 1), "col"),
        (lambda s: s.select("n", "n"), "two columns are named 'n'"),
        (lambda s: s.select(), "no column is left"),
        (lambda s: s.select(rf.count()), "aggregates go into"),
        (lambda s: s.select(__op=col("n")), "reserved"),
        (lambda s: s.explode("n"), "expected a list"),
        (lambda s: s.key_by(), "at least one column"),
        (lambda s: s.key_by("k", "k"), "twice"),
        (lambda s: s.key_by("tags"), "cannot be a key"),
        (lambda s: s.key_by(col("n") + 1), "compute it first"),
        (lambda s: s.key_by("k").aggregate(), "at least one"),
        (lambda s: s.key_by("k").aggregate(n=col("n")), "is not an aggregate"),
        (lambda s: s.key_by("k").aggregate(k=rf.count()), "two columns are named 'k'"),
        (lambda s: s.key_by("k").aggregate(y=col("k").mean()), "mean"),
        (lambda s: s.key_by("k").window(rf.Tumbling("1m")), "no watermark"),
        (lambda s: s.key_by("k").window("1m"), "expected a window"),
        (lambda s: s.assign_watermarks(rf.Watermark("n")), "expected a timestamp"),
        (lambda s: s.assign_watermarks("t"), "rf.Watermark"),
        (lambda s: s.assign_watermarks(rf.Watermark("t", max_drift="1s")), "max_drift"),
        (lambda s: rf.Watermark("t", delay="1 fortnight"), "delay"),
        (lambda s: rf.Tumbling("0s"), "longer than zero"),
        (lambda s: s.union(s.drop("n")), "different columns"),
        (lambda s: s.union(rf.StreamEnvironment().from_rows([{"a": 1}])), "different environments"),
        (lambda s: s.rebalance().name("x"), "only a way to the next one"),
        (lambda s: s.uid("a b"), "uid 'a b'"),
        (lambda s: s.with_parallelism(1000), "expected 1 to 128"),
        (lambda s: s.with_resources(num_cpus=-1), "num_cpus"),
        (lambda s: s.with_resources(memory="lots"), "expected a size"),
        (lambda s: s.write_parquet("/tmp/x", mode="upsert"), "only appends"),
        (lambda s: s.write_parquet("/tmp/x", mode="update"), "'append' or 'upsert'"),
        (lambda s: s.write_parquet("/tmp/x", if_exists="ignore"), "'overwrite'"),
        (lambda s: s.write_parquet("/tmp/x", rate_limit=0), "rate_limit"),
        (lambda s: s.sink_to(print), "rf.Sink"),
        (lambda s: s.map(7), "expected a function"),
        (lambda s: s.map(len, returns={"a": object}), "Arrow type"),
        (lambda s: s.map(len, returns=object), "returns="),
        (lambda s: s.map_batches(len, batch_format="excel"), "batch_format"),
        (lambda s: s.map_batches(len, batch_size=0), "batch_size"),
    ],
)
def test_a_mistake_is_a_plan_error_at_the_users_line(rows: Any, call: Any, says: str) -> None:
    with pytest.raises(PlanError) as error:
        call(rows)
    assert says in str(error.value)
    assert here(error, "lambda s:")


def test_a_row_in_order_must_not_be_too_far_ahead() -> None:
    with pytest.raises(PlanError, match=r"max_ahead='1h' must be longer than delay='2h'"):
        rf.Watermark("t", delay="2h", max_ahead="1h")


# ----------------------------------------------------------------------------------- Python functions


def test_without_returns_the_columns_are_unknown(rows: Any) -> None:
    stream = rows.map(lambda row: row)
    assert stream.schema is None
    for call in (
        lambda: stream.select("k"),
        lambda: stream.filter(col("k") == "a"),
        lambda: stream.key_by("k"),
        lambda: stream.rename(k="key"),
        lambda: stream.drop("k"),
        lambda: stream.with_columns(one=1),
    ):
        with pytest.raises(PlanError, match="returns="):
            call()
    assert stream.filter(lambda row: True).schema is None
    stream.write_parquet("/tmp/nowhere")


def test_returns_gives_the_columns(rows: Any) -> None:
    assert fields(rows.map(lambda row: row, returns={"a": int, "b": pa.float32()})) == {
        "a": "int64",
        "b": "float",
    }
    assert fields(rows.flat_map(lambda row: [1], returns=int)) == {"value": "int64"}
    assert fields(rows.map_batches(lambda b: b, returns=pa.schema({"z": pa.date32()}))) == {
        "z": "date32[day]"
    }


def test_filter_by_function_keeps_what_is_known(rows: Any) -> None:
    assert rows.filter(lambda row: row["n"] > 1).schema.equals(rows.schema)


def test_map_batches_takes_resources_and_concurrency(rows: Any) -> None:
    class Model:
        def __call__(self, batch: pa.RecordBatch) -> pa.RecordBatch:
            return batch

    rows.map_batches(Model, num_gpus=1, concurrency=3, returns=rows.schema).discard()
    vertex = rows._env.plan().vertices[1]
    assert (vertex.parallelism, vertex.resources.num_gpus) == (3, 1)


# ------------------------------------------------------------------------------------------------ time


@pytest.fixture
def timed(env: Any) -> Any:
    return env.from_rows(
        [{"k": "a", "n": 1, "t": 0}],
        schema={"k": str, "n": int, "t": pa.timestamp("ms")},
        watermark=rf.Watermark("t", delay="2s"),
    )


def windowed(stream: Any, key: str = "k") -> Any:
    return stream.key_by(key).window(rf.Tumbling("1m")).aggregate(n=rf.count())


def test_a_windows_result_has_keys_bounds_and_aggregates(timed: Any) -> None:
    stream = (
        timed.key_by("k").window(rf.Tumbling("1h", offset="90m")).aggregate(n=rf.count(), s=col("n").sum())
    )
    assert fields(stream) == {
        "k": "string",
        "window_start": "timestamp[ms]",
        "window_end": "timestamp[ms]",
        "n": "int64",
        "s": "int64",
    }


def test_event_time_follows_its_column(timed: Any) -> None:
    for stream in (
        timed.filter(col("n") > 0).rename(t="time").with_columns(z=col("n") + 1).drop("z"),
        timed.select("k", col("t").alias("u")),
        timed.map(lambda r: r, returns=timed.schema),
        timed.union(timed.filter(col("n") > 0)),
    ):
        assert fields(windowed(stream))["window_start"] == "timestamp[ms]"


@pytest.mark.parametrize(
    "step",
    [
        lambda s: s.drop("t"),
        lambda s: s.with_columns(t=col("t").cast("timestamp[s]")),
        lambda s: s.map(lambda r: r, returns={"k": str}),
        lambda s: s.union(s.drop("t").with_columns(t=col("n").cast("timestamp[ms]"))),
    ],
)
def test_event_time_is_lost_with_its_column(timed: Any, step: Any) -> None:
    with pytest.raises(PlanError, match="no watermark"):
        windowed(step(timed))


def test_windows_of_windows_must_nest(timed: Any) -> None:
    minutes = windowed(timed)
    minutes.key_by("k").window(rf.Tumbling("1h")).aggregate(n=col("n").sum())
    for other in (rf.Tumbling("90s"), rf.Tumbling("1h", offset="1s")):
        with pytest.raises(PlanError, match="would not lie within one"):
            minutes.key_by("k").window(other)
    again = minutes.assign_watermarks(rf.Watermark("window_end", delay="1m"))
    again.key_by("k").window(rf.Tumbling("90s")).aggregate(n=rf.count())


def test_a_window_must_be_a_multiple_of_the_event_times_unit(timed: Any) -> None:
    with pytest.raises(PlanError, match="no multiple of the unit"):
        timed.key_by("k").window(rf.Tumbling("1us")).aggregate(n=rf.count())


def test_a_window_column_cannot_be_a_key_of_other_windows(timed: Any) -> None:
    minutes = windowed(timed)
    with pytest.raises(PlanError, match="rename it first"):
        windowed(minutes, "window_end")
    with pytest.raises(PlanError, match="rename it first"):
        minutes.key_by("window_start").window(rf.Tumbling("2m"))


def test_results_of_a_window_are_grouped_by_its_start(timed: Any) -> None:
    total = windowed(windowed(timed), "window_start")
    assert list(fields(total)) == ["window_start", "window_end", "n"]


# --------------------------------------------------------------------------------------------- upserts


@pytest.fixture
def counts(rows: Any) -> Any:
    return rows.key_by("k").aggregate(n=rf.count())


def test_a_running_aggregate_is_an_upsert_stream_by_its_keys(counts: Any) -> None:
    assert fields(counts) == {"k": "string", "n": "int64"}
    assert counts._info.upsert_key == ("k",)
    counts.write_parquet("/tmp/x", mode="upsert")
    counts.print()
    counts.discard()


def test_an_upsert_stream_into_an_append_sink_is_refused(counts: Any) -> None:
    class Own(rf.Sink):
        def write(self, batch: pa.RecordBatch) -> None: ...

    for call in (lambda: counts.write_csv("/tmp/x"), lambda: counts.sink_to(Own())):
        with pytest.raises(PlanError, match="mode='upsert'"):
            call()
    own = Own()
    own.accepts_upserts = True
    counts.sink_to(own)


def test_the_upsert_key_follows_its_column_and_is_missed_when_dropped(counts: Any) -> None:
    counts.rename(k="key").filter(col("n") > 1).write_parquet("/tmp/x", mode="upsert")
    for lost in (counts.drop("k"), counts.with_columns(k=col("k").utf8_upper())):
        lost.print()
        with pytest.raises(PlanError, match="key of this upsert stream was dropped"):
            lost.write_parquet("/tmp/x", mode="upsert")
        with pytest.raises(PlanError, match="key of this upsert stream was dropped"):
            lost.execute_and_collect(local=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda s: s.key_by("k").window(rf.CountWindow(3)),
        lambda s: s.key_by("k").filter(col("n") > 1),
        lambda s: s.map(lambda r: r),
        lambda s: s.explode("k"),
        lambda s: s.rebalance(),
        lambda s: s.union(s),
    ],
)
def test_what_upserts_do_not_support_says_so(counts: Any, call: Any) -> None:
    with pytest.raises(PlanError, match="not supported on upsert streams"):
        call(counts)


def test_an_upsert_stream_can_be_grouped_by_another_key(counts: Any) -> None:
    keyed = counts.key_by("n")
    assert fields(keyed.aggregate(keys=rf.count())) == {"n": "int64", "keys": "int64"}
    assert fields(keyed.top_n(1, "k")) == {"k": "string", "n": "int64"}
    # Rows are taken back by their values: the key may be lost.
    counts.select("n").key_by("n").aggregate(keys=rf.count()).discard()


# ------------------------------------------------------------------------------------------------ plans


def edges(env: Any) -> list[tuple[str, str, str]]:
    return [(e.source, e.exchange.kind, e.target) for e in env.plan().edges]


def test_an_upsert_sink_lies_by_the_key_already(counts: Any, env: Any) -> None:
    counts.rename(k="key").write_parquet("/tmp/x", mode="upsert")
    assert edges(env) == [("from_arrow-1", "hash", "aggregate-1")]


def test_rows_of_an_upsert_stream_keep_their_order_at_another_parallelism(counts: Any, env: Any) -> None:
    counts.rename(k="key").with_parallelism(3).print().with_parallelism(1)
    assert edges(env)[1:] == [("aggregate-1", "hash", "rename-1"), ("rename-1", "hash", "print-1")]


def test_grouping_by_the_same_key_again_needs_no_exchange(timed: Any, env: Any) -> None:
    inner = windowed(timed)
    inner.key_by("k").window(rf.Tumbling("1h")).aggregate(n=col("n").sum()).discard()
    assert edges(env) == [("from_rows-1", "hash", "window-1")]


def test_old_rows_are_made_only_where_they_are_printed(rows: Any, env: Any) -> None:
    rows.key_by("k").aggregate(n=rf.count()).uid("printed").print()
    rows.key_by("k").aggregate(n=rf.count()).uid("written").write_parquet("/tmp/x", mode="upsert")
    emits = {v.id: v.operators[0].payload.args[-1] for v in env.plan().vertices[1:]}
    assert emits == {"printed": True, "written": False}


def test_a_sink_of_ones_own_may_want_old_rows(rows: Any, env: Any) -> None:
    class Own(rf.Sink):
        accepts_upserts = wants_old_rows = True

        def write(self, batch: pa.RecordBatch) -> None: ...

    rows.key_by("k").aggregate(n=rf.count()).sink_to(Own())
    assert env.plan().vertices[1].operators[0].payload.args[-1]


def test_old_rows_are_made_for_whoever_takes_them_back(rows: Any, env: Any) -> None:
    inner = rows.key_by("k").aggregate(n=rf.count()).uid("inner")
    outer = inner.filter(col("n") > 1).uid("kept").key_by("n").aggregate(keys=rf.count()).uid("outer")
    outer.write_parquet("/tmp/x", mode="upsert")
    emits = {
        op.uid: op.payload.args[-1]
        for v in env.plan().vertices
        for op in v.operators
        if op.kind == "operator"
    }
    assert emits == {"inner": True, "kept": True, "outer": False}


def test_changes_without_a_key_may_not_be_dealt_out_before_they_are_taken_back(rows: Any, env: Any) -> None:
    counts = rows.key_by("k").aggregate(n=rf.count()).select("n")
    shown = counts.filter(col("n") > 1).with_parallelism(3)
    shown.key_by("n").aggregate(keys=rf.count()).discard()
    with pytest.raises(PlanError, match="out of order"):
        env.plan()


def test_settings_reach_the_plan(rows: Any, env: Any) -> None:
    rows.name("in").uid("source-uid").with_resources(num_cpus=1, memory="1g")
    rows.filter(col("n") > 1).with_parallelism(4).write_json("/tmp/x", rate_limit=5.0).uid(
        "out"
    ).with_parallelism(4)
    source, rest = env.plan().vertices
    assert (source.id, source.name, source.resources.memory) == ("source-uid", "in", 1 << 30)
    assert (rest.parallelism, rest.operators[1].uid, rest.operators[1].rate_limit) == (4, "out", 5.0)


def test_a_plan_pickles(rows: Any, env: Any) -> None:
    rows.filter(col("n") > 1).map(lambda row: row, returns={"k": str}).key_by("k").aggregate(
        n=rf.count()
    ).print()
    graph = pickle.loads(cloudpickle.dumps(env.plan()))
    assert [v.id for v in graph.vertices] == ["from_arrow-1", "aggregate-1"]


def test_duplicate_uids_name_both_lines(rows: Any, env: Any) -> None:
    rows.filter(col("n") > 1).uid("same").discard().uid("same")
    with pytest.raises(PlanError, match="two operators have the uid 'same'") as error:
        env.plan()
    assert str(error.value).count("test_streams.py") == 2
