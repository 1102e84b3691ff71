"""`KeyedStream.reduce`: from a user's function to an operator."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from rayflow.api.functions import _check_callable, _name_of
from rayflow.api.planning import StreamInfo, refuse_upsert, require_columns
from rayflow.api.skew import Combiner, Skew, keyed_input
from rayflow.api.traits import keeps_rows
from rayflow.operators.reduce import ReduceOperator
from rayflow.skew.reducing import ReduceBeforeOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


def reduced(
    stream: DataStream, keys: tuple[str, ...], fn: Callable[[Any, Any], Any], skew: Skew | None
) -> DataStream:
    """Return the upsert stream of one row per key that `fn` makes of a key's rows."""
    refuse_upsert(stream._info, "reduce")
    _check_callable(fn, "reduce")
    schema = require_columns(stream._info, keys, "reduce")
    info = StreamInfo(schema=schema, is_upsert=True, upsert_key=keys, partitioned_by=keys)
    make = partial(ReduceOperator, fn, keys, schema)
    detail = f"{_name_of(fn)} by {', '.join(keys)}"
    before = Combiner(partial(ReduceBeforeOperator, fn, keys, schema), schema, f"{detail}, in part", True)
    rows = keyed_input(stream, keys, skew, before)
    made = stream._then(
        "reduce",
        partial(make, False),
        info,
        detail=detail,
        edges=rows.edges,
        changelog=lambda emit_before: partial(make, emit_before),
        traits=keeps_rows(schema, keys),
    )
    return rows.warn(made)
