"""What watching the keys of an exchange costs: the same keyed exchange 2 → 2 with and without, in turn.

Run: `python tests/benchmarks/bench_key_traffic.py [--rows N] [--rounds N] [--batch-rows 4096 …] [--json]`. The local
engine, rows of 24 bytes: source → key_by → a sink that throws them away; `metrics.keys` is `off` or `shown`. Compared
is CPU time, which a busy machine disturbs less than the clock.

- `exchange`: that of a run, per batch: the least of the rounds, which are taken in turn with and without.
- `watching`: that of `KeyTraffic` alone per batch, at the rate that such an exchange reaches, the least of the rounds.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow.batch.hashing import hash_columns
from rayflow.batch.key_traffic import KeyTraffic

POOL = 16
WATCHED_S = 8


def pool_of(rows: int) -> list[pa.RecordBatch]:
    rng = np.random.default_rng(1)
    return [
        pa.record_batch(
            {
                "key": rng.zipf(1.5, rows) % 1_000_000,
                "a": rng.integers(0, 100, rows),
                "b": rng.random(rows),
            }
        )
        for _ in range(POOL)
    ]


def cpu_seconds(pool: list[pa.RecordBatch], rows: int, batch_rows: int, keys: str) -> float:
    def make(start: int, count: int) -> pa.RecordBatch:
        return pool[start // batch_rows % POOL].slice(0, count)

    config = {"batch.rows": batch_rows, "metrics.keys": keys}
    env = rf.StreamEnvironment(parallelism=2, config=config)
    env.generate(make, rows=rows).key_by("key").discard()
    begun = time.process_time()
    env.execute(local=True)
    return time.process_time() - begun


def watching_seconds(pool: list[pa.RecordBatch], rate: float) -> float:
    """Return the CPU time of watching one batch, the mean of those that a sender of `rate` rows a second sends in
    `WATCHED_S`."""
    traffic = KeyTraffic(["key"], 128)
    hashes = [hash_columns(batch, ["key"]) for batch in pool]
    rows = pool[0].num_rows
    batches = int(WATCHED_S * rate / rows)
    begun = time.thread_time()
    for number in range(batches):
        traffic.observe(pool[number % POOL], hashes[number % POOL])
        traffic.tick(int(number * rows / rate * 1_000))
    return (time.thread_time() - begun) / batches


def measure(rows: int, batch_rows: int, rounds: int) -> dict[str, float]:
    pool, batches = pool_of(batch_rows), rows // batch_rows
    cpu_seconds(pool, rows // 4, batch_rows, "shown")
    runs = [[cpu_seconds(pool, rows, batch_rows, keys) for keys in ("off", "shown")] for _ in range(rounds)]
    off, shown = (min(times) / batches for times in zip(*runs))
    # Two senders, on two cores with their receivers.
    rate = batch_rows / off
    watching = min(watching_seconds(pool, rate) for _ in range(rounds))
    return {
        "rows a batch": batch_rows,
        "exchange, µs": round(off * 1e6, 1),
        "watched, µs": round(shown * 1e6, 1),
        "watching, µs": round(watching * 1e6, 1),
        "watching, %": round(100 * watching / off, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=8_000_000)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-rows", type=int, nargs="+", default=[4_096, 16_384, 65_536])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = [measure(options.rows, batch_rows, options.rounds) for batch_rows in options.batch_rows]
    if options.json:
        print(json.dumps(results, indent=1))
        return
    print("  ".join(f"{name:>12}" for name in results[0]))
    for result in results:
        print("  ".join(f"{value:>12}" for value in result.values()))


if __name__ == "__main__":
    main()
