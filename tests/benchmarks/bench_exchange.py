"""Keyed exchange 2 → 2 of 24-byte rows between real Ray actors: rayflow beside two hand-written loops.

`python tests/benchmarks/bench_exchange.py [--rows N] [--rounds N] [--batch-rows 4096 …] [--json FILE]`

| variant | what it is |
|---|---|
| `hand` | hash, split, Flight DoExchange, credits, nothing else |
| `calls` | the same, batches as Ray actor-call arguments, eight calls in flight |
| `rayflow` | a job: source → key_by → sink that counts, checkpoints off |
| `rayflow+chk` | the same, checkpointing every second |

Every variant moves the same pre-made batches: key (random int64), value int64, value float64. A round runs all variants
once; medians over rounds, rows per second from the first to the last row received.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as flight
import ray

import rayflow as rf

PRODUCERS = CONSUMERS = 2
WINDOW = 8
POOL = 16


def make_batches(rows: int, seed: int) -> list[pa.RecordBatch]:
    """A pool of different batches of `rows` rows, 24 bytes a row."""
    rng = np.random.default_rng(seed)
    return [
        pa.RecordBatch.from_arrays(
            [
                pa.array(rng.integers(0, 1 << 40, rows)),
                pa.array(rng.integers(0, 100, rows)),
                pa.array(rng.random(rows)),
            ],
            names=["key", "a", "b"],
        )
        for _ in range(POOL)
    ]


def split(batch: pa.RecordBatch) -> list[pa.RecordBatch]:
    """Hash the key and split, as by hand."""
    keys = batch.column(0).to_numpy().view(np.uint64)
    hashed = (keys ^ (keys >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    target = (hashed >> np.uint64(40)) % np.uint64(CONSUMERS)
    return [batch.take(pa.array(np.flatnonzero(target == c))) for c in range(CONSUMERS)]


# ------------------------------------------------------------------------------------ hand-written


class _Server(flight.FlightServerBase):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self.rows = 0
        self.first = 0.0
        self.last = 0.0
        self.lock = threading.Lock()

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        for chunk in reader:
            writer.write_metadata(b"1")
            with self.lock:
                self.first = self.first or time.time()
                self.rows += chunk.data.num_rows
                self.last = time.time()


@ray.remote(num_cpus=0)
class HandConsumer:
    def start(self) -> int:
        self.server = _Server()
        return int(self.server.port)

    def stats(self) -> tuple[int, float, float]:
        return self.server.rows, self.server.first, self.server.last


@ray.remote(num_cpus=0)
class HandProducer:
    def run(self, ports: list[int], batch_rows: int, batches: int, seed: int) -> None:
        pool = make_batches(batch_rows, seed)
        streams = []
        for port in ports:
            client = flight.FlightClient(f"grpc://127.0.0.1:{port}")
            writer, reader = client.do_exchange(flight.FlightDescriptor.for_command(b"x"))
            writer.begin(pool[0].schema)
            streams.append((writer, reader))
        in_flight = 0
        for i in range(batches):
            for (writer, reader), part in zip(streams, split(pool[i % POOL]), strict=True):
                if in_flight >= WINDOW * CONSUMERS:
                    reader.read_chunk()
                writer.write_batch(part)
            in_flight = min(in_flight + CONSUMERS, WINDOW * CONSUMERS)
        for writer, _ in streams:
            writer.done_writing()
        for writer, reader in streams:
            while True:
                try:
                    reader.read_chunk()
                except StopIteration:
                    break
            writer.close()


@ray.remote(num_cpus=0)
class CallConsumer:
    def __init__(self) -> None:
        self.seen, self.first, self.last = 0, 0.0, 0.0

    def take(self, batch: pa.RecordBatch) -> None:
        self.first = self.first or time.time()
        self.seen += batch.num_rows
        self.last = time.time()

    def start(self) -> int:
        return 0

    def stats(self) -> tuple[int, float, float]:
        return self.seen, self.first, self.last


@ray.remote(num_cpus=0)
class CallProducer:
    def run(self, consumers: list[Any], batch_rows: int, batches: int, seed: int) -> None:
        pool = make_batches(batch_rows, seed)
        pending: list[Any] = []
        for i in range(batches):
            for consumer, part in zip(consumers, split(pool[i % POOL]), strict=True):
                pending.append(consumer.take.remote(part))
            if len(pending) >= WINDOW * CONSUMERS:
                _, pending = ray.wait(pending, num_returns=CONSUMERS, timeout=60)
        ray.get(pending, timeout=60)


def run_by_hand(consumer_class: Any, producer_class: Any, batch_rows: int, rows: int) -> float:
    """Run one hand-written variant; return rows per second."""
    consumers = [consumer_class.remote() for _ in range(CONSUMERS)]
    ports = ray.get([c.start.remote() for c in consumers], timeout=60)
    producers = [producer_class.remote() for _ in range(PRODUCERS)]
    batches = rows // PRODUCERS // batch_rows
    targets = ports if producer_class is HandProducer else consumers
    ray.get([p.run.remote(targets, batch_rows, batches, i) for i, p in enumerate(producers)], timeout=600)
    stats = ray.get([c.stats.remote() for c in consumers], timeout=60)
    for actor in [*consumers, *producers]:
        ray.kill(actor)
    total = sum(s[0] for s in stats)
    assert total == batches * PRODUCERS * batch_rows
    return total / (max(s[2] for s in stats) - min(s[1] for s in stats))


# ------------------------------------------------------------------------------------ rayflow


class PooledSource(rf.Source):
    """`batches` pre-made batches a split, two splits."""

    def __init__(self, batch_rows: int, batches: int) -> None:
        self.batch_rows, self.batches = batch_rows, batches

    @property
    def schema(self) -> pa.Schema:
        return make_batches(1, 0)[0].schema

    def splits(self) -> Sequence[rf.Split]:
        return [rf.Split(id=str(i), payload={"seed": i}) for i in range(PRODUCERS)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return PooledReader(make_batches(self.batch_rows, split.payload["seed"]), self.batches, position or 0)


class PooledReader(rf.SplitReader):
    def __init__(self, pool: list[pa.RecordBatch], batches: int, at: int) -> None:
        self.pool, self.batches, self.at = pool, batches, at

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        if self.at >= self.batches:
            return None
        self.at += 1
        return self.pool[self.at % POOL]

    def position(self) -> int:
        return self.at


class CountingSink(rf.Sink):
    """Counts rows, and notes when the first and the last came, in a file per subtask."""

    def __init__(self, directory: str) -> None:
        self.directory = directory

    def open(self, ctx: Any) -> None:
        self.path = Path(self.directory) / f"{ctx.subtask_index}.json"
        self.rows, self.first, self.last = 0, 0.0, 0.0

    def write(self, batch: pa.RecordBatch) -> None:
        self.first = self.first or time.time()
        self.rows += batch.num_rows
        self.last = time.time()

    def close(self) -> None:
        self.path.write_text(json.dumps([self.rows, self.first, self.last]))


def run_rayflow(batch_rows: int, rows: int, checkpoint_interval: str) -> float:
    """Run the job; return rows per second."""
    batches = rows // PRODUCERS // batch_rows
    with tempfile.TemporaryDirectory() as directory:
        config = {"checkpoint.interval": checkpoint_interval, "checkpoint.storage": f"file://{directory}/chk"}
        env = rf.StreamEnvironment(name="bench-exchange", parallelism=2, config=config)
        env.from_source(PooledSource(batch_rows, batches)).key_by("key").sink_to(CountingSink(directory))
        env.execute()
        stats = [json.loads(p.read_text()) for p in Path(directory).glob("*.json")]
    total = sum(s[0] for s in stats)
    assert total == batches * PRODUCERS * batch_rows, f"{total} rows arrived"
    return total / (max(s[2] for s in stats) - min(s[1] for s in stats))


# ------------------------------------------------------------------------------------ table

VARIANTS: dict[str, Callable[[int, int], float]] = {
    "hand": lambda b, n: run_by_hand(HandConsumer, HandProducer, b, n),
    "calls": lambda b, n: run_by_hand(CallConsumer, CallProducer, b, n // 8),
    "rayflow": lambda b, n: run_rayflow(b, n, "off"),
    "rayflow+chk": lambda b, n: run_rayflow(b, n, "1s"),
}


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=60_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-rows", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    parser.add_argument("--json", help="write all measurements to this file")
    args = parser.parse_args()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address
    results: dict[str, dict[str, list[float]]] = {}
    for batch_rows in args.batch_rows:
        row = results.setdefault(str(batch_rows), {v: [] for v in args.variants})
        for _ in range(args.rounds):
            for variant in args.variants:
                row[variant].append(VARIANTS[variant](batch_rows, args.rows))
                print(f"{batch_rows:>7} {variant:<12} {row[variant][-1] / 1e6:6.2f} M rows/s", flush=True)
    _print_table(results)
    if args.json:
        Path(args.json).write_text(json.dumps(results, indent=1))
    ray.shutdown()
    return 0


def _print_table(results: dict[str, dict[str, list[float]]]) -> None:
    print("\n| rows a batch | " + " | ".join(next(iter(results.values()))) + " | rayflow / hand |")
    for batch_rows, row in results.items():
        medians = {v: statistics.median(x) for v, x in row.items()}
        cells = " | ".join(f"{m / 1e6:.2f} M/s" for m in medians.values())
        ratio = (
            medians["rayflow"] / medians["hand"] if {"rayflow", "hand"} <= medians.keys() else float("nan")
        )
        print(f"| {batch_rows} | {cells} | {ratio:.2f} |")


if __name__ == "__main__":
    sys.exit(main())
