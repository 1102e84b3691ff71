from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.model.errors import PlanError

RATES = pa.table(
    {
        "k": pa.array(["a", "b"]),
        "n": pa.array([1, 2], pa.int32()),
        "rate": pa.array([0.5, 1.5]),
        "t": pa.array([0, 1000], pa.timestamp("ms")),
    }
)


@pytest.fixture
def rates(env: rf.StreamEnvironment) -> Any:
    """A stream of k (string), n (int32), rate (double) and t (timestamp[ms])."""
    return env.from_arrow(RATES)


def fields(stream: Any) -> list[str]:
    return [f"{field.name} {field.type}" for field in stream.schema]


def test_columns_are_the_keys_then_left_then_right_with_a_suffix_where_names_clash(
    rows: Any, rates: Any
) -> None:
    joined = rows.select("n", "k", "x").join(rates.drop("t"), on="k")
    assert fields(joined) == ["k string", "n int64", "x double", "n_right int32", "rate double"]
    renamed = rows.select("n", "k").join(rates.rename(k="key").drop("t"), on={"k": "key"}, suffix="_r")
    assert fields(renamed) == ["k string", "n int64", "n_r int32", "rate double"]


def test_an_inner_join_of_append_streams_appends_and_lies_by_its_keys(rows: Any, rates: Any) -> None:
    info = rows.join(rates, on="k")._info
    assert (info.is_upsert, info.time_column, info.partitioned_by) == (False, None, ("k",))


@pytest.mark.parametrize("how", ["left", "right", "full"])
def test_an_outer_join_is_an_upsert_stream_of_whole_rows(rows: Any, rates: Any, how: Any) -> None:
    joined = rows.drop("tags").join(rates, on="k", how=how)
    assert (joined._info.is_upsert, joined._info.whole_rows) == (True, True)
    assert joined.select("rate", "x")._info.upsert_key == ("rate", "x")
    with pytest.raises(PlanError, match="upsert stream"):
        joined.write_parquet("/tmp/x")


def test_both_sides_are_hashed_by_their_own_columns(env: Any, rows: Any, rates: Any) -> None:
    rows.join(rates.rename(k="key"), on={"k": "key"}).discard()
    edges = [(edge.exchange.kind, edge.exchange.keys, edge.port) for edge in env.plan().edges]
    assert edges[:2] == [("hash", ("k",), 0), ("hash", ("key",), 1)]


def test_rows_that_lie_by_the_keys_are_not_dealt_out_again(env: Any, rows: Any, rates: Any) -> None:
    once = rows.join(rates, on="k")
    once.join(rates.rename(rate="again"), on="k", suffix="_2").discard()
    between = [e for e in env.plan().edges if (e.source, e.target) == ("join-1", "join-2")]
    assert [edge.exchange.kind for edge in between] == ["forward"]


def test_a_join_that_keeps_rows_of_an_endless_input_for_ever_is_warned_of(env: Any, rows: Any) -> None:
    ticks = env.generate(lambda start, count: pa.record_batch({"k": ["a"] * count}), rows=None)
    rows.join(ticks, on="k", ttl="1h").discard()
    assert not [text for text in env.plan().warnings if "for ever" in text]
    rows.join(ticks, on="k").discard()
    (warning,) = [text for text in env.plan().warnings if "for ever" in text]
    assert "test_joins.py" in warning


def test_an_upsert_input_shows_its_old_rows_where_their_join_key_may_change(
    env: Any, rows: Any, rates: Any
) -> None:
    counts = rows.key_by("k").aggregate(n=rf.count(), x=col("x").max())
    for on, wants in (("k", False), (["k", "n"], True), ("n", True)):
        joined = counts.join(rates.with_columns(n=col("n").cast("int64")), on=on)
        assert joined._info.whole_rows
        assert (joined._node.id in env._wants_old_rows) == wants
    again = joined.join(rates.drop("n"), on="k", suffix="_3")
    assert again._node.id in env._wants_old_rows


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: a.join(b, on="kk"), "left stream: unknown column 'kk'; did you mean 'k'"),
        (lambda a, b: a.join(b, on={"k": "kk"}), "right stream: unknown column 'kk'"),
        (
            lambda a, b: a.join(b, on="n"),
            r"'n' is int64 on the left, column 'n' is int32 on the right; cast one of them, such as "
            r"\.with_columns\(n=col\('n'\)\.cast\(pa\.int64\(\)\)\)",
        ),
        (lambda a, b: b.join(a, on="n"), r"such as \.with_columns\(n=col\('n'\)\.cast\(pa\.int64\(\)\)\)"),
        (lambda a, b: a.join(b, on={"x": "n"}), r"n=col\('n'\)\.cast\(pa\.float64\(\)\)"),
        (lambda a, b: a.join(b, on={"t": "k"}), r"t=col\('t'\)\.cast\(pa\.string\(\)\)"),
        (lambda a, b: a.join(b, on=[]), "expected one or more columns"),
        (lambda a, b: a.join(b, on=["k", "k"]), "none of them twice"),
        (lambda a, b: a.join(b, on=5), "expected a column's name, a list of names, or {'left': 'right'}"),
        (
            lambda a, b: a.join(b, on="k", how="outer"),
            "how='outer': expected 'inner', 'left', 'right' or 'full'",
        ),
        (lambda a, b: a.join(b, on="k", ttl="soon"), r"join\(ttl=\)"),
        (lambda a, b: a.join(b, on="k", suffix=""), "suffix='': expected a text"),
        (lambda a, b: a.join("b", on="k"), "expected another stream; got 'b'"),
        (lambda a, b: a.join(b.with_columns(x=1, x_right=2), on="k"), "two columns are named 'x_right'"),
        (lambda a, b: a.join(a, on="tags"), "'tags' of type list<item: string> cannot be a key"),
        (
            lambda a, b: a.key_by("k").aggregate(c=col("k").max()).drop("k").join(b, on={"c": "k"}),
            "key of an upsert stream was dropped",
        ),
    ],
)
def test_what_cannot_work_is_a_plan_error_at_the_users_line(
    rows: Any, rates: Any, call: Any, message: str
) -> None:
    with pytest.raises(PlanError, match=message) as error:
        call(rows, rates)
    assert "test_joins.py" in str(error.value.location)


