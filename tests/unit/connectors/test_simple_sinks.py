"""Printing, discarding, collecting."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE, changelog_schema, with_op
from rayflow.connectors.collected import collect_sink, read_collected
from rayflow.connectors.simple_sinks import DiscardSink, PrintSink
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.commits import CommitPermit


def context(subtask: int, **more: Any) -> SinkContext:
    return SinkContext(
        job_id="job-1", attempt=1, uid="out", subtask_index=subtask, parallelism=2, max_parallelism=8, **more
    )


def changes(*rows: tuple[int, Any, Any]) -> pa.RecordBatch:
    batch = pa.record_batch({"k": [r[1] for r in rows], "v": [r[2] for r in rows]})
    return with_op(batch, np.array([r[0] for r in rows], np.int8))


def test_rows_are_printed_as_json_lines(capsys: pytest.CaptureFixture[str]) -> None:
    PrintSink().write(pa.record_batch({"word": ["a", "b"], "n": [1, None]}))
    PrintSink("2>").write(pa.record_batch({"word": ["c"]}))
    assert capsys.readouterr().out == '{"word":"a","n":1}\n{"word":"b","n":null}\n2> {"word":"c"}\n'


def test_changes_are_printed_with_what_happened(capsys: pytest.CaptureFixture[str]) -> None:
    PrintSink().write(
        changes((INSERT, "a", 1), (UPDATE_BEFORE, "a", 1), (UPDATE_AFTER, "a", 2), (DELETE, "a", 2))
    )
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == ["+I", "-U", "+U", "-D"]
    assert lines[2] == '+U {"k":"a","v":2}'


def test_discarding_needs_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    sink = DiscardSink()
    sink.open(context(0))
    sink.write(changes((INSERT, "a", 1)))
    assert sink.prepare(1) is None
    assert capsys.readouterr().out == ""


def _collect(directory: Path, *periods: dict[int, list[pa.RecordBatch]]) -> None:
    """Each period's batches, by subtask, up to its checkpoint."""
    sinks = [collect_sink(directory), collect_sink(directory)]
    sinks[0].start_job(context(-1))
    for i, sink in enumerate(sinks):
        sink.open(context(i))
    for number, period in enumerate(periods, 1):
        for i in (1, 0):
            for batch in period.get(i, []):
                sinks[i].write(batch)
            pending = sinks[i].prepare(number)
            if pending is not None:
                sinks[i].commit(CommitPermit("job-1", 1, number, pending))  # type: ignore[arg-type]
    sinks[0].finish_job(context(-1, succeeded=True))


def test_rows_are_collected_by_checkpoint_then_subtask_then_arrival(tmp_path: Path) -> None:
    rows = [pa.record_batch({"x": [i]}) for i in range(6)]
    _collect(tmp_path, {0: rows[0:2], 1: rows[2:3]}, {1: rows[5:6], 0: rows[3:5]})
    assert read_collected(tmp_path)["x"].to_pylist() == [0, 1, 2, 3, 4, 5]


def test_of_an_upsert_stream_the_last_row_per_key_is_collected(tmp_path: Path) -> None:
    _collect(
        tmp_path,
        {0: [changes((INSERT, "a", 1), (INSERT, "b", 1))], 1: [changes((INSERT, "c", 1))]},
        {0: [changes((UPDATE_BEFORE, "a", 1), (UPDATE_AFTER, "a", 2), (DELETE, "b", 1))]},
    )
    assert read_collected(tmp_path, ["k"]).to_pylist() == [{"k": "c", "v": 1}, {"k": "a", "v": 2}]
    assert read_collected(tmp_path, []).to_pylist() == []  # one key for all rows, and the last deletes it
    assert len(read_collected(tmp_path)) == 6


def test_without_rows_the_schema_is_that_of_the_stream_where_known(tmp_path: Path) -> None:
    schema = pa.schema([("k", pa.string())])
    sink = collect_sink(tmp_path / "known")
    sink.validate(changelog_schema(schema))
    sink.finish_job(context(-1, succeeded=True))
    assert read_collected(tmp_path / "known", ["k"]).schema == schema
    assert read_collected(tmp_path / "unknown", ["k"], schema=schema).schema == schema
    assert read_collected(tmp_path / "unknown").num_columns == 0
