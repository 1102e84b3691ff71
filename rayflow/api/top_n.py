"""`top_n`: what an order is written as, and what is known of the result."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.planning import StreamInfo, output_schema, plan_error, require_columns
from rayflow.api.projection import as_column, result_type
from rayflow.api.traits import keeps_rows
from rayflow.batch.hashing import is_key_type
from rayflow.batch.ordering import SortKey
from rayflow.graph.plan import Exchange
from rayflow.operators.top_n import TopNOperator
from rayflow.state.sort_codes import SortCodes

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

_DIRECTIONS = {"asc": False, "ascending": False, "desc": True, "descending": True}


def top_n(
    stream: DataStream, keys: tuple[str, ...], n: int, order_by: Any, rank: str | None, ties: str
) -> DataStream:
    """Return the stream of the first rows per key; see `KeyedStream.top_n`."""
    info = stream._info
    schema = require_columns(info, keys, "top_n")
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise plan_error(f"top_n: n: expected a number of rows from 1; got {n!r}")
    if ties not in ("first", "last"):
        raise plan_error(
            f"top_n: ties={ties!r}: expected 'first' or 'last' (of equal rows, the one that came …)"
        )
    if rank is not None and not isinstance(rank, str):
        raise plan_error(f"top_n: rank: expected the name of a column; got {rank!r}")
    order = _order(info, order_by)
    identity = _identity(info, schema)
    fields = [*schema, *([] if rank is None else [pa.field(rank, pa.int64())])]
    result = StreamInfo(
        schema=output_schema(fields, "top_n"),
        is_upsert=True,
        upsert_key=keys if rank is None else (*keys, rank),
        whole_rows=n > 1 and rank is None,
        partitioned_by=keys,
    )
    make = partial(TopNOperator, keys, n, order, schema, rank, ties == "last", identity)
    try:
        SortCodes(order, schema)
    except TypeError as error:
        raise plan_error(f"top_n: {error}") from None
    made = stream._then(
        "top_n",
        partial(make, False),
        result,
        detail=f"{n} by {', '.join(keys)}, ordered by {', '.join(map(str, order))}",
        edges=[stream._edge(Exchange("hash", keys))],
        changelog=lambda emit_before: partial(make, emit_before),
        traits=keeps_rows(schema, keys),
    )
    if info.is_upsert:
        stream._env._wants_old_rows.add(made._node.id)
    return made


def _identity(info: StreamInfo, schema: pa.Schema) -> tuple[str, ...] | None:
    """Return the columns that tell the rows of an upsert stream apart, None for an append stream."""
    if not info.is_upsert:
        return None
    if info.upsert_key and not info.whole_rows:
        return info.upsert_key
    for field in schema:
        if not is_key_type(field.type):
            raise plan_error(
                f"top_n: column {field.name!r} is {field.type}: rows of this upsert stream are told apart by all their "
                "columns, and such ones cannot be compared; leave it out with .drop()"
            )
    return tuple(schema.names)


def _order(info: StreamInfo, order_by: Any) -> tuple[SortKey, ...]:
    given = order_by if isinstance(order_by, list) else [order_by]
    if not given:
        raise plan_error("top_n: order_by: expected at least one column")
    keys = tuple(_sort_key(value) for value in given)
    for key in keys:
        result_type(info, key.expr, "top_n(order_by=)")
    return keys


def _sort_key(value: Any) -> SortKey:
    if isinstance(value, SortKey):
        return value
    direction = "desc"
    if isinstance(value, tuple):
        if len(value) != 2 or value[1] not in _DIRECTIONS:
            raise plan_error(
                f"top_n: order_by={value!r}: expected (column, 'asc' or 'desc'); several keys go into a list"
            )
        value, direction = value
    if not isinstance(value, str) and isinstance(value, Sequence):
        raise plan_error(f"top_n: order_by: expected a column, col(…).asc() or col(…).desc(); got {value!r}")
    return SortKey(as_column(value, "top_n(order_by=)"), _DIRECTIONS[direction])
