from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import PlanError, col


@pytest.fixture
def rows(env: Any) -> Any:
    table = pa.table({"k": ["a"], "n": [1], "t": pa.array([0], pa.timestamp("ms")), "l": [[1]], "s": ["x"]})
    return env.from_arrow(table, watermark=rf.Watermark("t"))


def info(stream: Any) -> Any:
    return stream._info


def test_what_tells_the_rows_apart_depends_on_rank_and_number(rows: Any) -> None:
    keyed = rows.key_by("k")
    ranked = keyed.top_n(3, "n", rank="r")
    assert ranked.schema == rows.schema.append(pa.field("r", pa.int64()))
    assert (info(ranked).upsert_key, info(ranked).whole_rows) == (("k", "r"), False)
    assert (info(keyed.top_n(1, "n")).upsert_key, info(keyed.top_n(1, "n")).whole_rows) == (("k",), False)
    assert (info(keyed.top_n(2, "n")).upsert_key, info(keyed.top_n(2, "n")).whole_rows) == (("k",), True)
    assert info(ranked).time_column is None


def test_whole_rows_lie_by_what_is_left_of_them(rows: Any) -> None:
    top = rows.key_by("k").top_n(2, "n")
    assert info(top.rename(k="key").drop("s")).upsert_key == ("key",)
    assert info(top.select("n", "l")).upsert_key == ("n",)
    assert info(top.select("l")).upsert_key is None


@pytest.mark.parametrize(
    ("order_by", "shown"),
    [
        ("n", 'col("n") desc'),
        (col("n"), 'col("n") desc'),
        (("n", "asc"), 'col("n") asc'),
        (
            ["s", ("n", "descending"), (col("n") + 1).asc()],
            'col("s") desc, col("n") desc, (col("n") + 1) asc',
        ),
    ],
)
def test_an_order_is_largest_first_unless_it_says_otherwise(rows: Any, order_by: Any, shown: str) -> None:
    assert rows.key_by("k").top_n(1, order_by)._node.spec.detail.endswith(f"ordered by {shown}")


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda k: k.top_n(0, "n"), "from 1"),
        (lambda k: k.top_n(True, "n"), "from 1"),
        (lambda k: k.top_n(1, []), "at least one"),
        (lambda k: k.top_n(1, "m"), "unknown column 'm'"),
        (lambda k: k.top_n(1, ("n", "up")), "'asc' or 'desc'"),
        (lambda k: k.top_n(1, ("n", "s", "asc")), "list"),
        (lambda k: k.top_n(1, [["n"]]), "expected a column"),
        (lambda k: k.top_n(1, "l"), r"list.*no order"),
        (lambda k: k.top_n(1, "n", rank="n"), "two columns are named 'n'"),
        (lambda k: k.top_n(1, "n", rank=3), "name of a column"),
        (lambda k: k.top_n(1, "n", ties="both"), "'first' or 'last'"),
        (lambda k: k.top_n(1, col("n").max()), "aggregate"),
        (lambda k: k.top_n(2, "n").write_parquet("/tmp/x", mode="upsert"), "leave it out"),
        (lambda k: k.top_n(2, "n").execute_and_collect(local=True), "leave it out"),
        (lambda k: k.top_n(2, "n").write_parquet("/tmp/x"), "mode='upsert'"),
    ],
)
def test_a_mistake_is_a_plan_error_at_the_users_line(rows: Any, call: Any, says: str) -> None:
    with pytest.raises(PlanError, match=says) as error:
        call(rows.key_by("k"))
    assert "test_top_n.py" in str(error.value.location)
