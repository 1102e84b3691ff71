"""What tests of failures share: a job whose output shows any loss, duplicate or wrong state, and faults for it.

Everything runs on this machine, so that a process of the job is killed by its pid, as `describe` tells it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

import rayflow as rf
from rayflow.client.processes import is_alive, started_at

WAIT_S = 120.0
_POLL_S = 0.03
_SPLIT = 10**9
_KEYS = 7


class NumbersUntil(rf.Source):
    """Two splits of numbers from 0 and from 10⁹ on, until the file `end` exists. Where exactly they end the source
    does not know before, but every run of a job begins the same."""

    def __init__(self, end: Path, rows_per_second: int) -> None:
        self._end = end
        self._rows_per_second = rows_per_second

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"n": pa.int64(), "k": pa.int64()})

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id=str(i), payload={"first": i * _SPLIT}) for i in range(2)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        first = split.payload["first"] if position is None else position
        return _Reader(self.schema, first, self._end, self._rows_per_second)


class _Reader(rf.SplitReader):
    def __init__(self, schema: pa.Schema, first: int, end: Path, rows_per_second: int) -> None:
        self._schema = schema
        self._next = first
        self._end = end
        self._rate = rows_per_second
        self._told_s = time.monotonic()

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        now_s = time.monotonic()
        count = min(max_rows, int((now_s - self._told_s) * self._rate))
        if count == 0:
            return None if self._end.exists() else _none(self._schema)
        self._told_s = now_s
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        return pa.record_batch([numbers, numbers % _KEYS], schema=self._schema)

    def position(self) -> int:
        return self._next


class Numbering(rf.KeyedProcessFunction):
    """Numbers the rows of each key from 1: shows in the output whether state is exactly what it should be. While the
    file `hold` exists, subtask 0 stands still."""

    seen = rf.ValueState(pa.int64())

    def __init__(self, hold: Path) -> None:
        self._hold = hold
        self._first = False

    def open(self, ctx: Any) -> None:
        self._first = ctx.subtask_index == 0

    def process(self, row: dict[str, Any], ctx: Any) -> Any:
        while self._first and self._hold.exists():
            time.sleep(0.01)
        number = (self.seen.get() or 0) + 1
        self.seen.set(number)
        yield {"n": row["n"], "k": row["k"], "number": number}


class Victim:
    """A running job of two source and two keyed subtasks, to be hurt. Files in `folder` steer it."""

    def __init__(self, folder: Path, name: str, rows_per_second: int = 400, **config: str) -> None:
        self.out = folder / "out"
        self.hold = folder / "hold"
        self._end = folder / "end"
        settings = {
            "checkpoint.interval": "200ms",
            "heartbeat.interval": "250ms",
            "heartbeat.timeout": "2s",
            "restart.max_attempts": "100",
        }
        env = rf.StreamEnvironment(name=name, parallelism=2, config={**settings, **config})
        (
            env.from_source(NumbersUntil(self._end, rows_per_second))
            .key_by("k")
            .process(Numbering(self.hold), returns={"n": "int64", "k": "int64", "number": "int64"})
            .write_parquet(str(self.out))
        )
        self.env = env
        self.job = env.submit()

    # ------------------------------------------------------------------------------- looking

    def until(self, condition: Callable[[], Any]) -> Any:
        """Wait for `condition`, at most `WAIT_S`; return what it returned."""
        given_up_s = time.monotonic() + WAIT_S
        while not (found := condition()):
            assert time.monotonic() < given_up_s, self.job.events()[-20:]
            assert self.job.status() not in ("FAILED", "CANCELLED"), self.job.events()[-20:]
            time.sleep(_POLL_S)
        return found

    @property
    def attempt(self) -> int:
        """The attempt that runs, or comes."""
        attempt: int = self.job.describe()["attempt"]
        return attempt

    def settled(self, after: int) -> bool:
        """Whether an attempt after `after` runs, and a checkpoint has completed in it."""
        running = False
        for event in self.job.events():
            if event["type"] == "attempt_running":
                running = event["attempt"] > after
            elif event["type"] == "attempt_failed":
                running = False
            elif event["type"] == "checkpoint_completed" and running:
                return True
        return False

    def under_way(self, acknowledged: int = 0) -> dict[str, Any] | None:
        """The checkpoint that is under way and has at least so many acknowledgements, if one is."""
        last = self.job.checkpoints()[-1:]
        return (
            last[0]
            if last and last[0]["status"] == "pending" and last[0]["acknowledged"] >= acknowledged
            else None
        )

    def source(self, index: int) -> int:
        """Return the pid of a source subtask."""
        return self._pid(0, index)

    def keyed(self, index: int) -> int:
        """Return the pid of a keyed subtask."""
        return self._pid(-1, index)

    def _pid(self, chain: int, index: int) -> int:
        described = self.job.describe()
        uid = described["operators"][chain]["uid"]
        (found,) = [s for s in described["subtasks"] if (s["operator"], s["index"]) == (uid, index)]
        pid: int = found["pid"]
        return pid

    def pids(self) -> list[int]:
        """Return the pids of all subtasks that have one, and the manager's."""
        described = self.job.describe()
        found = [s["pid"] for s in described["subtasks"]] + [described["job_manager"]["pid"]]
        return [pid for pid in found if pid is not None]

    # ------------------------------------------------------------------------------- hurting

    def survives(self, fault: Callable[[], Any]) -> None:
        """Do it, and wait until another attempt has completed a checkpoint."""
        before = self.attempt
        fault()
        self.hold.unlink(missing_ok=True)
        self.until(lambda: self.settled(before))

    def held(self, acknowledged: int) -> None:
        """Hold the first keyed subtask until a checkpoint hangs there, with so many acknowledgements."""
        self.hold.touch()
        self.until(lambda: self.under_way(acknowledged))

    def kill(self, *pids: int) -> None:
        """Kill these processes, one after the other, at once."""
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def kill_manager(self, *more: int) -> None:
        """Kill the job's manager, and more."""
        self.kill(self.job.describe()["job_manager"]["pid"], *more)

    def stop_until_replaced(self, pid: int) -> None:
        """Stop a process, as a machine that swaps or a debugger would, and let it go on when its job has gone on
        without it. Return when it has ended."""
        process, before = (pid, started_at(pid) or 0), self.attempt
        os.kill(pid, signal.SIGSTOP)
        # Not the new attempt's beginning: one that goes on by then has a place in it again.
        self.until(lambda: self.settled(before))
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self.until(lambda: not is_alive(*process))

    # ------------------------------------------------------------------------------- judging

    def finish(self) -> pa.Table:
        """Let the input end; return the committed rows."""
        self._end.touch()
        assert self.job.wait(timeout=WAIT_S).state == "FINISHED"
        return ds.dataset(self.out, format="parquet").to_table()


def verdict(rows: pa.Table) -> dict[str, int]:
    """Return how many rows are lost, duplicated, or carry a wrong number: all 0 after a run that was exactly once."""
    numbers = rows["n"].to_numpy()
    lost = 0
    for first in (0, _SPLIT):
        mine = numbers[(numbers >= first) & (numbers < first + _SPLIT)]
        lost += int(mine.max(initial=first - 1)) - first + 1 - len(np.unique(mine))
    by_key = defaultdict(list)
    for key, number in zip(rows["k"].to_pylist(), rows["number"].to_pylist(), strict=True):
        by_key[key].append(number)
    wrong = sum(sorted(found) != list(range(1, len(found) + 1)) for found in by_key.values())
    return {
        "lost": lost,
        "duplicated": len(numbers) - len(np.unique(numbers)),
        "keys_with_wrong_state": wrong,
    }


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
