from __future__ import annotations

import pickle

import pyarrow as pa
import pytest

from rayflow.batch.aggregates import AggregateExpr, count
from rayflow.batch.expressions import col
from rayflow.model.errors import PlanError

SCHEMA = pa.schema(
    {
        "i": pa.int32(),
        "u": pa.uint8(),
        "f": pa.float32(),
        "d": pa.decimal128(10, 2),
        "w": pa.decimal256(50, 3),
        "s": pa.string(),
        "k": pa.dictionary(pa.int8(), pa.string()),
        "t": pa.timestamp("ms"),
        "b": pa.bool_(),
        "l": pa.list_(pa.int8()),
    }
)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        (count(), pa.int64()),
        (col("s").count(), pa.int64()),
        (col("i").sum(), pa.int64()),
        (col("u").sum(), pa.uint64()),
        (col("f").sum(), pa.float64()),
        (col("d").sum(), pa.decimal128(38, 2)),
        (col("w").sum(), pa.decimal256(76, 3)),
        (col("i").mean(), pa.float64()),
        (col("d").mean(), pa.float64()),
        (col("f").stddev(), pa.float64()),
        (col("i").variance(), pa.float64()),
        (col("i").min(), pa.int32()),
        (col("s").max(), pa.string()),
        (col("k").min(), pa.string()),
        (col("t").max(), pa.timestamp("ms")),
        (col("b").max(), pa.bool_()),
        (col("l").first(), pa.list_(pa.int8())),
        (col("t").last(), pa.timestamp("ms")),
        (col("k").count_distinct(), pa.int64()),
        (col("k").collect_list(), pa.list_(pa.string())),
        (col("k").approx_count_distinct(), pa.int64()),
        (col("d").approx_quantile(0.5), pa.float64()),
        (col("t").approx_quantile(1), pa.timestamp("ms")),
        ((col("i") + col("f")).sum().filter(col("b") & (col("i") > 0)), pa.float64()),
    ],
)
def test_result_types_follow_sql(aggregate: AggregateExpr, expected: pa.DataType) -> None:
    assert aggregate.output_type(SCHEMA) == expected
    copy = pickle.loads(pickle.dumps(aggregate))
    assert repr(copy) == repr(aggregate)
    assert copy.output_type(SCHEMA) == expected


@pytest.mark.parametrize(
    ("aggregate", "message"),
    [
        (
            col("s").sum(),
            'col("s").sum(): the input is of type string, expected integers, floats or decimals',
        ),
        (col("b").sum(), "of type bool"),
        (col("t").mean(), "of type timestamp"),
        (col("l").min(), "of type list"),
        (col("l").count_distinct(), "cannot be a key"),
        (col("l").approx_count_distinct(), "cannot be a key"),
        (col("s").approx_quantile(0.5), 'col("s").approx_quantile(q=0.5): the input is of type string'),
        (col("b").approx_quantile(0.5), "of type bool, expected integers, floats, decimals, dates, times"),
        (
            col("i").approx_quantile(1.5),
            "q is 1.5, expected a number from 0 (the smallest) to 1 (the largest)",
        ),
        (col("i").approx_quantile("0.5"), "q is '0.5'"),  # type: ignore[arg-type]
        (col("nope").sum(), "unknown column 'nope'"),
        (col("i").sum().filter(col("i")), "the filter is of type int32, expected bool"),
        (count().filter(col("nope")), "unknown column 'nope'"),
    ],
)
def test_wrong_inputs_fail_when_the_plan_is_built(aggregate: AggregateExpr, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        aggregate.output_type(SCHEMA)
    assert message in str(caught.value)


def test_aggregates_win_over_functions_of_the_same_name() -> None:
    assert {m: getattr(col("x"), m)().kind for m in ("count", "min", "first", "mean")} == {
        "count": "count",
        "min": "min",
        "first": "first",
        "mean": "mean",
    }


def test_filters_add_up_and_aliases_stick() -> None:
    aggregate = col("i").sum().filter(col("b")).alias("n").filter(col("i") > 0)
    assert aggregate.name == "n"
    assert aggregate.columns() == {"i", "b"}
    assert repr(aggregate) == 'col("i").sum().filter((col("b") & (col("i") > 0))).alias("n")'


def test_values_and_rows_selected_are_evaluated_by_batch() -> None:
    batch = pa.record_batch({"k": pa.array(["x", None]).dictionary_encode(), "b": [None, True]})
    aggregate = col("k").min().filter(col("b"))
    values, selected = aggregate.input_values(batch), aggregate.selected(batch)
    assert values is not None
    assert values.type == pa.string()
    assert selected is not None
    assert selected.to_pylist() == [None, True]
    assert count().input_values(batch) is None
    assert count().selected(batch) is None
