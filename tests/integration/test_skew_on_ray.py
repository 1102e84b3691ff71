"""Hot keys that change, and processes of the job that are killed around each change of what is salted."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

import rayflow as rf
from rayflow import col
from tests.chaos.victim import SPLIT, Victim

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(1_800)]

ROWS_PER_SECOND = 2_000
HOT_FOR_ROWS = 16_000
"""Of each split: longer than a key takes to cool, so every change is told of twice: the new key comes, the old goes."""


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Four rows of five have the hot key of their time, one that there never was before."""
    return np.where(numbers % 5 == 0, numbers % 97, 1_000 + numbers % SPLIT // HOT_FOR_ROWS)


def keyed(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Give numbers their key, time and value. Each split's time begins at the epoch."""
    numbers = batch["n"].to_numpy()
    times = pa.array(numbers % SPLIT).cast(pa.timestamp("ms"))
    return pa.record_batch({"k": keys_of(numbers), "t": times, "v": numbers % 1_000})


def work(out: Path, windowed: bool) -> Any:
    """Return what a victim does: aggregates by key, of windows and combined where the rows are, or running."""

    def aggregated(numbers: rf.DataStream) -> None:
        returns = {"k": "int64", "t": "timestamp[ms]", "v": "int64"}
        rows = numbers.map_batches(keyed, returns=returns).assign_watermarks(rf.Watermark("t", delay="1s"))
        by_key = rows.key_by("k", skew=rf.Skew(local_aggregation=windowed, salt="auto"))
        if windowed:
            made = by_key.window(rf.Tumbling("2s")).aggregate(n=rf.count(), total=col("v").sum())
            made.write_parquet(out)
        else:
            by_key.aggregate(n=rf.count(), total=col("v").sum()).write_parquet(out, mode="upsert")

    return aggregated


def found(out: Path, windowed: bool) -> Counter[Any]:
    """Return the committed results as a multiset: key, window (ms; 0 without), rows, sum."""
    table = ds.dataset(out, format="parquet").to_table()
    starts = table["window_start"].cast(pa.timestamp("ms")).cast(pa.int64()).to_pylist() if windowed else None
    return Counter(
        zip(
            table["k"].to_pylist(),
            starts or [0] * table.num_rows,
            table["n"].to_pylist(),
            table["total"].to_pylist(),
            strict=True,
        )
    )


def expected(ends: list[int], windowed: bool) -> Counter[Any]:
    """Return what `found` must be, from the input alone."""
    counts: Counter[Any] = Counter()
    totals: Counter[Any] = Counter()
    for split, end in enumerate(ends):
        numbers = np.arange(split * SPLIT, end)
        for n, k in zip(numbers.tolist(), keys_of(numbers).tolist(), strict=True):
            at = n % SPLIT // 2_000 * 2_000 if windowed else 0
            counts[k, at] += 1
            totals[k, at] += n % 1_000
    return Counter((*key, n, totals[key]) for key, n in counts.items())


def changes(victim: Victim) -> int:
    """Return the number of the last event that told of a change of what is salted."""
    return max((e["seq"] for e in victim.job.events() if e["type"] == "salted_keys_changed"), default=-1)


def newest(victim: Victim) -> int:
    """Return the id of the newest complete checkpoint. (How many there are stays the same: the list is bounded.)"""
    return max((c["id"] for c in victim.job.checkpoints() if c["status"] == "completed"), default=0)


def pid(victim: Victim, chain: int, index: int) -> int:
    """Return the process of a subtask of a chain, by its place: `SENDER`, `COMBINER` or `AGGREGATE`."""
    described = victim.job.describe()
    uid = described["operators"][chain]["uid"]
    (at,) = [s["pid"] for s in described["subtasks"] if (s["operator"], s["index"]) == (uid, index)]
    return int(at)


SENDER, COMBINER, AGGREGATE = 0, 1, 2


@pytest.mark.chaos
@pytest.mark.parametrize("windowed", [True, False], ids=["windows of partial aggregates", "running, of rows"])
def test_kills_around_each_change_of_what_is_salted_change_no_result(tmp_path: Path, windowed: bool) -> None:
    out = tmp_path / "results"
    victim = Victim(tmp_path, "salted", ROWS_PER_SECOND, work=work(out, windowed))

    def changed() -> None:
        """Wait until another set has been told."""
        before = changes(victim)
        victim.until(lambda: changes(victim) > before)

    def in_effect() -> None:
        """Wait for the next barrier."""
        done = newest(victim)
        victim.until(lambda: newest(victim) > done)

    try:
        victim.until(lambda: victim.settled(0))
        assert "salt" in victim.job.describe()["operators"][SENDER]["name"]
        # Told, and not yet in effect where no barrier has come.
        for chain in (SENDER, COMBINER, AGGREGATE):
            changed()
            victim.survives(lambda chain=chain: victim.kill(pid(victim, chain, 0)))
        # With the barrier of the change, or just behind it.
        for chain in (SENDER, COMBINER):
            changed()
            in_effect()
            victim.survives(lambda chain=chain: victim.kill(pid(victim, chain, 1)))
        # Who tells; and everybody.
        changed()
        victim.survives(victim.kill_manager)
        changed()
        victim.survives(lambda: victim.kill(*victim.pids()))
        victim.end()
    finally:
        with suppress(Exception):
            victim.job.cancel()
    assert len(victim.job.describe()["restarts"]) >= 7
    assert found(out, windowed) == expected(victim.ends(), windowed)
