"""Event time, end to end: watermarks per split and operator, nulls, the far future, idle inputs, and what is told."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.local import LocalJob

START = datetime(2024, 1, 1)
FAR = datetime(2200, 1, 1)
SCHEMA = pa.schema([("n", pa.int64()), ("at", pa.timestamp("ms"))])


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def table(*rows: tuple[int, datetime | None]) -> pa.Table:
    return pa.Table.from_arrays(
        [pa.array([n for n, _ in rows], pa.int64()), pa.array([t for _, t in rows], pa.timestamp("ms"))],
        schema=SCHEMA,
    )


def seconds(count: int) -> list[tuple[int, datetime | None]]:
    return [(n, at(n)) for n in range(count)]


def env(parallelism: int = 1, rows: int = 10, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(
        parallelism=parallelism, config={"batch.rows": rows, "restart.strategy": "none", **config}
    )


def windowed(stream: rf.DataStream) -> rf.DataStream:
    keyed = stream.with_columns(k=rf.lit(1)).key_by("k")
    return keyed.window(rf.Tumbling("10s")).aggregate(n=rf.count())


def counts(got: pa.Table) -> dict[datetime, int]:
    return dict(zip(got["window_start"].to_pylist(), got["n"].to_pylist(), strict=True))


def values(metrics: dict[str, Any], name: str) -> list[Any]:
    return [v[name] for v in metrics["operators"].values() if name in v]


# ------------------------------------------------------------------------------------ what is told


def test_every_operator_tells_the_watermark_it_has_come_to(lab: Any, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    reached = threading.Event()

    class Waiting(rf.Source):
        """Ten rows, then nothing until the test has looked."""

        @property
        def schema(self) -> pa.Schema:
            return SCHEMA

        def splits(self) -> Sequence[rf.Split]:
            return [rf.Split(id="only")]

        def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
            return WaitingReader()

    made = env(2)
    windowed(made.from_source(Waiting(), watermark=rf.Watermark("at", delay="2s"))).write_parquet(
        str(tmp_path)
    )
    READERS["more"] = reached

    def look(job: LocalJob) -> bool | None:
        description, metrics = job.master.describe(), job.master.metrics()
        if not all(o["watermark"] for o in description["operators"]):
            return None
        seen.append({"describe": description, "metrics": metrics})
        reached.set()
        return True

    result = lab.finish(made, on_start=lab.watch(look), heartbeat__interval="20ms")
    running, expected = seen[0], "2024-01-01T00:00:06.999"
    assert {o["watermark"][:23] for o in running["describe"]["operators"]} == {expected}
    assert {w[:23] for w in values(running["metrics"], "watermark") if w} >= {expected}
    assert set(values(result.metrics, "watermark")) == {"+inf"}
    assert values(result.metrics, "rows_in")[0] == 20


READERS: dict[str, Any] = {}


class WaitingReader(rf.SplitReader):
    def __init__(self) -> None:
        self.at = 0

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self.at == 20:
            return None
        if self.at == 10 and not READERS["more"].is_set():
            return table().to_batches()[0] if table().num_rows else pa.RecordBatch.from_pylist([], SCHEMA)
        self.at += 10
        return table(*seconds(20)).slice(self.at - 10, 10).to_batches()[0]

    def position(self) -> int:
        return self.at


# ------------------------------------------------------------------------- nulls and the far future


@pytest.mark.parametrize("where", ["source", "stream"])
def test_a_null_time_is_late_and_counted_and_moves_nothing(lab: Any, tmp_path: Path, where: str) -> None:
    rows = seconds(40)
    rows[15] = (15, None)
    pq.write_table(table(*rows), tmp_path / "in.parquet")
    made = env()
    mark = rf.Watermark("at", delay="1s")
    if where == "source":
        stream = made.read_parquet(str(tmp_path / "in.parquet"), watermark=mark)
    else:
        stream = made.read_parquet(str(tmp_path / "in.parquet")).assign_watermarks(mark)
    windowed(stream).write_parquet(str(tmp_path / "out"))
    result = lab.finish(made)
    assert counts(lab.read(tmp_path / "out")) == {at(0): 10, at(10): 9, at(20): 10, at(30): 10}
    assert sum(values(result.metrics, "null_time_rows")) == 2, "at the watermark, and at the window"
    assert sum(values(result.metrics, "late_rows")) == 0


@pytest.mark.parametrize("rows", [1, 7, 100])
@pytest.mark.parametrize("where", ["source", "stream"])
@pytest.mark.parametrize("wrong", [5, 25])
def test_a_time_in_the_far_future_closes_no_window_and_is_counted(
    lab: Any, tmp_path: Path, where: str, rows: int, wrong: int
) -> None:
    given = seconds(40)
    given.insert(wrong, (99, FAR))
    pq.write_table(table(*given), tmp_path / "in.parquet")
    made = env(1, rows)
    mark = rf.Watermark("at", delay="1s", max_ahead="1h")
    if where == "source":
        stream = made.read_parquet(str(tmp_path / "in.parquet"), watermark=mark)
    else:
        stream = made.read_parquet(str(tmp_path / "in.parquet")).assign_watermarks(mark)
    windowed(stream).write_parquet(str(tmp_path / "out"))
    result = lab.finish(made)
    assert counts(lab.read(tmp_path / "out")) == {at(10 * i): 10 for i in range(4)}
    assert sum(values(result.metrics, "far_future_rows")) == 1
    assert sum(values(result.metrics, "null_time_rows")) == 1, (
        "at the window, to which it comes without a time"
    )
    assert sum(values(result.metrics, "late_rows")) == 0


@pytest.mark.parametrize("rows", [3, 30, 1000])
def test_steady_progress_is_believed_however_far_a_batch_reaches(lab: Any, tmp_path: Path, rows: int) -> None:
    hours = [(n, at(600 * n)) for n in range(300)]  # a row every ten minutes, two days in all
    made = env(1, rows)
    stream = made.from_arrow(table(*hours)).assign_watermarks(rf.Watermark("at", max_ahead="1h"))
    windowed(stream).write_parquet(str(tmp_path / "out"))
    result = lab.finish(made)
    assert sum(values(result.metrics, "far_future_rows")) == 0


# ------------------------------------------------------------------------- where streams meet, idleness


def test_the_slowest_input_holds_the_windows_open(lab: Any) -> None:
    made = env(2, 3)
    mark = rf.Watermark("at")
    ahead = made.from_arrow(table(*seconds(100))).assign_watermarks(mark)
    behind = made.from_arrow(table(*seconds(100))).assign_watermarks(mark)
    got = counts(
        windowed(ahead.union(behind.rebalance().map(lambda row: row, returns=SCHEMA))).execute_and_collect(
            local=True
        )
    )
    assert got == {at(10 * i): 20 for i in range(10)}


class Quiet(rf.Source):
    """Never has a row, and never ends."""

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def bounded(self) -> bool:
        return False

    def splits(self) -> Sequence[rf.Split]:
        return [rf.Split(id="quiet")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return QuietReader()


class QuietReader(rf.SplitReader):
    def __init__(self, rows: Sequence[tuple[int, datetime | None]] = ()) -> None:
        self.rows = rows

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        rows, self.rows = self.rows, ()
        return table(*rows).to_batches()[0] if rows else pa.RecordBatch.from_pylist([], SCHEMA)

    def position(self) -> int:
        return 0


async def same(row: dict[str, Any]) -> dict[str, Any]:
    return row


def test_an_idle_input_steps_aside_and_is_heard_behind_map_async(lab: Any, tmp_path: Path) -> None:
    made = env(1, 10)
    mark = rf.Watermark("at", idle_after="50ms")
    quiet = made.from_source(Quiet(), watermark=mark).map_async(same, returns=SCHEMA)
    busy = made.from_arrow(table(*seconds(40))).assign_watermarks(rf.Watermark("at"))
    windowed(busy.union(quiet)).write_parquet(str(tmp_path))

    def cancel(job: LocalJob) -> bool | None:
        if not lab.files(tmp_path):
            return None
        job.master.cancel()
        return True

    result = lab.run(made, on_start=lab.watch(cancel), checkpoint__interval="20ms")
    assert result.state is JobState.CANCELLED
    assert counts(lab.read(tmp_path))[at(0)] == 10


def test_a_subtask_that_gets_no_rows_at_all_steps_aside(lab: Any, tmp_path: Path) -> None:
    class Lonely(Quiet):
        """One of two subtasks has all the rows."""

        def splits(self) -> Sequence[rf.Split]:
            return [rf.Split(id="quiet"), rf.Split(id="rows")]

        def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
            return QuietReader(seconds(40) if split.id == "rows" else ())

    made = env(2, 10)
    stream = made.from_source(Lonely()).assign_watermarks(rf.Watermark("at", idle_after="50ms"))
    windowed(stream).write_parquet(str(tmp_path))

    def cancel(job: LocalJob) -> bool | None:
        if not lab.files(tmp_path):
            return None
        job.master.cancel()
        return True

    assert lab.run(made, on_start=lab.watch(cancel), checkpoint__interval="20ms").state is JobState.CANCELLED
    assert counts(lab.read(tmp_path))[at(0)] == 10


# ---------------------------------------------------------------------------------------------- drift


class Race:
    """Where two splits are, in seconds of event time."""

    def __init__(self) -> None:
        self.at = {"slow": -1, "fast": -1}
        self.lead = 0
        self.hold_slow = False


RACE = Race()


class Racing(rf.Source):
    """Two splits that never end: `slow` has a row a second, `fast` one every `stride` seconds."""

    def __init__(self, stride: int) -> None:
        self.stride = stride

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def bounded(self) -> bool:
        return False

    def splits(self) -> Sequence[rf.Split]:
        return [rf.Split(id="slow"), rf.Split(id="fast")]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return RacingReader(split.id, 1 if split.id == "slow" else self.stride)


class RacingReader(rf.SplitReader):
    def __init__(self, name: str, stride: int) -> None:
        self.name, self.stride = name, stride

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        race = RACE
        wait = race.hold_slow and race.at["slow"] >= 0 if self.name == "slow" else race.at["slow"] < 0
        if wait:
            return pa.RecordBatch.from_pylist([], SCHEMA)
        race.at[self.name] += self.stride
        race.lead = max(race.lead, race.at["fast"] - race.at["slow"])
        return table((0, at(race.at[self.name]))).to_batches()[0]

    def position(self) -> int:
        return 0


def test_within_a_subtask_no_split_runs_further_ahead_than_max_drift(lab: Any) -> None:
    global RACE
    RACE = Race()
    made = env()
    made.from_source(Racing(7), watermark=rf.Watermark("at", max_drift="20s")).discard()

    def cancel(job: LocalJob) -> bool | None:
        if RACE.at["slow"] < 300:
            return None
        job.master.cancel()
        return True

    assert lab.run(made, on_start=lab.watch(cancel)).state is JobState.CANCELLED
    assert 20 < RACE.lead <= 20 + 7


def test_a_split_waits_for_a_slower_one_of_another_subtask(lab: Any) -> None:
    global RACE
    RACE = Race()
    RACE.hold_slow = True
    made = env(2)
    source = made.from_source(Racing(1), watermark=rf.Watermark("at", max_drift="100s"), rate_limit=200)
    source.discard()
    waited: list[int] = []

    def cancel(job: LocalJob) -> bool | None:
        if RACE.hold_slow:
            waited.append(RACE.at["fast"])
            # It has stopped: it would have come ten seconds further in this time.
            RACE.hold_slow = not (len(waited) > 5 and waited[-1] == waited[-6] > 50)
        elif RACE.at["fast"] > waited[-1] + 20:
            job.master.cancel()
            return True
        return None

    assert lab.run(made, on_start=lab.watch(cancel)).state is JobState.CANCELLED
    assert waited[-1] == 101
