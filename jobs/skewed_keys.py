"""Counts per key and minute of a stream with hot keys, and what spreading them does.

`python jobs/skewed_keys.py` runs it in this process as it is, with the hot keys spread, and on keys that are all
equally frequent, and sets side by side how many rows each subtask received and how fast it was. With options it is a
job like any other: `python jobs/skewed_keys.py --spread prefix --parallelism 4`, `rayflow run jobs/skewed_keys.py …`.
"""

import sys
import tempfile
import time
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

import rayflow as rf
from rayflow import col

Spread = Literal["none", "prefix"]
COMPARED: tuple[tuple[str, float, Spread], ...] = (
    ("none", 1.5, "none"),
    ("prefix", 1.5, "prefix"),
    ("uniform", 0.0, "none"),
)
PREFIXES = 16
DRAWN = 1 << 20
ROWS_PER_SECOND = 100_000  # of event time


@lru_cache(maxsize=1)
def drawn_keys(zipf: float, keys: int) -> np.ndarray:
    """Return keys as they come: the k-th most frequent of `keys` has a share in proportion to k ** -zipf."""
    shares = np.cumsum(np.arange(1, keys + 1, dtype=np.float64) ** -zipf)
    return np.searchsorted(shares, np.random.default_rng(7).random(DRAWN) * shares[-1])


def build(
    env: rf.StreamEnvironment,
    *,
    zipf: float = 1.5,
    keys: int = 1_000_000,
    rows: int = 4_000_000,
    spread: Spread = "none",
    output: str = "out/skewed_keys",
) -> None:
    """Counts and sums per key and minute; --zipf 0 draws all keys equally often."""

    def make(start: int, count: int) -> pa.RecordBatch:
        numbers = np.arange(start, start + count)
        return pa.record_batch(
            {
                "key": drawn_keys(zipf, keys).take(numbers, mode="wrap"),
                "value": numbers % 100,
                "prefix": numbers % PREFIXES,
                "at": pa.array(numbers * (1_000_000 // ROWS_PER_SECOND), pa.timestamp("us")),
            }
        )

    stream = env.generate(make, rows=rows, watermark=rf.Watermark("at"))
    minute = rf.Tumbling("1m")
    if spread == "none":
        counts = stream.key_by("key").window(minute).aggregate(rows=rf.count(), total=col("value").sum())
    else:
        # Each key is PREFIXES keys first; what is left of it then, a row for each and minute, comes together.
        parts = stream.key_by("key", "prefix").window(minute)
        counts = (
            parts.aggregate(rows=rf.count(), total=col("value").sum())
            .drop("window_end", "prefix")
            .rename(window_start="minute")
            .key_by("key")
            .window(minute)
            .aggregate(rows=col("rows").sum(), total=col("total").sum())
        )
    counts.write_parquet(output, if_exists="overwrite")


def compare(parallelism: int = 4, rows: int = 4_000_000) -> None:
    """Print how the job does as it is, with its hot keys spread, and on keys without skew."""
    print(f"{rows:,} rows, 1,000,000 keys, Zipf 1.5, {parallelism} subtasks\n")
    print(
        f"{'':<8} {'rows received by each subtask':<44} {'busiest/mean':>12} {'busiest/least':>13} {'rows/s':>10}"
    )
    results = []
    for name, zipf, spread in COMPARED:
        with tempfile.TemporaryDirectory() as directory:
            description, seconds = timed(parallelism, zipf=zipf, rows=rows, spread=spread, output=directory)
            if zipf:
                order = [("window_start", "ascending"), ("key", "ascending")]
                results.append(ds.dataset(directory).to_table().sort_by(order))
        received = received_rows(description, parallelism)
        least = f"{max(received) / min(received):.2f}" if min(received) else "∞"
        print(
            f"{name:<8} {'  '.join(f'{count:>9,}' for count in received):<44} "
            f"{max(received) * parallelism / sum(received):>12.2f} {least:>13} {rows / seconds:>10,.0f}"
        )
        for warning in description["warnings"]:
            print(f"{'':8} ! {warning}")
    same = all(table.equals(results[0]) for table in results)
    print(f"\nresults with the hot keys spread and without: {'equal' if same else 'DIFFERENT'}")


def timed(parallelism: int, **options: Any) -> tuple[dict[str, Any], float]:
    """Return what `describe` says of the job at its end, and how long it took."""
    env = rf.StreamEnvironment(name="skewed_keys", parallelism=parallelism)
    build(env, **options)
    drawn_keys(options["zipf"], 1_000_000)
    begun = time.perf_counter()
    result = env.execute(local=True)
    return result.description, time.perf_counter() - begun


def received_rows(description: dict[str, Any], parallelism: int) -> list[int]:
    """Return the rows that subtask 0, 1, … of all operators behind the source received."""
    received = [0] * parallelism
    for subtask in description["subtasks"]:
        if subtask["operator"] != description["operators"][0]["uid"]:
            received[subtask["index"]] += subtask["rows_in"]
    return received


if __name__ == "__main__":
    if len(sys.argv) > 1:
        rf.run(build)
    else:
        compare()
