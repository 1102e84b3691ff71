"""The operators of event time, windows, joins and state in one job on real Ray, one of whose subtasks is killed."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import rayflow as rf
from rayflow import col
from rayflow.cli.main import cli

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

T0 = datetime(2024, 1, 1)
ROWS, KEYS = 1_500, 8
SECOND = timedelta(seconds=1)


class Open(rf.Source):
    """A source without rows that keeps its job running until the file `until` exists."""

    schema = pa.schema({"never": pa.null()})

    def __init__(self, until: str) -> None:
        self.until = until

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id="open")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return Waiting(self.until)


class Waiting(rf.SplitReader):
    def __init__(self, until: str) -> None:
        self.until = Path(until)

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        return None if self.until.exists() else pa.RecordBatch.from_pylist([], Open.schema)

    def position(self) -> None:
        return None


class Quiet(rf.KeyedProcessFunction):
    """Says for each key, when its time is up, how many rows came in its first minute; odd values go aside."""

    count = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: Any) -> Iterator[dict[str, Any]]:
        if self.count.value == 0:
            ctx.register_event_timer(T0 + timedelta(hours=1))
        self.count.value += 1
        if row["v"] % 2:
            ctx.output("odd", {"k": row["k"], "v": row["v"]})
        yield from ()

    def on_timer(self, ts: datetime, ctx: Any) -> Iterator[dict[str, Any]]:
        yield {"k": ctx.current_key, "n": self.count.value, "t": ts}


async def look_up(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "twice": 2 * row["v"]}


def events() -> list[dict[str, Any]]:
    """Rows in order of time, two a second; the keys pause now and then."""
    return [
        {"k": (n * n // 7) % KEYS, "v": n, "t": T0 + n * SECOND / 2 + (n // 100) * 10 * SECOND}
        for n in range(ROWS)
    ]


NAMES = [{"k": k, "name": f"name-{k}"} for k in range(0, KEYS, 2)]


def build(env: rf.StreamEnvironment, out: Path) -> None:
    table = pa.Table.from_pylist(
        events(), pa.schema({"k": pa.int64(), "v": pa.int64(), "t": pa.timestamp("us")})
    )
    read = env.from_arrow(table, watermark=rf.Watermark("t", delay="1s"), rate_limit=500)
    asked = read.map_async(look_up, returns={"k": int, "v": int, "t": datetime, "twice": int})
    keyed = asked.key_by("k")
    timed = keyed.process(Quiet, returns={"k": int, "n": int, "t": datetime})
    # Sinks and sources of one subtask where two would only be two more processes to start.
    timed.write_parquet(out / "timed").with_parallelism(1)
    odd = timed.side_output("odd", returns={"k": int, "v": int})
    odd.write_parquet(out / "odd").with_parallelism(1)
    keyed.window(rf.Sliding("20s", "10s")).aggregate(n=rf.count(), s=col("v").sum()).write_parquet(
        out / "sliding"
    )
    keyed.window(rf.Session("10s")).aggregate(n=rf.count()).write_parquet(out / "sessions")
    keyed.top_n(2, order_by=col("v"), rank="r").write_parquet(out / "top", mode="upsert").with_parallelism(1)
    names = env.from_rows(NAMES).with_parallelism(1)
    joined = asked.join(names, on="k", how="left").select("v", "t", "twice", "name")
    joined.write_parquet(out / "joined", mode="upsert")
    asked.broadcast_join(names, on="k").select("v", "name").write_parquet(out / "broadcast")


def expected() -> dict[str, Counter[tuple[Any, ...]]]:
    rows = events()
    name = {row["k"]: row["name"] for row in NAMES}
    by_key: dict[int, list[dict[str, Any]]] = defaultdict(list)
    sliding: dict[Any, list[int]] = defaultdict(list)
    for row in rows:
        by_key[row["k"]].append(row)
        start = T0 + (row["t"] - T0) // (10 * SECOND) * 10 * SECOND
        for s in (start, start - 10 * SECOND):
            sliding[row["k"], s, s + 20 * SECOND].append(row["v"])
    sessions: list[tuple[Any, ...]] = []
    for k, own in by_key.items():
        begin, count = own[0]["t"], 0
        for row, after in zip(own, [*own[1:], None], strict=True):
            count += 1
            if after is None or after["t"] - row["t"] > 10 * SECOND:
                sessions.append((k, begin, row["t"] + 10 * SECOND, count))
                begin, count = (None if after is None else after["t"]), 0
    return {
        "timed": Counter((k, len(own), T0 + timedelta(hours=1)) for k, own in by_key.items()),
        "odd": Counter((r["k"], r["v"]) for r in rows if r["v"] % 2),
        "sliding": Counter((*window, len(vs), sum(vs)) for window, vs in sliding.items()),
        "sessions": Counter(sessions),
        "top": Counter(
            (k, own[-rank]["v"], rank) for k, own in by_key.items() for rank in (1, 2) if rank <= len(own)
        ),
        "joined": Counter((r["v"], r["t"], 2 * r["v"], name.get(r["k"])) for r in rows),
        "broadcast": Counter((r["v"], name[r["k"]]) for r in rows if r["k"] in name),
    }


def committed(folder: Path, columns: list[str] | None = None) -> Counter[tuple[Any, ...]]:
    tables = [pq.read_table(file, columns=columns) for file in sorted(folder.rglob("*.parquet"))]
    return Counter(tuple(row.values()) for table in tables for row in table.to_pylist())


def await_that(what: str, condition: Callable[[], Any], within_s: float = 240) -> Any:
    """Return the first true answer of `condition`."""
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what}: not within {within_s} s"
        time.sleep(0.05)
    return found


def test_every_operator_gives_the_rows_of_plain_python_though_a_subtask_is_killed(tmp_path: Path) -> None:
    config = {
        "checkpoint.interval": "200ms",
        "checkpoint.storage": f"file://{tmp_path}/checkpoints",
        # Twenty processes start on few cores: a slow one must not be taken for a dead one, here one is killed.
        "heartbeat.timeout": "60s",
        "restart.reset_timeout": "60s",
    }
    env = rf.StreamEnvironment(name="operators", parallelism=2, max_parallelism=8, config=config)
    build(env, tmp_path)
    killed = tmp_path / "killed"
    env.from_source(Open(str(killed))).uid("open").with_parallelism(1).discard()
    job = env.submit()
    running, described = await_that("two checkpoints, and rows counted", lambda: under_way(job))
    victim = next(s for s in reversed(described["subtasks"]) if s["rows_in"] and s["operator"] != "open")
    os.kill(victim["pid"], signal.SIGKILL)
    await_that("the restart", lambda: not_ended(job)["restarts"])
    killed.touch()
    assert job.wait(timeout=120).state == "FINISHED"

    assert "/chk-" in job.describe()["restarts"][0]["restored_from"]
    for name, rows in expected().items():
        columns = ["k", "v", "r"] if name == "top" else None
        assert committed(tmp_path / name, columns) == rows, name
    ended = job.metrics()
    assert ended["state"] == "FINISHED"
    assert ended["operators"].keys() >= running["operators"].keys()
    assert all("watermark" in operator for operator in ended["operators"].values())
    assert any(operator["watermark"] is not None for operator in ended["operators"].values())
    assert any(operator.get("rows_in") for operator in ended["operators"].values())
    shown = CliRunner().invoke(cli, ["metrics", job.id, "--json"])
    assert shown.exit_code == 0, shown.output
    assert json.loads(shown.output) == ended


def not_ended(job: rf.JobHandle) -> dict[str, Any]:
    described: dict[str, Any] = job.describe()
    assert described["state"] not in ("FAILED", "CANCELLED", "FINISHED"), job.events()[-5:]
    return described


def under_way(job: rf.JobHandle) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Metrics and description of the job once it has something to restore and its subtasks have told what they have
    counted: they do with their heartbeats, the first of which may come after several checkpoints."""
    described, metrics = not_ended(job), job.metrics()
    told = any(s["rows_in"] for s in described["subtasks"] if s["operator"] != "open")
    counted = any(operator.get("rows_in") for operator in metrics["operators"].values())
    ready = metrics["state"] == "RUNNING" and described["checkpoints"]["completed"] >= 2
    return (metrics, described) if ready and told and counted else None
