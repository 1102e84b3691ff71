"""Whole small jobs in this process, on the real engine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col

WORDS = ["to", "be", "or", "not", "to", "be", "that", "is", "the", "question"]


def rows_of(table: pa.Table, by: str) -> list[dict[str, Any]]:
    return sorted(table.to_pylist(), key=lambda row: row[by])


@pytest.mark.parametrize("parallelism", [1, 3])
def test_columns_are_computed_and_rows_filtered(parallelism: int) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    stream = env.from_rows([{"n": n, "tags": [str(n)] * n} for n in range(6)])
    table = (
        stream.filter(col("n") % 2 == 0)
        .with_columns(double=col("n") * 2)
        .explode("tags")
        .rename(tags="tag")
        .execute_and_collect(local=True)
    )
    assert table.schema == pa.schema({"n": pa.int64(), "tag": pa.string(), "double": pa.int64()})
    assert rows_of(table, "tag") == [{"n": n, "tag": str(n), "double": 2 * n} for n in (2, 2, 4, 4, 4, 4)]


def test_rows_stay_in_order_at_parallelism_one() -> None:
    env = rf.StreamEnvironment()
    table = env.from_rows([{"n": n} for n in range(100)]).map(lambda n: n + 1, returns={"m": int})
    assert table.execute_and_collect(local=True)["m"].to_pylist() == list(range(1, 101))


def test_functions_see_rows_and_values() -> None:
    def squares(row: dict[str, int]) -> Iterator[int]:
        yield row["a"] * row["b"]

    env = rf.StreamEnvironment()
    stream = env.from_rows([{"a": 2, "b": 3}, {"a": 4, "b": 5}])
    assert stream.flat_map(squares).execute_and_collect(local=True).to_pydict() == {"value": [6, 20]}
    kept = stream.filter(lambda row: row["a"] > 2)
    assert kept.execute_and_collect(local=True).to_pylist() == [{"a": 4, "b": 5}]
    doubled = stream.map_batches(lambda frame: frame * 2, batch_format="pandas", returns={"a": int, "b": int})
    assert doubled.execute_and_collect(local=True).to_pydict() == {"a": [4, 8], "b": [6, 10]}


@pytest.mark.parametrize("parallelism", [1, 2])
def test_a_running_count_collects_the_last_row_per_key(parallelism: int) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    counts = (
        env.from_batches(lambda: (pa.record_batch({"word": [word]}) for word in WORDS))
        .key_by("word")
        .aggregate(n=rf.count())
    )
    table = counts.execute_and_collect(local=True)
    assert {row["word"]: row["n"] for row in table.to_pylist()} == Counter(WORDS)


def test_a_filter_takes_back_what_it_let_through_before() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    counts = (
        env.from_batches(lambda: (pa.record_batch({"word": [word]}) for word in WORDS))
        .key_by("word")
        .aggregate(n=rf.count())
    )
    once = counts.filter(col("n") == 1).execute_and_collect(local=True)
    assert sorted(once["word"].to_pylist()) == sorted(w for w, n in Counter(WORDS).items() if n == 1)


def test_an_upsert_file_has_the_last_row_per_key(tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    lines = env.from_rows([{"line": " ".join(WORDS)}])
    words = lines.flat_map(str.split, returns={"word": str})
    words.key_by("word").aggregate(n=rf.count()).rename(word="w").write_parquet(
        tmp_path / "out", mode="upsert"
    )
    assert env.execute(local=True).state == "FINISHED"
    assert {row["w"]: row["n"] for row in pq.read_table(tmp_path / "out").to_pylist()} == Counter(WORDS)


def test_updates_are_printed_with_the_old_rows(capsys: pytest.CaptureFixture[str]) -> None:
    env = rf.StreamEnvironment(name="print")
    batches = [pa.record_batch({"k": ["a"]}), pa.record_batch({"k": ["a"]})]
    env.from_batches(batches).key_by("k").aggregate(n=rf.count()).print()
    env.execute(local=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines in (
        ['+I {"k":"a","n":2}'],
        ['+I {"k":"a","n":1}', '-U {"k":"a","n":1}', '+U {"k":"a","n":2}'],
    )


def test_windows_count_by_event_time_and_nest() -> None:
    seconds = [0, 59, 61, 3599, 3600, 7300]
    table = pa.table({"k": ["x"] * 6, "t": pa.array(seconds, pa.timestamp("s"))})
    env = rf.StreamEnvironment(parallelism=2)
    stream = env.from_arrow(table, watermark=rf.Watermark("t", delay="1s"))
    minutes = stream.key_by("k").window(rf.Tumbling("1m")).aggregate(n=rf.count())
    hours = minutes.key_by("k").window(rf.Tumbling("1h")).aggregate(n=col("n").sum())
    result = rows_of(hours.execute_and_collect(local=True), "window_start")
    assert [(row["window_start"].hour, row["window_end"].hour, row["n"]) for row in result] == [
        (0, 1, 4),
        (1, 2, 1),
        (2, 3, 1),
    ]


def test_unions_meet_and_broadcasts_multiply() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    one, two = env.from_rows([{"n": 1}]), env.from_rows([{"n": 2}])
    assert sorted(one.union(two).execute_and_collect(local=True)["n"].to_pylist()) == [1, 2]
    doubled = one.broadcast().map(lambda n: n, returns={"n": int})
    assert doubled.execute_and_collect(local=True)["n"].to_pylist() == [1, 1]
    for moved in (one.rebalance(), one.rescale()):
        stream = moved.with_columns(m=col("n")).with_parallelism(4)
        assert stream.execute_and_collect(local=True).to_pylist() == [{"n": 1, "m": 1}]


def test_an_empty_stream_collects_an_empty_table_of_its_columns() -> None:
    env = rf.StreamEnvironment()
    stream = env.from_rows([{"n": 1}]).filter(col("n") > 1)
    assert stream.execute_and_collect(local=True).schema == stream.schema


def test_an_unbounded_stream_cannot_be_collected() -> None:
    env = rf.StreamEnvironment()
    stream = env.generate(lambda start, count: pa.record_batch({"n": list(range(start, start + count))}))
    with pytest.raises(rf.PlanError, match="never ends"):
        stream.filter(col("n") > 1).execute_and_collect(local=True)


def test_a_stream_may_be_executed_again() -> None:
    env = rf.StreamEnvironment()
    stream = env.from_rows([{"n": 1}])
    for _ in range(2):
        assert stream.execute_and_collect(local=True).num_rows == 1
    stream.discard()
    assert env.execute(local=True).name == "job"
    with pytest.raises(rf.PlanError, match="writes nowhere"):
        env.execute(local=True)


def test_a_function_that_raises_fails_the_job_with_its_line() -> None:
    env = rf.StreamEnvironment(config={"restart.strategy": "none"})
    stream = env.from_rows([{"n": 0}]).map(lambda n: 1 // n, returns={"m": int}).name("divide")
    with pytest.raises(rf.JobFailed, match="ZeroDivisionError") as error:
        stream.execute_and_collect(local=True)
    assert error.value.operator == "divide"
    assert "test_execution.py" in str(error.value.location)


# ---------------------------------------------------------------------------- sources and sinks of one's own


class Countdown(rf.Source):
    """From `start` down to 1, in two splits."""

    def __init__(self, start: int) -> None:
        self._start = start

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"n": pa.int64()})

    def splits(self) -> list[rf.Split]:
        middle = self._start // 2
        ranges = {"high": (self._start, middle), "low": (middle, 0)}
        return [rf.Split(id=name, payload={"from": a, "to": b}) for name, (a, b) in ranges.items()]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return CountdownReader(split.payload["from"] if position is None else position, split.payload["to"])


class CountdownReader(rf.SplitReader):
    def __init__(self, at: int, end: int) -> None:
        self._at, self._end = at, end

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self._at == self._end:
            return None
        first, self._at = self._at, max(self._end, self._at - max_rows)
        return pa.record_batch({"n": pa.array(range(first, self._at, -1), pa.int64())})

    def position(self) -> int:
        return self._at


class Folder(rf.Sink):
    """A file per transaction, which gets its name when the checkpoint is complete."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def open(self, ctx: rf.SinkContext) -> None:
        self._index, self._rows = ctx.subtask_index, []

    def write(self, batch: pa.RecordBatch) -> None:
        self._rows += batch["n"].to_pylist()

    def prepare(self, checkpoint_id: int) -> str:
        name = f"{self._index}-{checkpoint_id}"
        (self._path / f"{name}.pending").write_text(" ".join(map(str, self._rows)))
        self._rows = []
        return name

    def commit(self, permit: rf.CommitPermit) -> None:
        pending = self._path / f"{permit.pending}.pending"
        if pending.exists():
            pending.rename(self._path / f"{permit.pending}.txt")


