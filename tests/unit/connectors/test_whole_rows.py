"""Upsert streams whose rows are told apart by all their columns: multisets, in files and collected."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import DELETE, INSERT, UPDATE_AFTER, UPDATE_BEFORE, changelog_schema, with_op
from rayflow.connectors import upsert_files
from rayflow.connectors.collected import collect_sink, read_collected
from rayflow.connectors.file_formats import FORMATS
from rayflow.connectors.file_sink import FileSink
from rayflow.model.errors import PlanError
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.commits import CommitPermit

SCHEMA = pa.schema([("k", pa.string()), ("v", pa.float64())])
NAN = float("nan")
Change = tuple[int, str | None, float | None]


def context(attempt: int = 1, subtask: int = 0) -> SinkContext:
    return SinkContext(
        job_id="job-1", attempt=attempt, uid="out", subtask_index=subtask, parallelism=1, max_parallelism=4
    )


def batch(changes: list[Change]) -> pa.RecordBatch:
    arrays = [
        pa.array([k for _, k, _ in changes], pa.string()),
        pa.array([v for *_, v in changes], pa.float64()),
    ]
    rows = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
    return with_op(rows, np.array([op for op, *_ in changes], np.int8))


def bag(rows: list[dict[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter((row["k"], str(row["v"])) for row in rows)


def written(path: Path, format: Any = "parquet") -> Counter[tuple[Any, ...]]:
    read = FORMATS[format]
    found: Counter[tuple[Any, ...]] = Counter()
    for file in path.rglob(f"*{read.suffix}"):
        found += bag(read.read(file.read_bytes(), SCHEMA).to_pylist())
    return found


def sink(path: Path, **more: Any) -> FileSink:
    return FileSink(path, mode="upsert", upsert_key=["k"], whole_rows=True, **more)


def run(made: FileSink, checkpoints: list[list[Change]]) -> None:
    """One job, restarted after every checkpoint."""
    made.start_job(context(0, -1))
    for number, changes in enumerate(checkpoints, 1):
        made.open(context(number))
        for change in changes:
            made.write(batch([change]))
        pending = made.prepare(number)
        if pending is not None:
            made.commit(CommitPermit("job-1", number, number, pending))  # type: ignore[arg-type]
        made.close()


def test_of_equal_rows_one_goes(tmp_path: Path) -> None:
    run(
        sink(tmp_path / "out"),
        [
            [(INSERT, "a", 1.0), (INSERT, "a", 1.0), (INSERT, None, None)],
            [(DELETE, "a", 1.0), (DELETE, None, None)],
        ],
    )
    assert written(tmp_path / "out") == {("a", "1.0"): 1}


def test_an_update_takes_its_old_row_away(tmp_path: Path) -> None:
    run(sink(tmp_path / "out"), [[(INSERT, "a", NAN)], [(UPDATE_BEFORE, "a", NAN), (UPDATE_AFTER, "a", 2.0)]])
    assert written(tmp_path / "out") == {("a", "2.0"): 1}


def test_partitions_may_be_by_any_column(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(sink(out, partition_by=["v"]), [[(INSERT, "a", 1.0)], [(DELETE, "a", 1.0), (INSERT, "a", 2.0)]])
    assert [str(p.parent.name) for p in out.rglob("*.parquet") if ds.dataset(str(p)).count_rows()] == ["v=2"]


def test_nested_columns_are_refused_since_they_cannot_be_compared(tmp_path: Path) -> None:
    schema = changelog_schema(SCHEMA.append(pa.field("l", pa.list_(pa.int64()))))
    for made in (sink(tmp_path / "a"), collect_sink(tmp_path / "b", whole_rows=True)):
        with pytest.raises(PlanError, match=r"'l' is list.*leave it out"):
            made.validate(schema)


@st.composite
def histories(draw: Any) -> list[Change]:
    """Rows that come, and go only if they are there."""
    there: list[tuple[str | None, float | None]] = []
    changes: list[Change] = []
    for _ in range(draw(st.integers(1, 30))):
        if there and draw(st.booleans()):
            k, v = there.pop(draw(st.integers(0, len(there) - 1)))
            changes.append((draw(st.sampled_from([DELETE, UPDATE_BEFORE])), k, v))
        else:
            k, v = draw(st.sampled_from(["a", "b", None])), draw(st.sampled_from([1.0, -0.0, NAN, None]))
            there.append((k, v))
            changes.append((draw(st.sampled_from([INSERT, UPDATE_AFTER])), k, v))
    return changes


@given(histories(), st.integers(1, 12), st.booleans(), st.sampled_from(["parquet", "csv", "json"]))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_remains_is_what_came_and_did_not_go(
    tmp_path_factory: Any, changes: list[Change], cut: int, small: bool, format: Any
) -> None:
    expected: Counter[tuple[Any, ...]] = Counter()
    for op, k, v in changes:
        expected[(k, str(v))] += 1 if op in (INSERT, UPDATE_AFTER) else -1
    expected = +expected
    out = tmp_path_factory.mktemp("bags")
    checkpoints = [changes[i : i + cut] for i in range(0, len(changes), cut)]
    with pytest.MonkeyPatch.context() as patch:
        if small:
            patch.setattr(upsert_files, "CHANGES_BYTES", 60)
            patch.setattr(upsert_files, "CACHE_BYTES", 0)
        run(sink(out / "files", format=format), checkpoints)
    # JSON has no NaN: as everywhere in it, null stands for that.
    as_stored: Counter[tuple[Any, ...]] = Counter()
    for (k, v), times in expected.items():
        as_stored[k, "None" if v == "nan" and format == "json" else v] += times
    assert written(out / "files", format) == as_stored
    run(collect_sink(out / "collected", whole_rows=True), checkpoints)
    assert bag(read_collected(out / "collected", ["k"], whole_rows=True).to_pylist()) == expected
