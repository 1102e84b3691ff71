"""`map_async`, end to end: order, capacity, failures, crashes, restores, and calls that never return."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob

RETURNS = {"n": int, "twice": int}
PROMPTLY_S = 20


class Service:
    """What the functions ask: it notes who asks, and holds answers back while `hang`."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.asked: Counter[int] = Counter()
        self.running: Counter[int] = Counter()
        self.most = 0
        self.hang = False
        self.hanging: set[int] = set()
        self.seen: defaultdict[str, list[Any]] = defaultdict(list)

    async def answer(self, n: int) -> int:
        loop = id(asyncio.get_running_loop())
        with self.lock:
            self.asked[n] += 1
            self.running[loop] += 1
            self.most = max(self.most, self.running[loop])
        try:
            for _ in range(
                n * 7919 % 13
            ):  # so many turns of the loop: answers come in any order, without time
                await asyncio.sleep(0)
            if self.hang and n >= 40:
                self.hanging.add(n)
                await asyncio.get_running_loop().create_future()
            return 2 * n
        finally:
            with self.lock:
                self.running[loop] -= 1


SERVICE = Service()


@pytest.fixture(autouse=True)
def service() -> Iterator[Service]:
    global SERVICE
    SERVICE = Service()
    yield SERVICE
    SERVICE.hang = False


def here() -> Service:
    """Return the service; functions travel by value, and must not take it with them."""
    return SERVICE


async def twice(row: dict[str, Any]) -> dict[str, Any]:
    return {**row, "twice": await here().answer(row["n"])}


