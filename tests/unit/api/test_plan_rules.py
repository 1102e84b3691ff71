"""What a plan warns about, from the calls that users write: each rule with its line, and jobs that get none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow import col
from rayflow.cli.job_file import load_job

JOBS = sorted(Path(__file__).parents[3].joinpath("jobs").glob("*.py"))
TABLE = pa.table({"k": ["a", "b"], "n": [1, 2], "t": pa.array([1, 2], pa.timestamp("s"))})


def env_of(parallelism: int = 2, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(parallelism=parallelism, config=config)


def endless(env: rf.StreamEnvironment, **more: Any) -> Any:
    return env.generate(lambda start, count: TABLE.to_batches()[0].slice(0, 1), rows=None, **more)


def parquet_files(path: Path, files: int, groups: int = 1) -> str:
    for number in range(files):
        table = pa.concat_tables([TABLE] * groups)
        pq.write_table(table, path / f"{number}.parquet", row_group_size=TABLE.num_rows)
    return str(path)


class Partitions(rf.Source):
    """A source of a user's own, with that many partitions."""

    schema = TABLE.schema

    def __init__(self, count: int, *, broken: bool = False) -> None:
        self.count, self.broken = count, broken

    def splits(self) -> Sequence[rf.Split]:
        if self.broken:
            raise OSError("no route to the broker")
        return [rf.Split(id=str(i)) for i in range(self.count)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        raise AssertionError("nothing is read while planning")


# ----------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    ("files", "groups", "warned"), [(3, 1, True), (1, 3, True), (2, 2, False), (4, 1, False)]
)
def test_row_groups_are_set_beside_the_parallelism(
    tmp_path: Path, files: int, groups: int, warned: bool
) -> None:
    env = env_of(2)
    env.read_parquet(parquet_files(tmp_path, files, groups)).discard()
    found = [text for text in env.plan().warnings if "splits for 2 subtasks" in text]
    assert len(found) == warned
    assert all("test_plan_rules.py" in text for text in found)


def test_so_are_text_csv_and_json_files(tmp_path: Path) -> None:
    for name, text in (("a.csv", "x\n1\n"), ("a.jsonl", '{"x": 1}\n'), ("a.txt", "x\n")):
        (tmp_path / name).write_text(text)
    env = env_of(3)
    env.read_csv(tmp_path / "a.csv").discard()
    env.read_json(tmp_path / "a.jsonl").discard()
    env.read_text(tmp_path / "a.txt").discard()
    assert [
        text.split(" ")[0] for text in env.plan().warnings if "2 of them have nothing to read" in text
    ] == [*("read_csv", "read_json", "read_text")]


def test_so_are_the_splits_of_a_source_of_ones_own() -> None:
    env = env_of(4)
    env.from_source(Partitions(6)).discard()
    (warning,) = env.plan().warnings
    assert warning.startswith("Partitions (")
    assert "6 splits for 4 subtasks" in warning


def test_a_source_that_cannot_be_listed_here_does_not_spoil_the_plan() -> None:
    env = env_of(4)
    env.from_source(Partitions(6, broken=True)).discard()
    (warning,) = env.plan().warnings
    assert "cannot be listed here (OSError: no route to the broker)" in warning


def test_a_single_subtask_need_not_be_told() -> None:
    env = env_of(1)
    env.from_source(Partitions(3, broken=True)).discard()
    assert env.plan().warnings == ()


def test_watched_files_and_small_tables_are_of_no_account(tmp_path: Path) -> None:
    env = env_of(2)
    env.read_parquet(parquet_files(tmp_path, 3), watch="1s").discard()
    env.from_arrow(TABLE).discard()
    env.generate(lambda start, count: TABLE.to_batches()[0], rows=50_000).discard()
    assert env.plan().warnings == ()


def test_the_stripes_of_an_endless_generator_are() -> None:
    env = env_of(5)
    endless(env).discard()
    assert "16 splits for 5 subtasks" in env.plan().warnings[0]


def test_rebalance_may_be_asked_for_by_source_or_for_all(tmp_path: Path) -> None:
    path = parquet_files(tmp_path, 3)
    one = env_of(2)
    one.read_parquet(path, rebalance="auto").filter(col("n") > 0).discard()
    every = env_of(2, **{"source.rebalance": "auto"})
    every.read_parquet(path).filter(col("n") > 0).discard()
    for env in (one, every):
        graph = env.plan()
        assert [edge.exchange.kind for edge in graph.edges] == ["rebalance"]
        assert graph.warnings == ()


def test_another_way_to_rebalance_is_refused() -> None:
    with pytest.raises(rf.PlanError, match="expected 'auto'"):
        env_of().from_source(Partitions(2), rebalance="always")  # type: ignore[arg-type]


@pytest.mark.parametrize("files", [3, 4])
def test_windows_behind_rebalanced_splits_give_the_same_rows(tmp_path: Path, files: int) -> None:
    path = parquet_files(tmp_path, files)

    def run(**more: Any) -> list[dict[str, Any]]:
        stream = env_of(2).read_parquet(path, watermark=rf.Watermark("t"), **more)
        counts = stream.filter(col("n") > 0).key_by("k").window(rf.Tumbling("1s")).aggregate(n=rf.count())
        return counts.execute_and_collect(local=True).sort_by([("k", "ascending")]).to_pylist()

    assert run(rebalance="auto") == run()
    assert sum(row["n"] for row in run(rebalance="auto")) == 2 * files


