"""What tests of failures share: a job whose output shows any loss, duplicate or wrong state, and faults for it.

Everything runs on this machine, so that a process of the job is killed by its pid, as `describe` tells it.
"""

from __future__ import annotations

import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

import rayflow as rf
from rayflow.client.processes import is_alive, started_at

# For the busiest machine: two cores with thirty runnable processes take two minutes to bring up four workers.
WAIT_S = 300.0
NOTHING_WRONG = {"lost": 0, "never_read": 0, "duplicated": 0, "keys_with_wrong_state": 0}
_POLL_S = 0.03
SPLIT = 10**9
_SPLITS = 2
_KEYS = 7


class NumbersUntil(rf.Source):
    """Two splits of numbers from 0 and from 10⁹ on, until the file `end` exists. Where exactly they end the source
    does not know before, but every run of a job begins the same. Each split then tells its end in a file beside
    `end`, and keeps to it."""

    def __init__(self, end: Path, rows_per_second: int, keys: int = _KEYS) -> None:
        self._end = end
        self._rows_per_second = rows_per_second
        self._keys = keys

    @property
    def schema(self) -> pa.Schema:
        return pa.schema({"n": pa.int64(), "k": pa.int64()})

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id=str(i), payload={"first": i * SPLIT}) for i in range(_SPLITS)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        first = split.payload["first"] if position is None else position
        return _Reader(self.schema, first, self._end, self._rows_per_second, self._keys)


class _Reader(rf.SplitReader):
    def __init__(self, schema: pa.Schema, first: int, end: Path, rows_per_second: int, keys: int) -> None:
        self._schema = schema
        self._next = first
        self._end = end
        self._told_end = _told_end(end, first // SPLIT)
        self._rate = rows_per_second
        self._keys = keys
        self._told_s = time.monotonic()

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        now_s = time.monotonic()
        count = min(max_rows, int((now_s - self._told_s) * self._rate))
        if self._end.exists():
            # Whoever reads it anew, after a failure at the end, has the same rows.
            if not self._told_end.exists():
                _publish(self._told_end, str(self._next))
            count = min(max_rows, int(self._told_end.read_text()) - self._next)
            if count == 0:
                return None
        elif count == 0:
            return _none(self._schema)
        self._told_s = now_s
        numbers = np.arange(self._next, self._next + count)
        self._next += count
        return pa.record_batch([numbers, numbers % self._keys], schema=self._schema)

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
    """A running job of two source and two keyed subtasks, to be hurt. Files in `folder` steer it. `sink` ends it with
    something else than files of rows in `out`; `work`, called with the numbers, is all that is done instead."""

    def __init__(
        self,
        folder: Path,
        name: str,
        rows_per_second: int = 400,
        sink: Callable[[rf.DataStream], Any] | None = None,
        keys: int = _KEYS,
        work: Callable[[rf.DataStream], Any] | None = None,
        **config: str,
    ) -> None:
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
        numbers = env.from_source(NumbersUntil(self._end, rows_per_second, keys))
        if work is not None:
            work(numbers)
        else:
            numbered = numbers.key_by("k").process(
                Numbering(self.hold), returns={"n": "int64", "k": "int64", "number": "int64"}
            )
            if sink is None:
                numbered.write_parquet(str(self.out))
            else:
                sink(numbered)
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

    def end(self) -> None:
        """Let the input end, and wait for the job's end."""
        self._end.touch()
        assert self.job.wait(timeout=WAIT_S).state == "FINISHED"

    def finish(self) -> pa.Table:
        """Let the input end; return the committed rows."""
        self.end()
        return ds.dataset(self.out, format="parquet").to_table()

    def verdict(self, rows: pa.Table) -> dict[str, int]:
        """Return how many rows are lost, duplicated, or carry a wrong number: all 0 after a run that was exactly
        once. The job has ended."""
        return _verdict(rows, self.ends())

    def ends(self) -> list[int]:
        """Return the number at which each split ended, from `SPLIT` times its own number on. The job has ended."""
        return [int(_told_end(self._end, split).read_text()) for split in range(_SPLITS)]


def _told_end(end: Path, split: int) -> Path:
    return end.with_name(f"{end.name}-{split}")


def _publish(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all."""
    new = path.with_suffix(f".{os.getpid()}")
    new.write_text(text)
    new.replace(path)


def _verdict(rows: pa.Table, ends: Sequence[int]) -> dict[str, int]:
    numbers = rows["n"].to_numpy()
    expected = np.concatenate([np.arange(split * SPLIT, end) for split, end in enumerate(ends)])
    by_key = defaultdict(list)
    for key, number in zip(rows["k"].to_pylist(), rows["number"].to_pylist(), strict=True):
        by_key[key].append(number)
    wrong = sum(sorted(found) != list(range(1, len(found) + 1)) for found in by_key.values())
    return {
        "lost": len(np.setdiff1d(expected, numbers)),
        "never_read": len(np.setdiff1d(numbers, expected)),
        "duplicated": len(numbers) - len(np.unique(numbers)),
        "keys_with_wrong_state": wrong,
    }


def _none(schema: pa.Schema) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([pa.array([], field.type) for field in schema], schema=schema)