def test_sources_and_sinks_of_ones_own_take_part(tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"batch.rows": 3})
    env.from_source(Countdown(10)).filter(col("n") != 5).sink_to(Folder(tmp_path))
    env.execute(local=True)
    rows = [int(n) for file in tmp_path.glob("*.txt") for n in file.read_text().split()]
    assert sorted(rows) == [1, 2, 3, 4, 6, 7, 8, 9, 10]
    assert not list(tmp_path.glob("*.pending"))


# --------------------------------------------------------------------------------------------- on Ray


class FakeHandle:
    """Runs the job here when waited for, or is interrupted."""

    def __init__(self, graph: Any, config: dict[str, Any], interrupted: bool) -> None:
        self.graph, self.config, self.interrupted, self.cancelled = graph, config, interrupted, False

    def wait(self) -> Any:
        from rayflow.runtime.local import run_local

        if self.interrupted:
            raise KeyboardInterrupt
        return run_local(self.graph, self.config)

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> list[FakeHandle]:
    """Stands in for `rayflow.client`; holds the handles of what was submitted. `interrupted` by name."""
    handles: list[FakeHandle] = []

    def submit(graph: Any, config: dict[str, Any], name: str, address: str | None) -> FakeHandle:
        handles.append(FakeHandle(graph, config, interrupted=name == "interrupted"))
        return handles[-1]

    monkeypatch.setattr("rayflow.client.submit", submit, raising=False)
    return handles


