"""What the sketches promise beyond small sets, which `test_columns` covers with the exact aggregates."""

from __future__ import annotations

from typing import Any

import datasketches
import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.expressions import col
from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.accumulators.sketches import LG_REGISTERS, QUANTILE_K, DistinctSketches

INT64 = pa.int64()
ONE = np.array([0])
INTS = pa.schema([("v", pa.int64())])


def distinct(type_: pa.DataType = INT64) -> AggregateColumns:
    schema = pa.schema([("v", type_)])
    return AggregateColumns([("n", col("v").approx_count_distinct())], schema)


def quantile(q: float) -> AggregateColumns:
    return AggregateColumns([("q", col("v").approx_quantile(q))], INTS)


def feed(columns: AggregateColumns, values: Any, slots: Any = None, limit: int = 1) -> AggregateColumns:
    array = values if isinstance(values, pa.Array) else pa.array(values)
    slots = np.zeros(len(array), np.int64) if slots is None else slots
    columns.update(pa.record_batch([array], names=["v"]), slots, limit)
    return columns


def moved(
    columns: AggregateColumns, into: AggregateColumns, slot: int = 0, limit: int = 1
) -> AggregateColumns:
    """Merge what `columns` has in slot 0 into `slot`, by way of a snapshot."""
    state = columns.freeze().state_columns(ONE)
    table = pa.RecordBatch.from_arrays([c for _, c in state], names=[n for n, _ in state])
    into.merge(table, np.array([slot]), limit)
    return into


def result(columns: AggregateColumns, slot: int = 0) -> Any:
    return columns.results(np.array([slot]))[0].to_pylist()[0]


@pytest.mark.parametrize(
    "values",
    [
        pa.array(range(-100, 200)),
        pa.array([i / 4 for i in range(300)]),
        pa.array(["é" * (i % 40) + f"{i}" for i in range(300)]),
        pa.array(range(300), pa.timestamp("us")),
    ],
    ids=lambda values: str(values.type),
)
def test_sketches_are_those_that_the_library_makes_of_the_same_values(values: pa.Array) -> None:
    columns = feed(distinct(values.type), values)
    ((name, state),) = columns.freeze().state_columns(ONE)
    assert (name, state.type) == ("n.sketch", pa.large_binary())
    theirs = datasketches.hll_sketch(LG_REGISTERS, datasketches.HLL_8)
    for value in values.cast(pa.int64()) if pa.types.is_timestamp(values.type) else values:
        theirs.update(value.as_py())
    theirs_is_ours = datasketches.hll_union(LG_REGISTERS)
    theirs_is_ours.update(datasketches.hll_sketch.deserialize(state[0].as_py()))
    theirs_is_ours.update(theirs)
    assert theirs_is_ours.get_estimate() == theirs.get_estimate()
    assert result(columns) == 300


def test_counts_of_distinct_values_keep_their_error_bound() -> None:
    # 60 sets of 20,000 values each, every value twice.
    values = np.arange(60 * 20_000)
    columns = distinct()
    for _ in range(2):
        feed(columns, values, values % 60, 60)
    counts = columns.results(np.arange(60))[0].to_numpy()
    errors = counts / 20_000 - 1
    assert np.abs(errors).max() < 0.065  # 4 standard errors
    assert np.sqrt(np.mean(errors**2)) < 0.025
    assert columns.nbytes < 60 * 5000


def test_a_count_depends_on_the_set_of_values_only() -> None:
    values = np.random.default_rng(7).permutation(50_000)
    at_once = feed(distinct(), values)
    in_batches = distinct()
    for piece in np.array_split(values[::-1], 13):
        in_batches = moved(feed(in_batches, piece), distinct())
    merged = moved(feed(distinct(), values[:30_000]), feed(distinct(), values[20_000:]))
    assert result(at_once) == result(in_batches) == result(merged)
    assert abs(result(at_once) / 50_000 - 1) < 0.065


def test_quantiles_of_many_values_keep_their_error_bound() -> None:
    values = np.random.default_rng(7).permutation(100_000)
    for q in (0.0, 0.01, 0.5, 0.99, 1.0):
        columns = quantile(q)
        for piece in np.array_split(values, 9):
            columns = moved(feed(columns, piece), quantile(q))
        rank = (result(columns) + 1) / 100_000
        assert abs(rank - q) < 0.02  # three times the bound that 99 of 100 keep
        assert columns.nbytes < 12_000


def test_quantiles_are_exact_up_to_k_values() -> None:
    values = np.random.default_rng(7).permutation(QUANTILE_K)
    assert [result(feed(quantile(q), values)) for q in (0, 0.25, 0.5, 1)] == [0, 99, 199, QUANTILE_K - 1]


def test_times_keep_their_type() -> None:
    schema = pa.schema([("v", pa.timestamp("ns", "UTC"))])
    columns = AggregateColumns([("q", col("v").approx_quantile(0.5))], schema)
    times = pa.array([10**18, 3 * 10**18, 2 * 10**18], schema.field(0).type)
    columns.update(pa.record_batch([times], schema=schema), np.array([0, 0, 0]), 2)
    (found,) = columns.results(np.array([0, 1]))
    assert found.type == schema.field(0).type
    assert found.cast(pa.int64()).to_pylist() == [2 * 10**18, None]


@pytest.mark.parametrize("make", [distinct, lambda: quantile(0.5)])
def test_what_was_frozen_does_not_see_what_comes_later(make: Any) -> None:
    columns = feed(make(), range(1000))
    before, frozen = result(columns), columns.freeze()
    state = frozen.state_columns(ONE)[0][1].to_pylist()
    feed(columns, range(1000, 5000))
    columns.clear(np.array([0]))
    feed(columns, range(3))
    assert frozen.state_columns(ONE)[0][1].to_pylist() == state
    restored = make()
    restored.merge(
        pa.RecordBatch.from_arrays([pa.array(state)], names=[frozen.state_columns(ONE)[0][0]]), ONE, 1
    )
    assert result(restored) == pytest.approx(before, rel=0.02)
    assert result(columns) in (3, 1)


def test_a_batch_of_more_values_than_an_image_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from rayflow.state.accumulators import sketch_kernels

    whole = result(feed(distinct(), range(5000)))
    monkeypatch.setattr(sketch_kernels, "MAX_COUPONS", 700)
    assert result(feed(distinct(), range(5000))) == whole
    assert isinstance(DistinctSketches(pa.int64(), pa.int64()).nbytes, int)
