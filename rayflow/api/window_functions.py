"""`WindowedStream.process`: all rows of a window given to a user's function.

Whatever the kind of windows, the plan is that of an aggregate which collects the rows, around which the function is
put (`windows.process`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.functions import check_format
from rayflow.api.planning import StreamInfo, output_schema, plan_error
from rayflow.api.returns import returned_schema
from rayflow.api.window_plan import WindowPlan
from rayflow.batch.aggregates import AggregateExpr
from rayflow.batch.hashing import is_key_type
from rayflow.windows.process import ROWS, ProcessWindowsOperator, result_schema, rows_of

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

Collect = Callable[[WindowPlan, dict[str, AggregateExpr]], "DataStream"]


def process_windows(
    plan: WindowPlan, collect: Collect, fn: Any, returns: Any, batch_format: Any
) -> DataStream:
    """Return the stream of what `fn` makes of each window; `collect` plans an aggregate over these windows."""
    call = _callable(fn)
    if batch_format is not None:
        check_format(batch_format, "process")
    schema = plan.input_schema("process")
    # The hint of a function of whole batches says nothing about their columns.
    made = (
        returned_schema(returns, call, "process", flat=True)
        if returns is not None or batch_format is None
        else None
    )
    if made is None and batch_format is None:
        made = returned_schema(None, call, "process")
    stream = collect(plan, {ROWS: rows_of(schema)})
    info = _info(plan, stream._info, made)
    node, env = stream._node, stream._env
    maker = env._changelog_makers.pop(node.id, None)
    time = plan.stream._info.time_column
    payload = partial(
        ProcessWindowsOperator,
        node.spec.payload if maker is None else maker(True),
        fn,
        plan.keys,
        schema,
        None if time is None else schema.field(time).type,
        made,
        batch_format,
    )
    name = getattr(fn, "__qualname__", type(fn).__qualname__).replace("<locals>.", "")
    detail = f"{plan.detail}: {name}"
    node.spec = replace(node.spec, payload=payload, schema=info.physical_schema, detail=detail)
    node.partitioned_by = info.partitioned_by
    side_outputs = plan.side_outputs(made=_aside)
    assert side_outputs is not None
    env._side_outputs[node.id] = side_outputs
    return type(stream)(env, node, info)


def _info(plan: WindowPlan, windows: StreamInfo, made: pa.Schema | None) -> StreamInfo:
    """Return what is known of the results, given what is of the windows: key columns and bounds stay what they
    are where the function's results have none of that name."""
    if made is None or windows.schema is None:
        return replace(
            windows,
            schema=None,
            time_column=None,
            window_ns=None,
            upsert_key=None,
            whole_rows=windows.is_upsert,
            partitioned_by=None,
        )
    bounds = windows.schema.remove(windows.schema.get_field_index(ROWS))
    own = frozenset(made.names)
    time_kept = windows.time_column not in own
    schema = output_schema(result_schema(bounds, made), "process")
    upsert_key = windows.upsert_key
    if own.intersection(upsert_key or ()):
        # Any columns will do: of whole rows all columns tell one from another.
        upsert_key = tuple(field.name for field in schema if is_key_type(field.type)) or None
    return replace(
        windows,
        schema=schema,
        time_column=windows.time_column if time_kept else None,
        window_ns=windows.window_ns if time_kept else None,
        upsert_key=upsert_key,
        whole_rows=windows.is_upsert,
        partitioned_by=None if own.intersection(plan.keys) else windows.partitioned_by,
    )


def _aside(schema: pa.Schema | None) -> StreamInfo:
    return StreamInfo(schema=schema)


def _callable(fn: Any) -> Any:
    """Return what is called with (rows, ctx): `fn`, or the method of its class. Raises PlanError for neither."""
    if inspect.isroutine(fn):
        return fn
    kind = fn if isinstance(fn, type) else type(fn)
    for name in ("__call__", "process"):
        if name in dir(kind):
            return getattr(kind, name)
    raise plan_error(
        f"process: expected a function of (rows, ctx), or a class with __call__(self, rows, ctx); got {fn!r}"
    )
