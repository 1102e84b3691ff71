from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow.model.errors import PlanError

TIMED = pa.table({"n": [1, 2], "t": pa.array([5, 9], pa.timestamp("ms"))})


class Numbers(rf.Source):
    """A source of one split."""

    max_parallelism = 1

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"n": pa.int64()})

    def splits(self) -> Sequence[rf.Split]:
        return [rf.Split(id="all")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        raise AssertionError("never opened by a plan")


def batch(start: int, count: int) -> pa.RecordBatch:
    return pa.record_batch({"n": pa.array(range(start, start + count), pa.int64())})


def planned(env: rf.StreamEnvironment, stream: Any) -> Any:
    stream.discard()
    return env.plan().vertices[0].operators[0]


def test_every_source_knows_its_columns(env: rf.StreamEnvironment, tmp_path: Path) -> None:
    pq.write_table(TIMED, tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("n,t\n1,2013-01-01T00:00:00\n")
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    (tmp_path / "a.txt").write_text("hello\n")
    assert env.read_parquet(tmp_path / "a.parquet").schema == TIMED.schema
    assert env.read_csv(str(tmp_path / "a.csv")).schema.names == ["n", "t"]
    assert env.read_json(tmp_path).schema == pa.schema({"n": pa.int64()})
    assert env.read_text(tmp_path / "*.txt").schema.names == ["line"]
    assert env.from_rows([{"a": 1}]).schema == pa.schema({"a": pa.int64()})
    assert env.from_rows([], schema={"a": str}).schema == pa.schema({"a": pa.string()})
    assert env.from_arrow(TIMED).schema == TIMED.schema
    assert env.from_arrow(batch(0, 1)).schema == batch(0, 1).schema
    assert env.from_batches(lambda: [batch(0, 2)]).schema == batch(0, 1).schema
    assert env.from_batches([batch(0, 2)]).schema == batch(0, 1).schema
    assert env.generate(batch, rows=10).schema == batch(0, 1).schema
    assert env.from_source(Numbers()).schema == pa.schema({"n": pa.int64()})


def test_a_watermark_becomes_the_sources_time(env: rf.StreamEnvironment) -> None:
    spec = planned(env, env.from_arrow(TIMED, watermark=rf.Watermark("t", delay="2s", max_drift="1m")))
    assert (spec.time.column, spec.time.delay, spec.time.max_drift) == ("t", 2 * 10**9, 60 * 10**9)


def test_rate_limits_come_from_the_call_else_from_the_configuration() -> None:
    env = rf.StreamEnvironment(config={"source.rate_limit": "100"})
    env.generate(batch, rate_limit=5).discard()
    env.generate(batch).discard()
    assert [v.operators[0].rate_limit for v in env.plan().vertices] == [5, 100]


def test_a_source_may_limit_its_parallelism(env: rf.StreamEnvironment) -> None:
    env.from_source(Numbers()).map(lambda n: n).discard()
    env.from_batches([batch(0, 1)]).discard()
    assert [v.parallelism for v in env.plan().vertices] == [1, 2, 1, 2]


def test_text_formats_with_a_watermark_are_warned_about(env: rf.StreamEnvironment, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,t\n1,2013-01-01T00:00:00\n")
    env.read_csv(tmp_path, watermark=rf.Watermark("t")).discard()
    assert "no event-time statistics" in env.plan().warnings[0]


def test_a_watched_folder_may_be_empty_if_the_columns_are_given(
    env: rf.StreamEnvironment, tmp_path: Path
) -> None:
    stream = env.read_json(tmp_path, schema={"a": int}, watch="10s")
    spec = planned(env, stream)
    assert not spec.payload.bounded
    assert spec.payload.discovery_interval_ms() == 10_000


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda e: e.read_parquet("/nowhere/x.parquet"), "/nowhere/x.parquet"),
        (lambda e: e.read_csv("/nowhere/*.csv"), "/nowhere"),
        (lambda e: e.read_json("ftp://host/x"), "ftp"),
        (lambda e: e.read_text("/nowhere", watch="soon"), "watch"),
        (lambda e: e.from_rows([]), "give schema="),
        (lambda e: e.from_rows([{"a": 1}, {"a": "x"}]), "from_rows"),
        (lambda e: e.from_rows([1]), "from_rows"),
        (lambda e: e.from_arrow([1]), "pyarrow.Table"),
        (lambda e: e.from_arrow(TIMED, watermark="t"), "rf.Watermark"),
        (lambda e: e.from_arrow(TIMED, watermark=rf.Watermark("tt")), "did you mean 't'"),
        (lambda e: e.from_arrow(TIMED, watermark=rf.Watermark("n")), "expected a timestamp"),
        (lambda e: e.from_arrow(TIMED, rate_limit=0), "rate_limit"),
        (lambda e: e.from_arrow(pa.table({"__op": [1]})), "reserved"),
        (lambda e: e.from_batches(iter([])), "only once"),
        (lambda e: e.from_batches([]), "give schema="),
        (lambda e: e.from_batches([TIMED]), "got Table"),
        (lambda e: e.from_batches(lambda: 1 / 0), "ZeroDivisionError"),
        (lambda e: e.generate(lambda start, count: 1 / 0), "ZeroDivisionError"),
        (lambda e: e.generate(lambda start, count: {}), "expected a RecordBatch"),
        (lambda e: e.generate(batch, rows=-1), "rows"),
        (lambda e: e.from_source([1]), "rf.Source"),
    ],
)
def test_a_mistake_is_a_plan_error_at_the_users_line(env: Any, call: Any, says: str) -> None:
    with pytest.raises(PlanError) as error:
        call(env)
    assert says in str(error.value)
    assert "test_sources.py" in str(error.value.location)
    assert "lambda e:" in str(error.value.location)