# ------------------------------------------------------------------------------------------------ state


class Totals(rf.KeyedProcessFunction):
    total = rf.ValueState(pa.int64())
    last = rf.ValueState(pa.int64(), ttl="1h")

    def process(self, row: Any, ctx: Any) -> Any:
        self.total.value = (self.total.value or 0) + row["n"]
        yield {"n": self.total.value}


class Cleared(Totals):
    def on_timer(self, ts: Any, ctx: Any) -> Any:
        self.total.clear()
        return ()


class Ends(rf.KeyedProcessFunction):
    total = rf.ValueState(pa.int64(), ttl="7d")

    def process(self, row: Any, ctx: Any) -> Any:
        return ()


KEPT = [
    (lambda s: s.key_by("k").aggregate(n=rf.count()), "the aggregates of every key"),
    (lambda s: s.key_by("k").reduce(lambda a, b: a), "rows of every key"),
    (lambda s: s.key_by("k").top_n(2, order_by="n"), "rows of every key"),
    (
        lambda s: s.key_by("k").window(rf.GlobalWindow()).trigger(rf.OnCount(5)).aggregate(n=rf.count()),
        "aggregates",
    ),
    (lambda s: s.key_by("k").process(Totals, returns={"n": "int64"}), "state total of every key"),
]
BOUNDED = [
    lambda s: s.key_by("k").window(rf.Tumbling("1h", time="processing")).aggregate(n=rf.count()),
    lambda s: s.with_columns(k=col("n") > 1).key_by("k").aggregate(n=rf.count()),
    lambda s: s.key_by("k").process(Cleared, returns={"n": "int64"}),
    lambda s: s.key_by("k").process(Ends, returns={"n": "int64"}),
    lambda s: s.filter(col("n") > 1),
]


@pytest.mark.parametrize(("step", "keeps"), KEPT)
def test_state_without_an_end_is_told_where_the_stream_has_none(step: Any, keeps: str) -> None:
    env = env_of(2)
    step(endless(env)).discard()
    (warning,) = env.plan().warnings
    assert f"{keeps}" in warning
    assert "test_plan_rules.py" in warning


@pytest.mark.parametrize(("step", "keeps"), KEPT)
def test_and_not_where_it_has_one(step: Any, keeps: str) -> None:
    env = env_of(2)
    step(env.from_arrow(TABLE)).discard()
    assert env.plan().warnings == ()


@pytest.mark.parametrize("step", BOUNDED)
def test_state_that_ends_is_not_told(step: Any) -> None:
    env = env_of(2)
    step(endless(env)).discard()
    assert env.plan().warnings == ()


# --------------------------------------------------------------------------------- windows, JSON, sinks


def test_a_window_of_five_minutes_every_second_is_told() -> None:
    env = env_of(2)
    rows = env.from_arrow(TABLE, watermark=rf.Watermark("t")).key_by("k")
    rows.window(rf.Sliding("5m", "1s")).aggregate(n=rf.count()).discard()
    rows.window(rf.Sliding("5m", "10s")).aggregate(n=rf.count()).discard()
    (warning,) = env.plan().warnings
    assert "300 windows" in warning


def parsed(row: Any) -> dict[str, Any]:
    return {"n": len(json.dumps(row))}


def test_json_on_an_endless_stream_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    env = env_of(2)
    env.read_json(str(tmp_path), watch="1s").discard()
    endless(env).map(parsed, returns={"n": "int64"}).discard()
    endless(env).write_json(tmp_path / "out")
    assert [text.split(" JSON")[0].split(" ")[-1] for text in env.plan().warnings] == [
        "reads",
        "parses",
        "writes",
    ]


def test_json_that_ends_is_not(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n": 1}\n')
    env = env_of(1)
    env.read_json(str(tmp_path)).map(parsed, returns={"n": "int64"}).write_json(tmp_path / "out")
    assert env.plan().warnings == ()


class Inserts(rf.Sink):
    cursor: Any

    def write(self, batch: pa.RecordBatch) -> None:
        for row in batch.to_pylist():
            self.cursor.execute("INSERT …", row)


def test_a_sink_that_calls_out_for_each_row_is_told() -> None:
    env = env_of(2)
    env.from_arrow(TABLE).sink_to(Inserts())
    (warning,) = env.plan().warnings
    assert "calls self.cursor.execute for each row alone" in warning
    assert "rf.BatchedSink" in warning


def test_print_is_told_where_it_would_never_end() -> None:
    env = env_of(2)
    endless(env).print()
    env.from_arrow(TABLE).print()
    (warning,) = env.plan().warnings
    assert "prints each row" in warning


# ------------------------------------------------------------------------------------------ shipped jobs


@pytest.mark.parametrize("parallelism", [1, 2])
@pytest.mark.parametrize("path", [p for p in JOBS if "def build" in p.read_text()], ids=lambda p: p.stem)
def test_the_jobs_that_ship_have_no_false_warning(
    path: Path, parallelism: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parents[1])
    env = env_of(parallelism)
    job = load_job(path)
    job.build(env, **DEFAULTS.get(path.stem, {}))
    # True, and of no consequence: a small file is one split.
    assert [text for text in env.plan().warnings if "of them has nothing to read" not in text] == []


DEFAULTS: dict[str, dict[str, Any]] = {"nexmark": {"query": "q5", "events": 1_000, "output": "out"}}
