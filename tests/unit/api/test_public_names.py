"""What rayflow promises to its users has the names and parameters that the contract says, and is documented."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import rayflow as rf

# Calls, with the parameters that must be there, in this order (others may stand between and behind).
CALLS: dict[str, list[str]] = {
    "StreamEnvironment": ["name", "parallelism", "max_parallelism", "config"],
    "StreamEnvironment.read_parquet": ["path", "watermark", "schema", "rate_limit", "watch"],
    "StreamEnvironment.read_csv": ["path", "watermark", "schema", "rate_limit", "watch"],
    "StreamEnvironment.read_json": ["path", "watermark", "schema", "rate_limit", "watch"],
    "StreamEnvironment.read_text": ["path", "rate_limit", "watch"],
    "StreamEnvironment.from_batches": ["schema"],
    "StreamEnvironment.from_rows": ["rows"],
    "StreamEnvironment.from_arrow": ["table"],
    "StreamEnvironment.generate": ["fn", "rows", "rate_limit"],
    "StreamEnvironment.from_source": ["source"],
    "StreamEnvironment.execute": ["local"],
    "StreamEnvironment.submit": [],
    "DataStream.select": ["cols", "exprs"],
    "DataStream.with_columns": ["exprs"],
    "DataStream.drop": [],
    "DataStream.rename": [],
    "DataStream.filter": [],
    "DataStream.map": ["fn", "returns"],
    "DataStream.flat_map": ["fn", "returns"],
    "DataStream.map_batches": [
        *("fn", "batch_format", "batch_size", "returns", "num_cpus", "num_gpus", "concurrency"),
    ],
    "DataStream.map_async": ["fn", "capacity", "timeout", "ordered", "returns"],
    "DataStream.explode": [],
    "DataStream.union": ["others"],
    "DataStream.connect": ["other"],
    "DataStream.key_by": ["cols", "skew"],
    "DataStream.join": ["other", "on", "window", "how"],
    "DataStream.temporal_join": ["other", "on"],
    "DataStream.broadcast_join": ["other", "on"],
    "DataStream.rebalance": [],
    "DataStream.rescale": [],
    "DataStream.broadcast": [],
    "DataStream.assign_watermarks": ["watermark"],
    "DataStream.deduplicate": ["cols", "method", "ttl"],
    "DataStream.side_output": ["tag"],
    "DataStream.sink_to": ["sink"],
    "DataStream.write_parquet": ["path", "mode", "if_exists", "partition_by", "rate_limit"],
    "DataStream.write_csv": ["path", "mode", "if_exists", "partition_by", "rate_limit"],
    "DataStream.write_json": ["path", "mode", "if_exists", "partition_by", "rate_limit"],
    "DataStream.print": [],
    "DataStream.discard": [],
    "DataStream.execute_and_collect": ["local"],
    "DataStream.name": [],
    "DataStream.uid": [],
    "DataStream.with_parallelism": [],
    "DataStream.with_resources": ["num_cpus", "num_gpus", "memory"],
    "KeyedStream.window": ["spec"],
    "KeyedStream.aggregate": ["aggs"],
    "KeyedStream.reduce": ["fn"],
    "KeyedStream.process": [],
    "KeyedStream.deduplicate": ["cols"],
    "KeyedStream.top_n": ["n", "order_by"],
    "KeyedStream.interval_join": ["other", "lower", "upper"],
    "WindowedStream.allowed_lateness": ["late_to"],
    "WindowedStream.trigger": [],
    "WindowedStream.aggregate": ["aggs"],
    "WindowedStream.process": ["fn", "returns"],
    "Tumbling": ["size", "offset"],
    "Sliding": ["size", "slide"],
    "Session": ["gap"],
    "CountWindow": ["n"],
    "GlobalWindow": [],
    "OnWatermark": [],
    "OnCount": ["n"],
    "OnProcessingTime": [],
    "Watermark": ["column", "delay", "idle_after", "max_ahead", "max_drift"],
    "Skew": ["local_aggregation", "salt"],
    "JobHandle.status": [],
    "JobHandle.wait": ["timeout"],
    "JobHandle.cancel": [],
    "JobHandle.metrics": [],
    "JobHandle.checkpoints": [],
    "JobHandle.backpressure": [],
    "JobHandle.describe": [],
    "JobHandle.logs": [],
    "JobHandle.chaos": [],
    "connect": ["address"],
    "Client.jobs": [],
    "Client.job": [],
    "Sink.prepare": [],
    "Sink.commit": ["permit"],
    "Sink.abort": [],
}
AGGREGATES = (
    *("count", "sum", "min", "max", "mean", "stddev", "variance", "first", "last", "count_distinct"),
    *("approx_count_distinct", "approx_quantile", "collect_list", "cast", "alias"),
)


def found(path: str) -> Any:
    """Return the public object of that dotted name."""
    value: Any = rf
    for name in path.split("."):
        value = getattr(value, name)
    return value


@pytest.mark.parametrize("path", sorted(CALLS))
def test_what_the_contract_names_is_there_with_its_parameters(path: str) -> None:
    parameters = iter(inspect.signature(found(path)).parameters)
    missing = [name for name in CALLS[path] if name not in parameters]
    assert not missing, f"{path} has no {missing}, or not in this order: {inspect.signature(found(path))}"


def test_columns_have_their_aggregates() -> None:
    assert [name for name in AGGREGATES if not hasattr(rf.Expr, name)] == []
    assert callable(rf.count().filter)
    assert callable(rf.col("x").sum().filter)


def _public(name: str) -> list[str]:
    value = getattr(rf, name)
    if not inspect.isclass(value):
        return [name]
    own = [
        member
        for kind in value.__mro__
        if kind.__module__.startswith("rayflow.")
        for member, thing in vars(kind).items()
        if not member.startswith("_") and (inspect.isroutine(thing) or isinstance(thing, property))
    ]
    return [name, *(f"{name}.{member}" for member in dict.fromkeys(own))]


@pytest.mark.parametrize("name", rf.__all__)
def test_every_public_name_says_what_it_is(name: str) -> None:
    undocumented = [path for path in _public(name) if not (inspect.getdoc(found(path)) or "").strip()]
    assert undocumented == []
