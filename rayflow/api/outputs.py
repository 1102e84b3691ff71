"""The sinks of a `DataStream`, and collecting its rows."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rayflow.api.planning import at_user_line, plan_error, require_columns
from rayflow.api.side_outputs import read_side_output
from rayflow.api.stage import Stage
from rayflow.api.steps import Steps
from rayflow.api.traits import of_sink
from rayflow.batch.hashing import check_key_type
from rayflow.connectors.file_formats import FormatName
from rayflow.connectors.file_sink import FileSink
from rayflow.connectors.simple_sinks import DiscardSink, PrintSink
from rayflow.graph.plan import Exchange
from rayflow.operators.batched_sink import BatchedSink
from rayflow.operators.contracts import Sink

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

Mode = Literal["append", "upsert"]
IfExists = Literal["error", "append", "overwrite"]


class SinkStage(Stage):
    """A sink that was added to the job: the end of a stream, for naming and placing it."""

    def side_output(self, tag: str) -> DataStream:
        """Read the rows that the system outside refused, with `error` and `operator`: a batched sink has them where it
        was given `.on_error(rf.SideOutput(tag))`."""
        return read_side_output(self, tag)


class Outputs(Steps):
    """`write_*`, `sink_to`, `print`, `discard` and `execute_and_collect`."""

    def write_parquet(
        self,
        path: str | PathLike[str],
        mode: Mode = "append",
        if_exists: IfExists = "error",
        partition_by: str | Sequence[str] | None = None,
        rate_limit: float | None = None,
    ) -> SinkStage:
        """Write Parquet files under `path` (local, `file://`, `s3://`), exactly once.

        Rows appear when their checkpoint completes, or at the end of a bounded job. `mode="upsert"` keeps
        the last row per key of an upsert stream. A fresh job on a path that has files fails, unless `if_exists` is
        `"append"` or `"overwrite"`. `partition_by`: columns that become folders. `rate_limit`: rows per second.
        """
        return self._write("parquet", path, mode, if_exists, partition_by, rate_limit)

    def write_csv(
        self,
        path: str | PathLike[str],
        mode: Mode = "append",
        if_exists: IfExists = "error",
        partition_by: str | Sequence[str] | None = None,
        rate_limit: float | None = None,
    ) -> SinkStage:
        """Write CSV files with a header under `path`; otherwise as `write_parquet`."""
        return self._write("csv", path, mode, if_exists, partition_by, rate_limit)

    def write_json(
        self,
        path: str | PathLike[str],
        mode: Mode = "append",
        if_exists: IfExists = "error",
        partition_by: str | Sequence[str] | None = None,
        rate_limit: float | None = None,
    ) -> SinkStage:
        """Write JSON-lines files (`.jsonl`) under `path`; otherwise as `write_parquet`."""
        return self._write("json", path, mode, if_exists, partition_by, rate_limit)

    def sink_to(self, sink: Sink, rate_limit: float | None = None) -> SinkStage:
        """Write to `rf.SqlSink`, `rf.HttpSink`, or a sink of your own. It gets the rows of an append stream; one that
        says `accepts_upserts = True` may have upsert streams too, with their hidden column, and one that says
        `wants_old_rows = True` the rows that are replaced. A batched sink with `keys` gets all rows of a key in one
        subtask. `rate_limit`: rows per second."""
        if not isinstance(sink, Sink):
            raise plan_error(f"sink_to: expected an rf.Sink object; got {sink!r}")
        name = type(sink).__name__
        if self._info.is_upsert and not sink.accepts_upserts:
            raise self._upsert_into_append(f"sink {name}")
        if not isinstance(sink, BatchedSink):
            return self._add_sink(name, sink, rate_limit=rate_limit)
        with at_user_line():
            sink = sink.behind(self._info.upsert_key if self._info.is_upsert else None)
        exchange = self._by_keys(name, sink)
        return self._add_sink(name, sink, rate_limit=rate_limit, detail=sink.detail, exchange=exchange)

    def print(self) -> SinkStage:
        """Print rows on the console of each subtask (`--local`: here); upserts with `+I -U +U -D`."""
        return self._add_sink("print", PrintSink())

    def discard(self) -> SinkStage:
        """Drop all rows; for measuring."""
        return self._add_sink("discard", DiscardSink())

    def execute_and_collect(self, local: bool = False, *, address: str | None = None) -> pa.Table:
        """Run what this stream needs, wait for its end, and return its rows as a table.

        Of an upsert stream, the last row per key. Rows are ordered at parallelism 1 only. Other sinks of the
        environment are not run. Raises `rf.JobFailed`. The stream must be bounded.
        """
        from rayflow.api.execution import collect

        if self._info.is_upsert and self._info.upsert_key is None:
            raise self._lost_key("execute_and_collect")
        return collect(self, local=local, address=address)

    # -------------------------------------------------------------------------------------- internal

    def _write(
        self,
        format: FormatName,
        path: str | PathLike[str],
        mode: Mode,
        if_exists: IfExists,
        partition_by: str | Sequence[str] | None,
        rate_limit: float | None,
    ) -> SinkStage:
        what = f"write_{format}"
        self._check_mode(what, mode)
        if if_exists not in ("error", "append", "overwrite"):
            raise plan_error(f"{what}: if_exists={if_exists!r}: expected 'error', 'append' or 'overwrite'")
        partitions = [partition_by] if isinstance(partition_by, str) else list(partition_by or ())
        if partitions:
            require_columns(self._info, partitions, f"{what}(partition_by=)")
        with at_user_line():
            sink = FileSink(
                path,
                format,
                mode=mode,
                if_exists=if_exists,
                partition_by=partitions,
                upsert_key=self._info.upsert_key or (),
                whole_rows=self._info.whole_rows,
                options=self._env._storage_options(),
            )
        return self._add_sink(what, sink, rate_limit=rate_limit, detail=str(path))

    def _check_mode(self, what: str, mode: str) -> None:
        if mode not in ("append", "upsert"):
            raise plan_error(f"{what}: mode={mode!r}: expected 'append' or 'upsert'")
        if mode == "append" and self._info.is_upsert:
            raise self._upsert_into_append(f"{what}(mode='append')")
        if mode == "upsert" and not self._info.is_upsert:
            raise plan_error(
                f"{what}(mode='upsert'): the stream only appends rows and has no key to replace them by; use "
                "mode='append', or make it an upsert stream with .key_by(…).aggregate(…)"
            )
        if mode == "upsert" and self._info.upsert_key is None:
            raise self._lost_key(f"{what}(mode='upsert')")

    def _by_keys(self, name: str, sink: BatchedSink) -> Exchange | None:
        """Return how the rows of a sink with keys have to come to it, None where they do."""
        if not sink.keys:
            return None
        schema = require_columns(self._info, sink.keys, f"{name}(keys=)")
        with at_user_line():
            for key in sink.keys:
                check_key_type(key, schema.field(key).type)
        if self._info.whole_rows:
            raise plan_error(
                f"sink {name}: several rows of this stream may share {', '.join(self._info.upsert_key or sink.keys)}, "
                "so they cannot be written by key; use .write_parquet(path, mode='upsert'), or aggregate by the key"
            )
        if self._exchange is not None:
            raise plan_error(
                f"sink {name}: it writes by key, so all rows of a key have to come to one subtask; leave "
                f".{self._exchange.kind}() out"
            )
        return Exchange("hash", self._info.upsert_key or tuple(sink.keys))

    def _add_sink(
        self,
        name: str,
        sink: Sink,
        *,
        rate_limit: float | None = None,
        detail: str = "",
        exchange: Exchange | None = None,
    ) -> SinkStage:
        if rate_limit is not None and not rate_limit > 0:
            raise plan_error(f"{name}: rate_limit: expected rows per second, more than 0; got {rate_limit!r}")
        with at_user_line():
            sink.validate(self._info.physical_schema)
        edges = [self._edge(exchange)]
        node = self._add_node(
            name, "sink", sink, self._info, rate_limit=rate_limit, detail=detail, edges=edges
        )
        node.traits = of_sink(sink, json=name == "write_json")
        self._env._error_policies.added(node, self._info)
        self._env._sinks.append(node.id)
        if sink.wants_old_rows:
            self._env._wants_old_rows.add(node.id)
        return SinkStage(self._env, node)

    def _upsert_into_append(self, what: str) -> Any:
        return plan_error(
            f"{what}: an upsert stream, whose rows replace earlier ones of the same key, cannot go into an append "
            "sink; use .write_parquet(path, mode='upsert'), or .window(…) for final results"
        )

    def _lost_key(self, what: str) -> Any:
        return plan_error(
            f"{what}: the key of this upsert stream was dropped or changed on the way, so rows cannot be told "
            "apart; keep the key columns"
        )
