"""The steps of a `DataStream` that run users' Python functions.

A function sees rows as dicts, or as bare values where the stream has exactly one column; whole batches with
`map_batches`. What it returns has known columns only by `returns=` or its type hints (`returns`). A function
may be an object with `open(ctx)` and `close()`, which subtasks call before its first and after its last row.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rayflow.api.async_functions import async_options, check_async
from rayflow.api.planning import StreamInfo, plan_error, refuse_upsert
from rayflow.api.returns import returned_schema
from rayflow.api.steps import Steps
from rayflow.api.traits import of_function
from rayflow.model.error_policy import SideOutput
from rayflow.operators.map_async import MapAsyncOperator
from rayflow.operators.stateless import FilterOperator, FlatMapOperator, MapBatchesOperator, MapOperator

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

BatchFormat = Literal["pyarrow", "pandas", "polars", "numpy"]
OnError = Literal["fail", "skip"] | SideOutput
_FORMATS = ("pyarrow", "pandas", "polars", "numpy")


class FunctionSteps(Steps):
    """`map`, `flat_map`, `map_batches`, `map_async`, and `filter` by a function."""

    def map(
        self, fn: Callable[[Any], Any], returns: Any = None, *, on_error: OnError | None = None
    ) -> DataStream:
        """Replace each row by what `fn(row)` returns: a dict, or a value for a single column. `on_error`: see
        `.on_error()`."""
        refuse_upsert(self._info, "map")
        _check_callable(fn, "map")
        schema = returned_schema(returns, fn, "map")
        payload = partial(MapOperator, fn, schema, self._is_scalar())
        return _with_policy(self._called("map", payload, schema, fn), on_error)

    def flat_map(
        self, fn: Callable[[Any], Any], returns: Any = None, *, on_error: OnError | None = None
    ) -> DataStream:
        """Replace each row by all that `fn(row)` yields or lists: dicts, or values for a single column. `on_error`:
        see `.on_error()`; of a row on which a generator raises midway nothing is kept."""
        refuse_upsert(self._info, "flat_map")
        _check_callable(fn, "flat_map")
        schema = returned_schema(returns, fn, "flat_map", flat=True)
        payload = partial(FlatMapOperator, fn, schema, self._is_scalar())
        return _with_policy(self._called("flat_map", payload, schema, fn), on_error)

    def map_batches(
        self,
        fn: Callable[[Any], Any] | type,
        *,
        batch_format: BatchFormat = "pyarrow",
        batch_size: int | None = None,
        returns: Any = None,
        num_cpus: float | None = None,
        num_gpus: float | None = None,
        concurrency: int | None = None,
        on_error: OnError | None = None,
    ) -> DataStream:
        """Replace each batch by what `fn(batch)` returns, in `batch_format` (numpy: a dict of arrays, in which
        null numbers are NaN and stay that).

        A class is made once per subtask and called per batch. Batches have at most `batch_size` rows, and
        exactly so many but for the last before a barrier. `concurrency` is the number of subtasks. `on_error`: see
        `.on_error()`; a batch on which the function raises is given to it again in halves.
        """
        refuse_upsert(self._info, "map_batches")
        _check_callable(fn, "map_batches")
        check_format(batch_format, "map_batches")
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise plan_error(f"map_batches: batch_size: expected a number of rows from 1; got {batch_size!r}")
        schema = None if returns is None else returned_schema(returns, fn, "map_batches")
        payload = partial(MapBatchesOperator, fn, batch_format, batch_size, schema)
        stream = self._called("map_batches", payload, schema, fn)
        if num_cpus is not None or num_gpus is not None:
            stream.with_resources(num_cpus=num_cpus, num_gpus=num_gpus)
        _with_policy(stream, on_error)
        return stream if concurrency is None else stream.with_parallelism(concurrency)

    def map_async(
        self,
        fn: Callable[[Any], Awaitable[Any]] | type,
        *,
        capacity: int = 100,
        timeout: str | timedelta | None = None,
        ordered: bool = True,
        returns: Any = None,
        retries: int = 0,
        retry_delay: str | timedelta = "100ms",
        on_timeout: Literal["fail", "drop"] = "fail",
        on_error: OnError | None = None,
    ) -> DataStream:
        """Replace each row by what `await fn(row)` returns, as `map` does, with at most `capacity` calls under way per
        subtask, on an event loop of its own.

        `ordered=False` lets results go as they come, but not past a watermark. A call that raises, or takes longer
        than `timeout` and is cancelled, is tried again `retries` times: after `retry_delay`, then twice that, and
        so on (at most a minute; shortened at random by up to half). Then the job fails, or, `on_timeout="drop"`,
        the row of a call that took too long is dropped and counted. `on_error` (see `.on_error()`) says what becomes
        of rows whose last try failed otherwise. Without `timeout` the stream waits for ever.

        Rows under way are part of checkpoints and are called again after a failure: results are exactly-once, calls
        are not. A class is made once per subtask; its `open(ctx)` and `close()` may be async.
        """
        refuse_upsert(self._info, "map_async")
        check_async(fn)
        options = async_options(
            capacity=capacity,
            timeout=timeout,
            ordered=ordered,
            retries=retries,
            retry_delay=retry_delay,
            on_timeout=on_timeout,
        )
        schema = returned_schema(returns, fn, "map_async")
        keys = self._info.partitioned_by or ()
        payload = partial(MapAsyncOperator, fn, schema, self._is_scalar(), options, keys)
        return _with_policy(self._called("map_async", payload, schema, fn), on_error)

    def _called(self, name: str, payload: Any, schema: pa.Schema | None, fn: Any) -> DataStream:
        """Return the stream of what `fn` makes, rows of `schema` where that is known."""
        return self._then(name, payload, self._made(schema), detail=_name_of(fn), traits=of_function(fn))

    def _filter_by_function(self, fn: Any) -> DataStream:
        _check_callable(fn, "filter")
        return self._filtered(fn, self._is_scalar(), _name_of(fn))

    def _filtered(self, predicate: Any, scalar: bool, shown: str) -> DataStream:
        payload = partial(FilterOperator, predicate, scalar)
        if not self._info.is_upsert:
            return self._then("filter", payload, self._info, detail=shown)
        always = self._info.whole_rows

        def make(emit_before: bool) -> Any:
            return partial(payload, always or emit_before)

        return self._then("filter", make(False), self._info, detail=shown, changelog=make)

    def _is_scalar(self) -> bool:
        schema = self._info.schema
        return schema is not None and len(schema) == 1

    def _made(self, schema: pa.Schema | None) -> StreamInfo:
        """Return what is known of rows that a function made: event time stays where its column does."""
        time, before = self._info.time_column, self._info.schema
        keeps_time = (
            schema is not None
            and time in schema.names
            and pa.types.is_timestamp(schema.field(time).type)
            and (before is None or schema.field(time).type == before.field(time).type)
        )
        return replace(
            self._info,
            schema=schema,
            time_column=time if keeps_time else None,
            window_ns=self._info.window_ns if keeps_time else None,
            partitioned_by=None,
        )


def _with_policy(stream: DataStream, policy: OnError | None) -> DataStream:
    return stream if policy is None else stream.on_error(policy)


def check_format(batch_format: Any, what: str) -> None:
    """Raise PlanError unless batches can be had in that format here."""
    if batch_format not in _FORMATS:
        raise plan_error(f"{what}: batch_format {batch_format!r}: expected one of {', '.join(_FORMATS)}")
    if importlib.util.find_spec(batch_format) is None:
        raise plan_error(f"{what}: batch_format {batch_format!r} needs that package; install it with pip")


def _check_callable(fn: Any, what: str) -> None:
    if not callable(fn):
        raise plan_error(f"{what}: expected a function; got {fn!r}")


def _name_of(fn: Any) -> str:
    return str(getattr(fn, "__qualname__", type(fn).__qualname__)).replace("<locals>.", "")