def env(parallelism: int = 1, rows: int = 65536, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(
        parallelism=parallelism, config={"batch.rows": rows, "restart.strategy": "none", **config}
    )


def numbers(count: int) -> pa.Table:
    return pa.table({"n": range(count), "k": [n % 5 for n in range(count)]})


KEYED = {"n": int, "k": int, "twice": int}


# -------------------------------------------------------------------------------- order and capacity


@pytest.mark.parametrize("rows", [1, 7, 65536])
def test_ordered_results_come_in_the_order_of_their_rows(service: Service, rows: int) -> None:
    got = (
        env(1, rows)
        .from_arrow(numbers(300))
        .map_async(twice, capacity=10, returns=KEYED)
        .execute_and_collect(local=True)
    )
    assert got["n"].to_pylist() == list(range(300))
    assert got["twice"].to_pylist() == [2 * n for n in range(300)]
    assert 1 < service.most <= 10


def test_unordered_results_are_the_same_rows_in_another_order(service: Service) -> None:
    stream = env().from_arrow(numbers(300))
    got = stream.map_async(twice, capacity=16, ordered=False, returns=KEYED).execute_and_collect(local=True)
    assert sorted(got["n"].to_pylist()) == list(range(300)) != got["n"].to_pylist()
    assert 1 < service.most <= 16


def test_many_steps_in_one_chain_and_several_subtasks(lab: Any) -> None:
    async def again(row: dict[str, Any]) -> dict[str, Any]:
        return {"n": row["n"], "four": await here().answer(row["twice"])}

    stream = (
        env(2, 7)
        .from_arrow(numbers(200))
        .rebalance()
        .flat_map(lambda row: [row, row], returns={"n": int, "k": int})
        .map_async(twice, capacity=3, returns=KEYED)
        .filter(lambda row: row["n"] % 2 == 0)
        .map_async(again, capacity=5, ordered=False, returns={"n": int, "four": int})
        .map_batches(
            lambda batch: batch, batch_size=11, returns=pa.schema({"n": pa.int64(), "four": pa.int64()})
        )
    )
    got = lab.bag(stream.execute_and_collect(local=True))
    assert got == Counter({(n, 4 * n): 2 for n in range(0, 200, 2)})


def test_keys_keep_their_order(lab: Any) -> None:
    stream = env(2, 3).from_arrow(numbers(200)).key_by("k").map_async(twice, capacity=8, returns=KEYED)
    got = stream.execute_and_collect(local=True)
    for key in range(5):
        assert [n for n, k in zip(got["n"].to_pylist(), got["k"].to_pylist()) if k == key] == list(
            range(key, 200, 5)
        )


def test_scalars_type_hints_and_classes_with_async_open_and_close(service: Service) -> None:
    class Shout:
        async def open(self, ctx: Any) -> None:
            await asyncio.sleep(0)
            here().seen["open"].append((ctx.subtask_index, ctx.parallelism))

        async def __call__(self, word: str) -> str:
            await asyncio.sleep(0)
            return word.upper()

        async def close(self) -> None:
            await asyncio.sleep(0)
            here().seen["close"].append(1)

    stream = env(2).from_rows([{"word": w} for w in ["a", "b", "c"]]).rebalance().map_async(Shout)
    assert stream.schema == pa.schema({"value": pa.string()})
    assert sorted(stream.execute_and_collect(local=True)["value"].to_pylist()) == ["A", "B", "C"]
    assert sorted(service.seen["open"]) == [(0, 2), (1, 2)]
    assert service.seen["close"] == [1, 1]


# -------------------------------------------------------------------------------------- event time


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("rows", [1, 9])
def test_no_row_is_late_behind_it(lab: Any, ordered: bool, rows: int) -> None:
    start = datetime(2024, 1, 1)
    table = pa.table(
        {
            "n": range(300),
            "at": pa.array([start + timedelta(milliseconds=100 * n) for n in range(300)], pa.timestamp("ms")),
        }
    )
    made = env(2, rows)
    stream = (
        made.from_arrow(table)
        .assign_watermarks(rf.Watermark("at"))
        .rebalance()
        .map_async(twice, ordered=ordered, returns=table.schema.append(pa.field("twice", pa.int64())))
        .with_columns(k=rf.lit(1))
        .key_by("k")
        .window(rf.Tumbling("1s"))
        .aggregate(total=rf.col("twice").sum(), n=rf.count())
    )
    got = stream.execute_and_collect(local=True)
    assert sorted(got["total"].to_pylist()) == [2 * sum(range(n, n + 10)) for n in range(0, 300, 10)]
    assert set(got["n"].to_pylist()) == {10}


# ---------------------------------------------------------------------------------------- failures


def test_an_error_names_operator_line_and_row(lab: Any) -> None:
    async def broken(row: dict[str, Any]) -> dict[str, Any]:
        if row["n"] == 77:
            raise ValueError("not this one")
        return await twice(row)

    made = env(2, 10)
    made.from_arrow(numbers(100)).rebalance().map_async(broken, returns=KEYED).name("look up").discard()
    failure = lab.fail(made)
    assert failure.operator == "look up"
    assert "test_map_async.py" in failure.location
    assert "ValueError: not this one" in failure.cause
    assert "{n: 77, k: 2}" in failure.cause


def test_what_fails_now_and_then_is_tried_again(lab: Any, service: Service) -> None:
    async def flaky(row: dict[str, Any]) -> dict[str, Any]:
        made = await twice(row)
        if here().asked[row["n"]] <= row["n"] % 3:
            raise ConnectionError("away")
        return made

    made = env()
    stream = made.from_arrow(numbers(50)).map_async(flaky, retries=2, retry_delay="1ms", returns=KEYED)
    stream.map(lambda row: here().seen["rows"].append(row["n"]) or row, returns=KEYED).discard()
    lab.finish(made)
    assert service.seen["rows"] == list(range(50))
    assert service.asked == {n: 1 + n % 3 for n in range(50)}


def test_a_call_that_never_returns_fails_the_job_after_its_timeout(lab: Any, service: Service) -> None:
    service.hang = True
    made = env()
    made.from_arrow(numbers(41)).map_async(twice, timeout="1s", returns=KEYED).name("look up").discard()
    failure = lab.fail(made)
    assert failure.operator == "look up"
    assert "did not return within timeout=1s" in failure.cause
    assert "{n: 40, k: 0}" in failure.cause


def test_calls_that_never_return_can_be_dropped(lab: Any, service: Service) -> None:
    service.hang = True
    made = env()
    stream = made.from_arrow(numbers(45)).map_async(
        twice, capacity=3, timeout="1s", on_timeout="drop", returns=KEYED
    )
    stream.map(lambda row: here().seen["rows"].append(row["n"]) or row, returns=KEYED).discard()
    lab.finish(made)
    assert service.seen["rows"] == list(range(40))


async def stubborn(row: dict[str, Any]) -> dict[str, Any]:
    """Ignores that it is cancelled."""
    here().hanging.add(row["n"])
    while here().hang:
        try:
            await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            here().seen["cancelled"].append(row["n"])
    return await twice(row)


def blocking(row: dict[str, Any]) -> None:
    while here().hang:
        time.sleep(0.01)


async def blocks_the_loop(row: dict[str, Any]) -> dict[str, Any]:
    here().hanging.add(row["n"])
    blocking(row)
    return await twice(row)


@pytest.mark.parametrize("fn", [twice, stubborn, blocks_the_loop])
def test_a_job_whose_calls_hang_is_cancelled_promptly(lab: Any, service: Service, fn: Any) -> None:
    service.hang = True
    made = env(2)
    made.from_arrow(numbers(100)).rebalance().map_async(fn, returns=KEYED).discard()

    def cancel(job: LocalJob) -> float | None:
        if not service.hanging:
            return None
        job.master.cancel()
        return time.monotonic()

    watcher = lab.watch(cancel)
    result = lab.run(made, on_start=watcher)
    assert result.state is JobState.CANCELLED
    assert time.monotonic() - watcher.stop()[0] < PROMPTLY_S


# ------------------------------------------------------------------------------ crashes and restores


@pytest.mark.parametrize("ordered", [True, False])
def test_rows_under_way_at_a_crash_are_called_again(
    lab: Any, service: Service, tmp_path: Path, ordered: bool
) -> None:
    service.hang = True
    made = env(2, **{"restart.strategy": "fixed"})
    (
        made.from_arrow(numbers(150))
        .rebalance()
        .map_async(twice, capacity=20, ordered=ordered, returns=KEYED)
        .write_parquet(str(tmp_path / "out"))
    )

    since: list[int] = []

    def crash(job: LocalJob) -> str | None:
        if not service.hang or len(service.hanging) < 20:
            return None
        since.append(lab.completed(job))
        if since[-1] < since[0] + 2:
            return None
        service.hang = False  # only for those who ask again: who hangs, hangs
        name = lab.subtasks(job)[-1]
        job.cluster.crash(name)
        return str(name)

    watcher = lab.watch(crash)
    result = lab.finish(made, on_start=watcher, checkpoint__interval="10ms")
    assert watcher.stop()
    assert result.describe["restarts"]
    assert result.describe["restarts"][0]["restored_from"]
    assert lab.rows(tmp_path / "out") == Counter((n, n % 5, 2 * n) for n in range(150))
    assert all(service.asked[n] >= 2 for n in service.hanging)


@pytest.mark.parametrize(
    "setting", [{"checkpoint.mode": "unaligned"}, {"checkpoint.alignment_timeout": "10ms"}]
)
def test_unaligned_barriers_do_not_wait_behind_rows_for_calls_that_never_return(
    lab: Any, service: Service, tmp_path: Path, setting: dict[str, str]
) -> None:
    # Twenty calls hang; the rows behind them fill the inputs, and more wait at the sources. Whatever is complete
    # then holds them all.
    service.hang = True
    made = env(2, 5, **{"restart.strategy": "fixed", "restart.delay": "1ms", **setting})
    stream = made.from_arrow(numbers(2_000)).rebalance()
    stream.map_async(twice, capacity=10, returns=KEYED).write_parquet(str(tmp_path / "out"))
    since: list[int] = []

    def crash(job: LocalJob) -> str | None:
        if not service.hang or len(service.hanging) < 20:
            return None
        since.append(lab.completed(job))
        if since[-1] < since[0] + 2:
            return None
        service.hang = False
        name = lab.subtasks(job)[-1]
        return str(name) if job.cluster.crash(name) else None

    watcher = lab.watch(crash)
    result = lab.finish(made, on_start=watcher, checkpoint__interval="10ms")
    assert watcher.stop()
    assert result.describe["restarts"][0]["restored_from"]
    assert lab.rows(tmp_path / "out") == Counter((n, n % 5, 2 * n) for n in range(2_000))


@pytest.mark.parametrize(("before", "after"), [(1, 3), (3, 1)])
def test_rows_under_way_are_restored_at_another_parallelism(
    lab: Any, service: Service, tmp_path: Path, before: int, after: int
) -> None:
    def plan(parallelism: int) -> rf.StreamEnvironment:
        made = env(parallelism, **{"checkpoint.storage": f"file://{tmp_path}/state"})
        stream = made.from_arrow(numbers(100)).uid("in").rebalance()
        stream = stream.map_async(twice, capacity=8, returns=KEYED).uid("calls")
        stream.write_parquet(str(tmp_path / "out")).uid("out")
        return made

    service.hang = True
    since: list[int] = []

    def cancel(job: LocalJob) -> bool | None:
        if len(service.hanging) < 8:
            return None
        since.append(lab.completed(job))
        if since[-1] < since[0] + 2:
            return None
        job.master.cancel()
        return True

    result = lab.run(plan(before), on_start=lab.watch(cancel), checkpoint__interval="10ms")
    assert result.state is JobState.CANCELLED
    service.hang = False
    newest = [c["path"] for c in result.checkpoints if c["status"] == "completed"][-1]
    lab.finish(plan(after), restore_from=newest, checkpoint__interval="10ms")
    assert lab.rows(tmp_path / "out") == Counter((n, n % 5, 2 * n) for n in range(100))
