"""Deduplication: the first row of each key, remembered exactly, in bitmaps, or in Bloom filters.

`rayflow run jobs/dedup.py` writes the first departure of each aircraft. `python jobs/dedup.py`, without options,
compares the three methods on made-up ids: rows kept, error, bytes of state, rows per second.
"""

from __future__ import annotations

import sys
import time
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

import rayflow as rf

Method = Literal["exact", "bitmap", "bloom"]

ROWS, DISTINCT = 2_000_000, 800_000


def build(
    env: rf.StreamEnvironment,
    *,
    input: str = "jobs/data/flights.parquet",
    time_column: str = "departure",
    column: list[str] = ["tailnum"],  # noqa: B006 - read only
    method: Method = "exact",
    ttl: str = "",
    false_positive_rate: float = 0.01,
    expected: int = 1_000_000,
    output: str = "out/dedup",
) -> None:
    """The first row of each combination of values in columns of Parquet files; with a ttl the first in that time."""
    rows = env.read_parquet(input, watermark=rf.Watermark(time_column, delay="2h"))
    bloom = {"false_positive_rate": false_positive_rate, "expected": expected} if method == "bloom" else {}
    first = rows.deduplicate(*column, method=method, ttl=ttl or None, **bloom)  # type: ignore[arg-type]
    first.write_parquet(output, if_exists="overwrite")


# ---------------------------------------------------------------------------------------- comparison


def scattered(numbers: Any) -> Any:
    """Return as many 64-bit numbers, all over their range: SplitMix64's finaliser, which is a bijection."""
    ids = numbers.astype(np.uint64)
    ids = (ids ^ (ids >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    ids = (ids ^ (ids >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ids ^ (ids >> np.uint64(31))


def ids_of(start: int, count: int) -> Any:
    """Return the numbers of the rows from `start`, modulo DISTINCT, stirred: each occurs."""
    return np.arange(start, start + count) * 7_368_787 % DISTINCT


def dense(start: int, count: int) -> pa.RecordBatch:
    """Return rows whose ids are 0 to DISTINCT − 1."""
    return pa.record_batch({"id": pa.array(ids_of(start, count).astype(np.uint64))})


def random(start: int, count: int) -> pa.RecordBatch:
    """Return rows whose ids are DISTINCT numbers of 64 bits."""
    return pa.record_batch({"id": pa.array(scattered(ids_of(start, count)))})


def compare() -> None:
    """Print a table of the three methods."""
    print(f"{ROWS:,} rows, {DISTINCT:,} different ids\n")
    print(
        f"{'ids':8}{'method':8}{'rows kept':>12}{'lost':>8}{'error':>10}{'state bytes':>16}{'a key':>8}{'rows/s':>14}"
    )
    for make in (dense, random):
        for method in get_args(Method):
            kept, state_bytes, seconds = measured(make, method)
            lost = DISTINCT - kept
            print(
                f"{make.__name__:8}{method:8}{kept:>12,}{lost:>8,}{lost / DISTINCT:>10.4%}{state_bytes:>16,.0f}"
                f"{state_bytes / DISTINCT:>8.2f}{ROWS / seconds:>14,.0f}",
                flush=True,
            )


def measured(make: Any, method: Any) -> tuple[int, float, float]:
    """Run the job in this process; return the rows that were kept, the bytes of state at the end, and the seconds."""
    from rayflow.runtime.local import run_local

    env = rf.StreamEnvironment(name=f"dedup-{method}")
    bloom = {"false_positive_rate": 0.01, "expected": DISTINCT} if method == "bloom" else {}
    env.generate(make, rows=ROWS).deduplicate("id", method=method, **bloom).uid("first").discard()
    started = time.perf_counter()
    result = run_local(env.plan(), env.config)
    seconds = time.perf_counter() - started
    found = result.metrics["operators"]["first"]
    return ROWS - int(found["rows_deduplicated"]), found["state_bytes"], seconds


if __name__ == "__main__":
    if sys.argv[1:]:
        rf.run(build)
    compare()
