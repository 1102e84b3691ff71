"""How fast batches of 24-byte rows (3 int64 columns) are hashed and split, beside other ways to do it.

Run: `python tests/benchmarks/bench_partition.py [--json] [--numba]`. Single-threaded; best of several rounds.
`--numba` adds a counting sort compiled with Numba. Results stand in rayflow/batch/partition.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import timeit
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import hash_columns
from rayflow.batch.partition import HashPartitioner
from rayflow.batch.tables import take

ROWS = (4_096, 16_384, 65_536)
CONSUMERS = (2, 8, 128)
Way = Callable[[pa.RecordBatch, npt.NDArray[Any], int], object]


def batch_of(rows: int) -> pa.RecordBatch:
    rng = np.random.default_rng(1)
    return pa.record_batch({name: rng.integers(0, 100_000, rows) for name in ("key", "a", "b")})


def seconds(run: Callable[[], object]) -> float:
    """Return the time of one run; the last results are kept alive, as queues keep what is split."""
    kept: deque[object] = deque((run() for _ in range(8)), maxlen=8)
    return min(timeit.repeat(lambda: kept.append(run()), number=20, repeat=7)) / 20


def slices(batch: pa.RecordBatch, targets: npt.NDArray[Any], consumers: int) -> list[pa.RecordBatch]:
    counts = np.bincount(targets, minlength=consumers).tolist()
    starts = np.cumsum([0, *counts]).tolist()
    return [batch.slice(start, count) for start, count in zip(starts, counts)]


def argsort_arrow_take(batch: pa.RecordBatch, targets: npt.NDArray[Any], consumers: int) -> object:
    order = pa.array(np.argsort(targets, kind="stable"))
    return slices(batch.take(order), targets, consumers)


def arrow_take_per_consumer(batch: pa.RecordBatch, targets: npt.NDArray[Any], consumers: int) -> object:
    return [batch.take(pa.array(np.flatnonzero(targets == c))) for c in range(consumers)]


def numpy_take_per_consumer(batch: pa.RecordBatch, targets: npt.NDArray[Any], consumers: int) -> object:
    return [take(batch, np.flatnonzero(targets == c)) for c in range(consumers)]


def filter_per_consumer(batch: pa.RecordBatch, targets: npt.NDArray[Any], consumers: int) -> object:
    return [batch.filter(pa.array(targets == c)) for c in range(consumers)]


def numba_counting_sort() -> Way:
    import numba

    @numba.njit
    def order_of(targets: Any, consumers: int) -> Any:  # type: ignore[untyped-decorator,unused-ignore]
        next_place = np.zeros(consumers + 1, np.int64)
        for target in targets:
            next_place[target + 1] += 1
        for consumer in range(consumers):
            next_place[consumer + 1] += next_place[consumer]
        order = np.empty(len(targets), np.int64)
        for row in range(len(targets)):
            order[next_place[targets[row]]] = row
            next_place[targets[row]] += 1
        return order

    return lambda batch, targets, consumers: slices(
        take(batch, order_of(targets, consumers)), targets, consumers
    )


def measure(batch: pa.RecordBatch, consumers: int, ways: dict[str, Way]) -> dict[str, float]:
    """Return million rows a second by name, for one size of batch and number of consumers."""
    rows = batch.num_rows
    partitioner = HashPartitioner(["key"], 128, consumers)
    targets = partitioner.targets(batch)
    looked_up = seconds(lambda: partitioner.targets(batch))
    result = {
        "rows": rows,
        "consumers": consumers,
        "hash": rows / seconds(lambda: hash_columns(batch, ["key"])) / 1e6,
        "hash + split": rows / seconds(lambda: partitioner.split(batch)) / 1e6,
    }
    for name, way in ways.items():
        split = seconds(functools.partial(way, batch, targets, consumers))
        result[name] = rows / (looked_up + split) / 1e6
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--numba", action="store_true")
    options = parser.parse_args()
    ways: dict[str, Way] = {
        "argsort + arrow take": argsort_arrow_take,
        "arrow take each": arrow_take_per_consumer,
        "numpy take each": numpy_take_per_consumer,
        "filter each": filter_per_consumer,
    }
    if options.numba:
        ways["numba counting sort"] = numba_counting_sort()
    results = [measure(batch_of(rows), consumers, ways) for rows in ROWS for consumers in CONSUMERS]
    if options.json:
        print(json.dumps({"unit": "million rows/s", "results": results}, indent=1))
        return
    print("million rows/s; all but `hash` are hash + split")
    print("  ".join(f"{name:>20}" for name in results[0]))
    for result in results:
        print("  ".join(f"{value:>20.0f}" for value in result.values()))


if __name__ == "__main__":
    main()
