"""Where streams begin: the `read_*`, `from_*` and `generate` of a `StreamEnvironment`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from os import PathLike, fspath
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rayflow.api.plan_builder import PlanBuilder
from rayflow.api.planning import (
    StreamInfo,
    at_user_line,
    duration_ns,
    event_time_unit,
    output_schema,
    plan_error,
)
from rayflow.api.returns import returned_schema
from rayflow.api.specs import Watermark
from rayflow.connectors.file_source import CsvSource, JsonSource, ParquetSource, TextSource
from rayflow.connectors.memory_sources import BatchesSource, GeneratorSource, RowsSource
from rayflow.graph.plan import Traits
from rayflow.operators.source_contract import Source

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

Path = str | PathLike[str]
Duration = str | timedelta
BatchesFactory = Callable[[], Iterable[pa.RecordBatch]]

_WAITS = (
    "{what}: these files have no event-time statistics, so the watermark waits until the last of them is "
    "being read; windows fire late, or at the end. Parquet files have statistics"
)


class Sources(PlanBuilder):
    """The calls of `StreamEnvironment` that begin streams."""

    def read_parquet(
        self,
        path: Path,
        watermark: Watermark | None = None,
        schema: Any = None,
        rate_limit: float | None = None,
        watch: Duration | None = None,
        rebalance: Literal["auto"] | None = None,
    ) -> DataStream:
        """Read Parquet: a file, a folder, or a glob; local, `file://` or `s3://`.

        `schema`: read these columns only. `rate_limit`: rows per second in total. `watch`: an unbounded stream; look
        for new files that often. Files are read in the order of their event times, from their statistics.
        `rebalance="auto"` (here and at the other sources): where the number of splits (row groups) is no multiple of
        the parallelism, so that some subtasks would have more to do than others, deal the rows out evenly to the
        steps behind the source; rows lose their order then.
        """
        args = ("read_parquet", ParquetSource, path, watermark, schema, rate_limit, watch, rebalance)
        return self._read_files(*args)

    def read_csv(
        self,
        path: Path,
        watermark: Watermark | None = None,
        schema: Any = None,
        rate_limit: float | None = None,
        watch: Duration | None = None,
        rebalance: Literal["auto"] | None = None,
        on_error: Literal["fail", "skip"] | None = None,
    ) -> DataStream:
        """Read CSV files with a header; without `schema` types are told by the first block. `on_error="skip"`: leave
        out records with too many or too few values, or one of a wrong type, and count them."""
        args = ("read_csv", CsvSource, path, watermark, schema, rate_limit, watch, rebalance)
        return self._read_files(*args, on_error)

    def read_json(
        self,
        path: Path,
        watermark: Watermark | None = None,
        schema: Any = None,
        rate_limit: float | None = None,
        watch: Duration | None = None,
        rebalance: Literal["auto"] | None = None,
        on_error: Literal["fail", "skip"] | None = None,
    ) -> DataStream:
        """Read files of JSON lines; without `schema` types are told by the first block. `on_error="skip"`: leave out
        lines that are no object of these types, and count them."""
        args = ("read_json", JsonSource, path, watermark, schema, rate_limit, watch, rebalance)
        return self._read_files(*args, on_error)

    def read_text(
        self,
        path: Path,
        rate_limit: float | None = None,
        watch: Duration | None = None,
        rebalance: Literal["auto"] | None = None,
        on_error: Literal["fail", "skip"] | None = None,
    ) -> DataStream:
        """Read the lines of text files, as one column `line`. `on_error="skip"`: leave out lines that are not UTF-8,
        and count them."""
        args = ("read_text", TextSource, path, None, None, rate_limit, watch, rebalance)
        return self._read_files(*args, on_error)

    def from_rows(
        self,
        rows: Sequence[Mapping[str, Any]],
        watermark: Watermark | None = None,
        schema: Any = None,
        rate_limit: float | None = None,
    ) -> DataStream:
        """Stream a list of dicts, all held in memory; types are told by the values, or by `schema`."""
        given = _given_schema(schema, "from_rows")
        if given is None and not rows:
            raise plan_error("from_rows: no rows to tell the columns by; give schema=")
        try:
            table = pa.Table.from_pylist(list(rows), schema=given)
        except (pa.ArrowException, TypeError, AttributeError, ValueError) as error:
            raise plan_error(f"from_rows: expected a list of dicts with like values: {error}") from error
        return self._add_source(
            "from_rows", RowsSource(table), watermark, rate_limit, f"{table.num_rows} rows"
        )

    def from_arrow(
        self,
        table: pa.Table | pa.RecordBatch,
        watermark: Watermark | None = None,
        rate_limit: float | None = None,
    ) -> DataStream:
        """Stream an Arrow table or record batch, held in memory."""
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if not isinstance(table, pa.Table):
            raise plan_error(
                f"from_arrow: expected a pyarrow.Table or RecordBatch; got {type(table).__name__}"
            )
        return self._add_source(
            "from_arrow", RowsSource(table), watermark, rate_limit, f"{table.num_rows} rows"
        )

    def from_batches(
        self,
        batches: BatchesFactory | Iterable[pa.RecordBatch],
        schema: Any = None,
        watermark: Watermark | None = None,
        rate_limit: float | None = None,
    ) -> DataStream:
        """Stream the batches that a function returns or yields, or that an iterable holds, in one subtask.

        After a restart they are iterated again, and what was consumed is skipped: so they must be the same
        again. Without `schema` the first batch is asked for when the plan is built.
        """
        if isinstance(batches, Iterator):
            raise plan_error(
                "from_batches: an iterator can be read only once, but a restart reads it again; pass the function "
                "that makes it, or a list"
            )
        known = _given_schema(schema, "from_batches")
        source = BatchesSource(batches, _first_schema(batches) if known is None else known)
        return self._add_source("from_batches", source, watermark, rate_limit)

    def generate(
        self,
        fn: Callable[[int, int], pa.RecordBatch],
        rows: int | None = None,
        rate_limit: float | None = None,
        watermark: Watermark | None = None,
        rebalance: Literal["auto"] | None = None,
    ) -> DataStream:
        """Stream the rows that `fn(start, count)` makes: rows number `start` up to `start + count`, always
        the same. `rows=None`: unbounded. `fn(0, 1)` is called when the plan is built, for its columns."""
        if rows is not None and (isinstance(rows, bool) or not isinstance(rows, int) or rows < 0):
            raise plan_error(f"generate: rows: expected a number of rows, or None for no end; got {rows!r}")
        try:
            sample = fn(0, 1)
        except Exception as error:
            raise plan_error(f"generate: fn(0, 1) raised {type(error).__name__}: {error}") from error
        if not isinstance(sample, pa.RecordBatch):
            raise plan_error(f"generate: fn(0, 1) returned {type(sample).__name__}, expected a RecordBatch")
        source = GeneratorSource(fn, rows, sample.schema)
        shown = "no end" if rows is None else f"{rows} rows"
        return self._add_source("generate", source, watermark, rate_limit, shown, rebalance=rebalance)

    def from_source(
        self,
        source: Source,
        watermark: Watermark | None = None,
        rate_limit: float | None = None,
        rebalance: Literal["auto"] | None = None,
    ) -> DataStream:
        """Stream from a source of your own."""
        if not isinstance(source, Source):
            raise plan_error(f"from_source: expected an rf.Source object; got {source!r}")
        return self._add_source(type(source).__name__, source, watermark, rate_limit, rebalance=rebalance)

    # -------------------------------------------------------------------------------------- internal

    def _read_files(
        self,
        name: str,
        make: Callable[..., Source],
        path: Path,
        watermark: Watermark | None,
        schema: Any,
        rate_limit: float | None,
        watch: Duration | None,
        rebalance: Literal["auto"] | None,
        on_error: Any = None,
    ) -> DataStream:
        options: dict[str, Any] = {
            "watch_ms": None
            if watch is None
            else -(-duration_ns(f"{name}(watch=)", watch, positive=True) // 10**6),
            "options": self._storage_options(),
        }
        if make is not TextSource:
            column = _watermark(watermark, name)
            options |= {"time_column": column and column.column, "schema": _given_schema(schema, name)}
        with at_user_line():
            source = make(fspath(path), **options)
        shown = f"{fspath(path)}" + (f", watched every {watch}" if watch is not None else "")
        warnings = (_WAITS.format(what=name),) if watermark is not None and make is not ParquetSource else ()
        json = "reads" if make is JsonSource else ""
        stream = self._add_source(name, source, watermark, rate_limit, shown, warnings, rebalance, json)
        return stream if on_error is None else stream.on_error(on_error)

    def _add_source(
        self,
        name: str,
        source: Source,
        watermark: Watermark | None,
        rate_limit: float | None,
        detail: str = "",
        warnings: tuple[str, ...] = (),
        rebalance: Literal["auto"] | None = None,
        json: str = "",
    ) -> DataStream:
        from rayflow.api.streams import DataStream

        watermark = _watermark(watermark, name)
        if rate_limit is not None and not rate_limit > 0:
            raise plan_error(f"{name}: rate_limit: expected rows per second, more than 0; got {rate_limit!r}")
        if rebalance not in (None, "auto"):
            raise plan_error(
                f"{name}: rebalance={rebalance!r}: expected 'auto', or None to leave rows as they lie"
            )
        with at_user_line():
            info = StreamInfo(schema=source.schema)
            if watermark is not None:
                info = StreamInfo(schema=watermark.stamped(info.schema), time_column=watermark.column)
        if info.schema is not None:
            output_schema(info.schema, name)
        if watermark is not None:
            event_time_unit(info, watermark.column, f"{name}(watermark=)")
        node = self._add_node(name, "source", source, info, inputs=[], detail=detail, rate_limit=rate_limit)
        node.max_parallelism = source.max_parallelism
        node.warnings = warnings
        node.rebalance = rebalance == "auto"
        node.traits = Traits(endless=not source.bounded, json=json)
        if watermark is not None:
            node.spec = replace(node.spec, time=watermark.time_spec())
        return DataStream(self, node, info)


def _watermark(watermark: Any, what: str) -> Watermark | None:
    if watermark is None or isinstance(watermark, Watermark):
        return watermark
    raise plan_error(f"{what}: watermark: expected rf.Watermark(column, delay=…); got {watermark!r}")


def _given_schema(schema: Any, what: str) -> pa.Schema | None:
    """Return the schema that a user gave, in any form that `returns=` takes."""
    return None if schema is None else returned_schema(schema, None, f"{what}(schema=)")


def _first_schema(batches: BatchesFactory | Iterable[pa.RecordBatch]) -> pa.Schema:
    try:
        first = next(iter(batches() if callable(batches) else batches), None)
    except Exception as error:
        raise plan_error(f"from_batches: {type(error).__name__} while iterating: {error}") from error
    if not isinstance(first, pa.RecordBatch):
        got = "nothing" if first is None else type(first).__name__
        raise plan_error(f"from_batches: expected record batches, got {got}; convert it, or give schema=")
    return first.schema
