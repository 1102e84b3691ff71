"""`deduplicate`: what it is asked for, checked, and the way of the rows to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, get_args

import pyarrow as pa

from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    duration_ns,
    known_schema,
    plan_error,
    require_columns,
)
from rayflow.api.traits import keeps_keys
from rayflow.api.window_specs import Duration
from rayflow.batch.expressions import col, lit
from rayflow.batch.hashing import check_key_type
from rayflow.graph.plan import Exchange
from rayflow.model.durations import format_duration_ns
from rayflow.operators.dedup.memories import CHUNK_COLUMN, Deduplication, Method
from rayflow.operators.dedup.operator import DeduplicateOperator
from rayflow.operators.stateless import ProjectOperator
from rayflow.state.dedup.id_set import CHUNK_BITS, chunk_type

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

_MIN_TTL_NS = 1_000_000
_MAX_TTL_NS = 100 * 366 * 86_400 * 1_000_000_000
_MIN_RATE, _MAX_RATE = 1e-6, 0.5
_MAX_EXPECTED = 10**12
_DEFAULT_RATE, _DEFAULT_EXPECTED = 0.01, 1_000_000


def deduplicated(
    stream: DataStream,
    keys: tuple[str, ...],
    cols: Sequence[str],
    method: Method,
    ttl: Duration | None,
    false_positive_rate: float | None,
    expected: int | None,
) -> DataStream:
    """Return the stream of the first rows of each key, within `keys` (none: of a stream that is not keyed)."""
    info = stream._info
    if info.is_upsert:
        raise plan_error(
            "deduplicate: this is an upsert stream, whose rows replace earlier ones of their key, so the first row of "
            "a key is the one that no longer holds; deduplicate before the running aggregate or outer join that made "
            "it, or keep one row per key, up to date, with .key_by(…).top_n(1, …)"
        )
    schema = require_columns(info, cols, "deduplicate") if cols else known_schema(info, "deduplicate")
    columns = tuple(dict.fromkeys((*keys, *cols))) if keys or cols else tuple(schema.names)
    if len(set(cols)) < len(cols):
        raise plan_error(f"deduplicate: a column is named twice in {', '.join(cols)}")
    with at_user_line():
        for name in columns:
            check_key_type(name, schema.field(name).type)
    rate, most = _bloom_options(method, false_positive_rate, expected)
    todo = Deduplication(
        method=_checked_method(method),
        schema=schema,
        columns=columns,
        partition=keys or columns,
        ttl_ns=_ttl_ns(ttl),
        time_column=info.time_column,
        false_positive_rate=rate,
        expected=most,
    )
    lies_by: tuple[str, ...] | None = todo.partition
    if method == "bitmap":
        stream, todo, lies_by = *_by_chunk(stream, todo), None
    return stream._then(
        "deduplicate",
        partial(DeduplicateOperator, todo),
        replace(info, partitioned_by=lies_by),
        detail=_detail(todo),
        edges=[stream._edge(Exchange("hash", todo.partition))],
        traits=None if todo.ttl_ns is not None else keeps_keys(todo.method, todo.schema, todo.columns),
    )


def _by_chunk(stream: DataStream, todo: Deduplication) -> tuple[DataStream, Deduplication]:
    """Return the stream with the column that its rows are to lie by, so that dense ids stay together."""
    kinds = ", ".join(f"{field.name} {field.type}" for field in todo.key_schema)
    if len(todo.columns) > 1 or not pa.types.is_integer(todo.key_schema.field(0).type):
        raise plan_error(
            f"deduplicate(method='bitmap') is for a single column of integers; rows here are told apart by {kinds}; "
            "use method='exact', or 'bloom' where a few rows may be lost for less memory"
        )
    (name,) = todo.columns
    wide = chunk_type(todo.key_schema.field(0).type)
    chunk = col(name).cast(wide).shift_right(lit(CHUNK_BITS).cast(wide))
    columns = [*((each, col(each)) for each in todo.schema.names), (CHUNK_COLUMN, chunk)]
    schema = todo.schema.append(pa.field(CHUNK_COLUMN, wide))
    info: StreamInfo = replace(stream._info, schema=schema)
    shown = f"{CHUNK_COLUMN}={name} >> {CHUNK_BITS}"
    chunked = stream._then("chunk ids", partial(ProjectOperator, columns), info, detail=shown)
    # Where the rows are: an exchange before it would be for nothing, and undo their order.
    chunked._node.parallelism, chunked._node.max_parallelism = (
        stream._node.parallelism,
        stream._node.max_parallelism,
    )
    return chunked, replace(todo, schema=schema, partition=(CHUNK_COLUMN,))


def _checked_method(method: Method) -> Method:
    if method not in get_args(Method):
        raise plan_error(f"deduplicate: method={method!r}: expected {', '.join(map(repr, get_args(Method)))}")
    return method


def _ttl_ns(ttl: Duration | None) -> int | None:
    if ttl is None:
        return None
    nanos = duration_ns("deduplicate: ttl", ttl, positive=True)
    if not _MIN_TTL_NS <= nanos <= _MAX_TTL_NS:
        raise plan_error(f"deduplicate: ttl: expected 1ms to 100 years; got {ttl!r}")
    return nanos


def _bloom_options(method: Method, rate: float | None, expected: int | None) -> tuple[float, int]:
    if method != "bloom" and (rate is not None or expected is not None):
        raise plan_error(
            f"deduplicate: false_positive_rate and expected are for method='bloom'; {method!r} makes no mistakes"
        )
    rate = _DEFAULT_RATE if rate is None else rate
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not _MIN_RATE <= rate <= _MAX_RATE:
        raise plan_error(
            f"deduplicate: false_positive_rate: expected {_MIN_RATE:g} to {_MAX_RATE:g} (0.01 is one in a hundred); "
            f"got {rate!r}"
        )
    expected = _DEFAULT_EXPECTED if expected is None else expected
    if isinstance(expected, bool) or not isinstance(expected, int) or not 1 <= expected <= _MAX_EXPECTED:
        raise plan_error(
            f"deduplicate: expected: a number of different keys, 1 to {_MAX_EXPECTED:,}; got {expected!r}"
        )
    return float(rate), expected


def _detail(todo: Deduplication) -> str:
    shown = f"{todo.method} by {', '.join(todo.columns)}"
    if todo.method == "bloom":
        shown += f", {todo.false_positive_rate:g} false positives, {todo.expected:,} keys expected"
    if todo.ttl_ns is not None:
        by = f"event time {todo.time_column}" if todo.time_column else "processing time"
        shown += f", ttl {format_duration_ns(todo.ttl_ns)} ({by})"
    return shown
