"""Counts per key and minute of a stream with hot keys, and what rf.Skew does about them.

`python jobs/skewed_keys.py` runs it in this process without rf.Skew, with each kind of it, and on keys that are all
equally frequent, and sets side by side how many rows each subtask received and how fast it was. With options it is a
job like any other: `python jobs/skewed_keys.py --skew auto --parallelism 4`, `rayflow run jobs/skewed_keys.py …`.
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

Kind = Literal["none", "local", "salt", "auto"]
SKEW: dict[Kind, rf.Skew | None] = {
    "none": None,
    "local": rf.Skew(local_aggregation=True),
    "salt": rf.Skew(local_aggregation=False, salt=16),
    "auto": rf.Skew(local_aggregation=False, salt="auto"),
}
ZIPF = 1.5
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
    zipf: float = ZIPF,
    keys: int = 1_000_000,
    rows: int = 4_000_000,
    skew: Kind = "none",
    output: str = "out/skewed_keys",
) -> None:
    """Counts and sums per key and minute; --zipf 0 draws all keys equally often."""

    def make(start: int, count: int) -> pa.RecordBatch:
        numbers = np.arange(start, start + count)
        return pa.record_batch(
            {
                "key": drawn_keys(zipf, keys).take(numbers, mode="wrap"),
                "value": numbers % 100,
                "at": pa.array(numbers * (1_000_000 // ROWS_PER_SECOND), pa.timestamp("us")),
            }
        )

    (
        env.generate(make, rows=rows, watermark=rf.Watermark("at"))
        .key_by("key", skew=SKEW[skew])
        .window(rf.Tumbling("1m"))
        .aggregate(rows=rf.count(), total=col("value").sum())
        .write_parquet(output, if_exists="overwrite")
    )


def compare(parallelism: int = 4, rows: int = 24_000_000) -> None:
    """Print how the job does with each kind of rf.Skew, and on keys without skew."""
    print(f"{rows:,} rows, 1,000,000 keys, Zipf {ZIPF}, {parallelism} subtasks\n")
    head = (
        f"{'skew':<8} {'rows received by each subtask':<43} {'busiest/mean':>12} {'/least':>7} {'rows/s':>10}"
    )
    print(head)
    results = []
    for name, kind, zipf in [*((kind, kind, ZIPF) for kind in SKEW), ("uniform", "none", 0.0)]:
        with tempfile.TemporaryDirectory() as directory:
            description, seconds = timed(parallelism, zipf=zipf, rows=rows, skew=kind, output=directory)
            if zipf:
                order = [("window_start", "ascending"), ("key", "ascending")]
                results.append(ds.dataset(directory).to_table().sort_by(order))
        received = received_rows(description, parallelism)
        least = f"{max(received) / min(received):.2f}" if min(received) else "∞"
        print(
            f"{name:<8} {' '.join(f'{count:>10,}' for count in received)} "
            f"{max(received) * parallelism / sum(received):>12.2f} {least:>7} {rows / seconds:>10,.0f}"
        )
        for warning in description["warnings"]:
            print(f"{'':8} ! {warning}")
    print("\nauto: each subtask's first rows show what is hot; all rows are counted, the first too")
    same = all(table.equals(results[0]) for table in results)
    print(f"results with and without rf.Skew: {'equal' if same else 'DIFFERENT'}")


def timed(parallelism: int, **options: Any) -> tuple[dict[str, Any], float]:
    """Return what `describe` says of the job at its end, and how long it took."""
    # What senders see of their keys is told with heartbeats: the sooner it is, the sooner "auto" knows.
    config = {"heartbeat.interval": "200ms"}
    env = rf.StreamEnvironment(name="skewed_keys", parallelism=parallelism, config=config)
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