def test_streams_of_different_environments_do_not_join(rows: Any) -> None:
    other = rf.StreamEnvironment().from_rows([{"k": "a"}])
    with pytest.raises(PlanError, match="different environments"):
        rows.join(other, on="k")


def test_keys_computed_before_join_by_their_new_type(rows: Any, rates: Any) -> None:
    joined = rows.join(rates.with_columns(n=col("n").cast("int64")), on=["k", "n"])
    assert fields(joined)[:3] == ["k string", "n int64", "x double"]


# --------------------------------------------------------------------------------- joins by event time


@pytest.fixture
def timed(rows: Any, rates: Any) -> tuple[Any, Any]:
    """Both streams, with event time `t`."""
    watermark = rf.Watermark("t")
    return rows.drop("tags").assign_watermarks(watermark), rates.assign_watermarks(watermark)


def test_a_window_join_has_bounds_and_is_timed_by_their_start(timed: Any) -> None:
    a, b = timed
    joined = a.join(b, on="k", window=rf.Sliding("10s", "2s"), how="full")
    assert fields(joined)[:4] == [
        "k string",
        "window_start timestamp[ms]",
        "window_end timestamp[ms]",
        "n int64",
    ]
    info = joined._info
    assert (info.is_upsert, info.time_column, info.window_ns) == (False, "window_start", (2 * 10**9, 0))


def test_windows_joined_by_their_start_have_it_once(timed: Any) -> None:
    a, b = timed
    counts = [s.key_by("k").window(rf.Tumbling("2s")).aggregate(c=rf.count()) for s in (a, b)]
    joined = counts[0].join(
        counts[1].drop("window_end"), on=["k", "window_start"], window=rf.Tumbling("2s"), suffix="_b"
    )
    assert joined.schema.names == ["k", "window_start", "window_end", "c", "c_b"]


def test_interval_and_temporal_joins_keep_the_left_time(timed: Any) -> None:
    a, b = timed
    joined = a.key_by("k").interval_join(b.key_by("k"), lower="-10s", upper="0s")
    assert joined.schema.names == ["k", "n", "x", "t", "n_right", "rate", "t_right"]
    assert (joined._info.time_column, joined._info.is_upsert) == ("t", False)
    assert a.temporal_join(b, on="k", how="left")._info.time_column == "t"


def test_a_broadcast_join_sends_the_right_side_everywhere_and_keeps_the_left_time(
    env: Any, timed: Any
) -> None:
    a, b = timed
    joined = a.broadcast_join(b, on="k")
    joined.discard()
    edges = {edge.port: edge.exchange.kind for edge in env.plan().edges if edge.target == "broadcast_join-1"}
    assert edges == {0: "forward", 1: "broadcast"}
    assert joined._info.time_column == "t"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda a, b: a.key_by("k").aggregate(n=rf.count()).broadcast_join(b, on="k"),
            "broadcast_join is not supported on upsert streams",
        ),
        (lambda a, b: a.broadcast_join(b, on="k", how="right"), "how='right': expected 'inner' or 'left'"),
        (lambda a, b: a.drop("t").join(b, on="k", window=rf.Tumbling("1s")), "left stream has no watermark"),
        (lambda a, b: a.temporal_join(b.drop("t"), on="k"), "right stream has no watermark"),
        (lambda a, b: a.join(b, on="k", window="1s"), "expected rf.Tumbling or rf.Sliding by event time"),
        (
            lambda a, b: a.join(b, on="k", window=rf.Tumbling("1s", time="processing")),
            "expected rf.Tumbling or rf.Sliding by event time",
        ),
        (lambda a, b: a.join(b, on="k", window=rf.Tumbling("1500us")), "no multiple of the unit"),
        (lambda a, b: a.join(b, on="k", window=rf.Tumbling("1s"), ttl="1h"), "exclude each other"),
        (lambda a, b: a.join(b.key_by("k"), on="k"), "the stream itself, not by key"),
        (lambda a, b: a.temporal_join(b, on="k", how="full"), "how='full': expected 'inner' or 'left'"),
        (lambda a, b: a.key_by("k").interval_join(b, "0s", "1s"), "expected a keyed stream"),
        (
            lambda a, b: a.key_by("k").interval_join(b.key_by("k", "n"), "0s", "1s"),
            "keys of different length",
        ),
        (
            lambda a, b: a.key_by("k").interval_join(b.key_by("k"), "1s", "-1s"),
            "lower='1s' is above upper='-1s'",
        ),
        (lambda a, b: a.key_by("k").interval_join(b.key_by("k"), "-x", "1s"), r"interval_join\(lower=\)"),
        (lambda a, b: a.key_by("n").interval_join(b.key_by("n"), "0s", "1s"), "int64 on the left"),
        (
            lambda a, b: a.temporal_join(b.key_by("k").aggregate(n=rf.count()), on="k"),
            "temporal_join is not supported on upsert streams",
        ),
    ],
)
def test_what_cannot_work_in_time_is_a_plan_error(timed: Any, call: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        call(*timed)
    assert "test_joins.py" in str(error.value.location)
