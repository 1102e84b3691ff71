"""Process functions and connected streams, end to end: crashes, restores into changed functions, side outputs."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import rayflow as rf
from rayflow import col

T0 = datetime(2024, 1, 1)
COUNTED = {"k": int, "n": int, "t": datetime}


class Sessions(rf.KeyedProcessFunction):
    """Rows of a key until there are none for 5 s, which the next row shows, or a timer."""

    count = rf.ValueState("int64", default=0)
    values = rf.ListState("int64")
    last = rf.ValueState(datetime)

    def process(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        last = self.last.value
        if last is not None:
            ctx.delete_event_timer(last + timedelta(seconds=5))
            if ctx.timestamp - last > timedelta(seconds=5):
                yield from self.on_timer(last + timedelta(seconds=5), ctx)
        self.count.value += 1
        self.values.append(row["v"])
        self.last.value = ctx.timestamp
        ctx.register_event_timer(ctx.timestamp + timedelta(seconds=5))

    def on_timer(self, ts: datetime, ctx: Any) -> Iterator[dict[str, Any]]:
        yield {"k": ctx.current_key, "n": self.count.value, "s": sum(self.values), "t": ts}
        self.count.clear()
        self.values.clear()
        self.last.clear()


SESSIONS = {"k": int, "n": int, "s": int, "t": datetime}


def rows(count: int, seed: int = 1) -> pa.Table:
    rng = random.Random(seed)
    times, now = [], T0
    for _ in range(count):
        now += timedelta(milliseconds=rng.randrange(100))
        times.append(now)
    return pa.table(
        {
            "k": [rng.randrange(40) for _ in range(count)],
            "v": [rng.randrange(1000) for _ in range(count)],
            "t": pa.array(times, pa.timestamp("us")),
        }
    )


def sessions_of(table: pa.Table) -> Counter[tuple[Any, ...]]:
    open_: dict[int, list[Any]] = defaultdict(list)
    found: list[tuple[Any, ...]] = []
    for row in table.to_pylist():
        members = open_[row["k"]]
        if members and row["t"] - members[-1]["t"] > timedelta(seconds=5):
            found.append(shown(members))
            members.clear()
        members.append(row)
    return Counter([*found, *(shown(members) for members in open_.values() if members)])


def shown(members: list[dict[str, Any]]) -> tuple[Any, ...]:
    end = members[-1]["t"] + timedelta(seconds=5)
    return (members[0]["k"], len(members), sum(m["v"] for m in members), end)


def source(table: pa.Table, parallelism: int, **config: Any) -> rf.DataStream:
    env = rf.StreamEnvironment(parallelism=parallelism, config=config)
    return env.from_arrow(table).assign_watermarks(rf.Watermark("t"))


@pytest.mark.parametrize(("parallelism", "batch_rows"), [(1, 7), (2, 1000), (4, 65536)])
def test_timers_and_states_make_sessions(parallelism: int, batch_rows: int) -> None:
    table = rows(3000)
    stream = source(table, parallelism, **{"batch.rows": batch_rows})
    out = stream.key_by("k").process(Sessions, returns=SESSIONS).execute_and_collect(local=True)
    assert Counter(tuple(row.values()) for row in out.to_pylist()) == sessions_of(table)


def test_the_results_have_event_time_where_they_have_its_column() -> None:
    table = rows(3000)
    made = source(table, 2).key_by("k").process(Sessions(), returns=SESSIONS)
    windows = made.key_by("k").window(rf.Tumbling("1m")).aggregate(sessions=rf.count(), n=col("n").sum())
    out = windows.execute_and_collect(local=True)
    expected: Counter[Any] = Counter()
    for k, _, _, end in sessions_of(table):
        expected[k, end.replace(second=0, microsecond=0)] += 1
    assert {(r["k"], r["window_start"]): r["sessions"] for r in out.to_pylist()} == expected
    without = source(table, 1).key_by("k").process(Sessions, returns={"k": int, "n": int})
    with pytest.raises(rf.PlanError, match="no watermark"):
        without.key_by("k").window(rf.Tumbling("1m"))


@pytest.mark.parametrize(
    ("seed", "state"), [(0, {}), (1, {"state.backend": "disk", "memory.managed": 0}), (2, {})]
)
def test_subtasks_that_die_change_nothing(lab: Any, tmp_path: Path, seed: int, state: Any) -> None:
    table = rows(12_000, seed)
    stream = source(table, seed % 2 + 1, **{"source.rate_limit": 8_000}, **state)
    stream.key_by("k").process(Sessions, returns=SESSIONS).write_parquet(tmp_path / "out")
    watcher = lab.crashing(stream._env, 3, seed, every=2)
    result = lab.finish(
        stream._env,
        on_start=watcher,
        checkpoint__interval="50ms",
        batch__rows=500,
        restart__delay="1ms",
    )
    assert lab.rows(tmp_path / "out") == sessions_of(table)
    restarts = result.describe["restarts"]
    assert len(watcher.stop()) == 3
    assert len(restarts) >= 1
    assert all("/chk-" in restart["restored_from"] for restart in restarts)


# ------------------------------------------------------------------------------------- state evolution


class First(rf.KeyedProcessFunction):
    count = rf.ValueState("int32", default=0)
    gone = rf.ValueState(str)
    entries = rf.MapState(str, "int16")

    def process(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        self.count.value += 1
        self.gone.value = "x"
        self.entries["a"] = self.count.value
        yield {"k": row["k"], "n": self.count.value, "t": row["t"]}


class Second(rf.KeyedProcessFunction):
    added = rf.ValueState(float, default=0.5)
    count = rf.ValueState("int64", default=0)
    entries = rf.MapState(str, "int64")

    def process(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        self.count.value += 1
        self.added.value *= 2
        self.entries["b"] = 2**40
        yield {
            "k": row["k"],
            "n": self.count.value,
            "t": row["t"],
            "added": self.added.value,
            "e": len(self.entries),
        }


def job(path: Path, fn: Any, out: str, parallelism: int = 1, returns: Any = COUNTED) -> rf.StreamEnvironment:
    """A job that reads what lies under `path`, and goes on with new files when it is restored. `fn` may be a
    type, to which the keys are cast."""
    env = rf.StreamEnvironment(
        parallelism=parallelism, config={"checkpoint.storage": str(path / "checkpoints")}
    )
    stream = env.read_parquet(str(path / "in")).uid("read").assign_watermarks(rf.Watermark("t"))
    if isinstance(fn, pa.DataType):
        stream, fn = stream.with_columns(k=col("k").cast(fn)), Second
    stream.key_by("k").process(fn, returns=returns).uid("fn").write_parquet(path / out)
    return env


def put(path: Path, name: str, keys: list[int]) -> None:
    times = pa.array([T0] * len(keys), pa.timestamp("us"))
    (path / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"k": keys, "v": [1] * len(keys), "t": times}), path / "in" / f"{name}.parquet")


@pytest.fixture
def checkpoint(lab: Any, tmp_path: Path) -> Path:
    """The last checkpoint of a job that counted 100 rows of each of 10 keys. A new file has come since."""
    put(tmp_path, "1", [i % 10 for i in range(1000)])
    lab.finish(job(tmp_path, First, "first"), checkpoint__interval="1h")
    put(tmp_path, "2", list(range(12)))
    (path,) = (tmp_path / "checkpoints").glob("*/chk-*")
    return path


@pytest.mark.parametrize("parallelism", [1, 3])
def test_states_may_come_go_and_widen_between_two_versions_of_a_function(
    lab: Any, tmp_path: Path, checkpoint: Path, parallelism: int
) -> None:
    returns = {**COUNTED, "added": float, "e": int}
    lab.finish(job(tmp_path, Second, "second", parallelism, returns), restore_from=checkpoint)
    got = sorted((r["k"], r["n"], r["added"], r["e"]) for r in lab.read(tmp_path / "second").to_pylist())
    assert got == [(k, 101, 1.0, 2) for k in range(10)] + [(k, 1, 1.0, 1) for k in (10, 11)]


def changed(**states: Any) -> type[rf.KeyedProcessFunction]:
    def process(self: Any, row: dict[str, Any], ctx: Any) -> None:
        return None

    return type("Changed", (rf.KeyedProcessFunction,), {"process": process, **states})


@pytest.mark.parametrize(
    ("states", "message"),
    [
        ({"count": rf.ValueState(str)}, "state 'count' is int32 in the checkpoint and string in this job"),
        ({"count": rf.ValueState("int16")}, "state 'count' is int32 in the checkpoint and int16 in this job"),
        (
            {"count": rf.ListState("int32")},
            "state 'count' is a value in the checkpoint and a list in this job",
        ),
        (
            {"entries": rf.MapState(str, str)},
            r"state 'entries' is map<string, int16> in the checkpoint and map<string, string",
        ),
    ],
)
def test_other_changes_are_errors_that_name_both_types(
    lab: Any, tmp_path: Path, checkpoint: Path, states: Any, message: str
) -> None:
    error = lab.fail(job(tmp_path, changed(**states), "second"), restore_from=checkpoint)
    assert message in str(error)
    assert "operator 'process'" in str(error)
    assert not lab.files(tmp_path / "second")


def test_other_keys_are_an_error(lab: Any, tmp_path: Path, checkpoint: Path) -> None:
    error = lab.fail(job(tmp_path, pa.string(), "second"), restore_from=checkpoint)
    assert "its state is by k int64 in the checkpoint and by k string in this job" in str(error)


def test_state_read_shows_states_by_key(checkpoint: Path) -> None:
    from rayflow.cli.state_commands import state_group

    ran = CliRunner().invoke(
        state_group, ["read", str(checkpoint), "--operator", "fn"], catch_exceptions=False
    )
    assert "fn / state: 10 rows" in ran.output
    heading = next(line for line in ran.output.splitlines() if "count.value" in line)
    assert heading.split()[:4] == ["k", "count.value", "gone.value", "entries.map"]


# ---------------------------------------------------------------------------------- side outputs, connect


def test_functions_put_rows_aside() -> None:
    class Split(rf.KeyedProcessFunction):
        def process(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
            if row["v"] % 2:
                ctx.output("odd", {"v": row["v"], "t": row["t"]})
            else:
                yield {"v": row["v"]}

    table = rows(500)
    made = source(table, 2).key_by("k").process(Split, returns={"v": int})
    odd = made.side_output("odd", returns={"v": int, "t": datetime})
    got = odd.filter(col("v") > 500).execute_and_collect(local=True)
    assert sorted(got["v"].to_pylist()) == sorted(v for v in table["v"].to_pylist() if v % 2 and v > 500)
    odd.key_by("v").window(rf.Tumbling("1h"))  # event time came along


class Apply(rf.CoProcessFunction):
    """Keeps rows above their key's limit; waits for limits by keeping rows for a while."""

    limit = rf.ValueState("int64")
    early = rf.ListState("int64")

    def process1(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        if self.limit.value is None:
            self.early.append(row["v"])
        elif row["v"] > self.limit.value:
            yield {"k": row["k"], "v": row["v"]}

    def process2(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        self.limit.value = row["limit"]
        for v in self.early:
            if v > row["limit"]:
                yield {"k": ctx.current_key, "v": v}
        self.early.clear()


def above(table: pa.Table, limits: dict[int, int]) -> Counter[tuple[int, int]]:
    pairs = zip(table["k"].to_pylist(), table["v"].to_pylist())
    return Counter((k, v) for k, v in pairs if v > limits[k])


@pytest.mark.parametrize("parallelism", [1, 2, 3])
def test_two_keyed_streams_meet_by_key(parallelism: int) -> None:
    table, limits = rows(2000), {k: 20 * k for k in range(40)}
    stream = source(table, parallelism, **{"batch.rows": 100})
    others = stream._env.from_rows([{"id": k, "limit": v} for k, v in limits.items()])
    both = stream.key_by("k").connect(others.key_by("id")).process(Apply(), returns={"k": int, "v": int})
    out = both.execute_and_collect(local=True)
    assert Counter(zip(out["k"].to_pylist(), out["v"].to_pylist())) == above(table, limits)


class Known(rf.CoProcessFunction):
    """Broadcast limits; rows that come before them are kept by key."""

    limits = rf.MapState("int64", "int64", broadcast=True)
    waiting = rf.ListState("int64")

    def process1(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        self.waiting.append(row["v"])
        ctx.register_event_timer(ctx.timestamp)
        yield from ()

    def process2(self, row: dict[str, Any], ctx: Any) -> None:
        self.limits[row["id"]] = row["limit"]

    def on_timer(self, ts: datetime, ctx: Any) -> Iterator[dict[str, Any]]:
        if ctx.current_key in self.limits:
            limit = self.limits[ctx.current_key]
            yield from ({"k": ctx.current_key, "v": v} for v in self.waiting if v > limit)
            self.waiting.clear()
        elif ctx.watermark < datetime.max:
            ctx.register_event_timer(ts)


@pytest.mark.parametrize("seed", range(2))
def test_broadcast_state_and_keyed_state_survive_crashes(lab: Any, tmp_path: Path, seed: int) -> None:
    table, limits = rows(8000, seed), {k: 20 * k for k in range(40)}
    stream = source(table, 2, **{"source.rate_limit": 8_000})
    others = stream._env.from_rows([{"id": k, "limit": v} for k, v in limits.items()])
    both = stream.key_by("k").connect(others.broadcast()).process(Known, returns={"k": int, "v": int})
    both.write_parquet(tmp_path / "out")
    watcher = lab.crashing(stream._env, 2, seed, every=2)
    lab.finish(
        stream._env,
        on_start=watcher,
        checkpoint__interval="50ms",
        batch__rows=200,
        restart__delay="1ms",
    )
    assert len(watcher.stop()) == 2
    assert lab.rows(tmp_path / "out") == above(table, limits)


def test_a_value_of_the_wrong_type_fails_the_job_and_says_where(lab: Any, tmp_path: Path) -> None:
    class Wrong(rf.KeyedProcessFunction):
        count = rf.ValueState("int64")

        def process(self, row: dict[str, Any], ctx: Any) -> None:
            self.count.value = "many"

    stream = source(rows(10), 1, **{"restart.strategy": "none"})
    stream.key_by("k").process(Wrong).write_parquet(tmp_path / "out")
    message = str(lab.fail(stream._env))
    assert "TypeError: state 'count' of key " in message
    assert "value 'many' (str) is no int64" in message
    assert "in process, " in message
    assert "rows at hand" in message


def test_a_stream_without_event_time_does_not_hold_timers_back(lab: Any) -> None:
    def rule(start: int, count: int) -> pa.RecordBatch:
        return pa.record_batch({"id": range(start, start + count), "limit": [0] * count})

    class Last(Known):
        def on_timer(self, ts: datetime, ctx: Any) -> Iterator[dict[str, Any]]:
            yield {"k": ctx.current_key, "v": len(self.waiting)}

    def step(start: int, count: int) -> pa.RecordBatch:
        times = [T0 + timedelta(seconds=n) for n in range(start, start + count)]
        ones = [1] * count
        return pa.record_batch({"k": ones, "v": ones, "t": pa.array(times, pa.timestamp("us"))})

    env = rf.StreamEnvironment(parallelism=2)
    endless = env.generate(rule, rate_limit=100).broadcast()
    stream = env.generate(step, rate_limit=500).assign_watermarks(rf.Watermark("t"))
    made = stream.key_by("k").connect(endless).process(Last, returns={"k": int, "v": int})
    made.discard()

    def look(running: Any) -> Any:
        reached = running.master.metrics()["operators"].get("process-1", {}).get("watermark")
        if reached is not None or lab.completed(running) > 100:
            running.master.cancel()
        return reached

    watcher = lab.watch(look)
    lab.run(env, on_start=watcher, checkpoint__interval="50ms")
    assert watcher.stop(), "the watermark did not move"