def test_rows_collected_on_a_cluster_come_through_the_checkpoint_storage(
    cluster: list[FakeHandle], tmp_path: Path
) -> None:
    env = rf.StreamEnvironment(config={"checkpoint.storage": f"file://{tmp_path}"})
    table = env.from_rows([{"n": 1}]).execute_and_collect()
    assert table.to_pylist() == [{"n": 1}]
    assert not list(tmp_path.glob("collect-*/*"))


def test_submitting_returns_the_handle_at_once(cluster: list[FakeHandle]) -> None:
    env = rf.StreamEnvironment(name="later")
    env.from_rows([{"n": 1}]).discard()
    handle: Any = env.submit()
    assert handle is cluster[0]
    assert handle.graph.name == "later"


def test_an_interrupt_cancels_the_job(cluster: list[FakeHandle]) -> None:
    env = rf.StreamEnvironment(name="interrupted")
    env.from_rows([{"n": 1}]).discard()
    with pytest.raises(KeyboardInterrupt):
        env.execute()
    assert cluster[0].cancelled


def test_credentials_of_the_environment_travel_with_the_job(
    cluster: list[FakeHandle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    env = rf.StreamEnvironment()
    env.from_rows([{"n": 1}]).discard()
    env.submit()
    assert cluster[0].config["s3.secret_key"] == "secret"
