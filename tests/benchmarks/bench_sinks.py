"""How fast `rf.SqlSink` is against writing row by row, on the same servers in one run.

Run: `PYTHONPATH=. python tests/benchmarks/bench_sinks.py [--rows N] [--single N] [--rounds N] [--durable]`. It starts
a PostgreSQL and a MariaDB server as the tests do: what is written survives the process, not the machine, so a commit
costs little, which is in favour of single rows. With `--durable` they are as by default, and commits wait for the disk.
Rows of 5 columns (key, text, two numbers, time), about 60 bytes.

`by hand`: an INSERT (that replaces by key), and a commit, for each row, by the driver alone. `rows=1`: the sink with
batches of one row. Then the sink at several sizes of batch, one request at a time and two. All by the sink's own
calls, without an engine around them, but for `job`: the whole local engine with checkpoints, and the sink's defaults.

Of each way: the median rate, what its ratio to `by hand` was in the rounds (median, least and most), and the same ratio
of processor time, the server's and this process's, per row. The rates of single rows are mostly waiting, two switches
between processes for each statement, so on a busy machine they, and the ratio with them, vary with who else wants the
processor; processor time does not.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

import rayflow as rf
from tests.mariadb import running_mariadb
from tests.postgres import running_postgres

CONTEXT = rf.SinkContext(
    job_id="bench", attempt=1, uid="sink", subtask_index=0, parallelism=1, max_parallelism=8
)


def rows(start: int, count: int) -> pa.RecordBatch:
    at = np.arange(start, start + count)
    return pa.record_batch(
        {
            "id": pa.array(at),
            "name": pa.array([f"customer number {n}" for n in at]),
            "total": pa.array(at * 1.25),
            "visits": pa.array((at % 97).astype(np.int32)),
            "seen": pa.array(at * 1_000_000, pa.timestamp("us")),
        }
    )


@dataclass(frozen=True)
class Measured:
    """Rows/s by the clock, and processor seconds per row of the server and this process."""

    rate: float
    cpu_s: float


class Stopwatch:
    """Measures what is done inside `with`; `rows` of it are to be told."""

    def __init__(self, server: Any) -> None:
        self._server = server
        self.rows = 0

    def __enter__(self) -> Stopwatch:
        self._begin_s, self._begin_cpu_s = time.perf_counter(), self._cpu_s()
        return self

    def __exit__(self, *_: object) -> None:
        seconds, cpu_s = time.perf_counter() - self._begin_s, self._cpu_s() - self._begin_cpu_s
        if self.rows:
            self.measured = Measured(self.rows / seconds, cpu_s / self.rows)

    def _cpu_s(self) -> float:
        """All that the server's processes have used so far, those that have ended included, and this one."""
        main = psutil.Process(server_pid(self._server))
        total = time.process_time() + sum(main.cpu_times()[:4])
        for process in main.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                total += sum(process.cpu_times()[:2])
        return total


def server_pid(server: Any) -> int:
    """Return the server's first process."""
    if server.url.startswith("postgresql"):
        return int((server.folder / "data" / "postmaster.pid").read_text().split()[0])
    return int(server.process.pid)


def by_hand(server: Any, table: str, batch: pa.RecordBatch, mode: str) -> Measured:
    """Single statements."""
    postgres = server.url.startswith("postgresql")
    names = batch.schema.names
    values = ", ".join(["%s"] * len(names))
    changes = ", ".join(f"{n} = EXCLUDED.{n}" if postgres else f"{n} = VALUES({n})" for n in names[1:])
    conflict = "ON CONFLICT (id) DO UPDATE SET" if postgres else "ON DUPLICATE KEY UPDATE"
    sql = f"INSERT INTO {table} ({', '.join(names)}) VALUES ({values})"
    if mode == "upsert":
        sql = f"{sql} {conflict} {changes}"
    found = list(zip(*(column.to_pylist() for column in batch.columns)))
    with server.connect() as connection, connection.cursor() as cursor:
        with Stopwatch(server) as watch:
            for row in found:
                cursor.execute(sql, row)
            watch.rows = len(found)
    return watch.measured


def by_sink(server: Any, sink: rf.SqlSink, batches: list[pa.RecordBatch], writers: int) -> Measured:
    """The sink, one copy per writer as the engine has them."""
    opened = []
    for _ in range(writers):
        opened.append(copy.copy(sink))
        opened[-1].open(CONTEXT)

    def write(index: int) -> None:
        for batch in batches[index::writers]:
            opened[index].write_batch(batch)

    with Stopwatch(server) as watch:
        with ThreadPoolExecutor(writers) as pool:
            list(pool.map(write, range(writers)))
        watch.rows = sum(batch.num_rows for batch in batches)
    for each in opened:
        each.close()
    return watch.measured


def by_job(server: Any, table: str, options: dict[str, Any], count: int) -> Measured:
    """The whole engine."""
    env = rf.StreamEnvironment(config={"checkpoint.interval": "1s"})
    env.generate(rows, count).sink_to(rf.SqlSink(server.url, table, **options))
    with Stopwatch(server) as watch:
        env.execute(local=True)
        watch.rows = count
    return watch.measured


def measure(server: Any, count: int, single: int, number: int) -> dict[tuple[str, str], Measured]:
    """Return what was measured by mode and way, in one round."""
    found: dict[tuple[str, str], Measured] = {}
    for mode, options in (("upsert", {"keys": "id"}), ("append", {})):
        table = f"bench_{mode}_{number}"
        sink = rf.SqlSink(server.url, table, **options).behind(None)
        sink.validate(rows(0, 1).schema)
        sink.start_job(CONTEXT)
        found[mode, "by hand"] = by_hand(server, table, rows(0, single), mode)
        found[mode, "rows=1"] = by_sink(server, sink, [rows(n, 1) for n in range(single)], 1)
        for size in (100, 1_000, 10_000):
            batches = [rows(n, size) for n in range(0, count, size)]
            found[mode, f"rows={size}"] = by_sink(server, sink, batches, 1)
        found[mode, "rows=10000, in_flight=2"] = by_sink(server, sink, batches, 2)
        found[mode, "job"] = by_job(server, f"{table}_job", options, count)
        sink.finish_job(CONTEXT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--single", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--durable", action="store_true", help="commits wait for the disk")
    given = parser.parse_args()
    with running_postgres(durable=given.durable) as postgres, running_mariadb() as mariadb:
        if given.durable:
            mariadb.as_root("SET GLOBAL innodb_flush_log_at_trx_commit = 1")
        rounds = []
        for number in range(given.rounds):
            found = {
                name: measure(server, given.rows, given.single, number)
                for name, server in (("PostgreSQL", postgres), ("MariaDB", mariadb))
            }
            rounds.append(found)
            print(f"round {number + 1}: {found}", file=sys.stderr, flush=True)
    print("| database | mode | way | rows/s | times `by hand`: median (least to most) | in processor time |")
    print("|---|---|---|---|---|---|")
    for name, first in rounds[0].items():
        for mode, way in first:
            found = [each[name][mode, way] for each in rounds]
            base = [each[name][mode, "by hand"] for each in rounds]
            rate = statistics.median(m.rate for m in found)
            ratios = shown([m.rate / b.rate for m, b in zip(found, base)])
            cpu = shown([b.cpu_s / m.cpu_s for m, b in zip(found, base)])
            print(f"| {name} | {mode} | {way} | {rate:,.0f} | {ratios} | {cpu} |")


def shown(ratios: list[float]) -> str:
    return f"{statistics.median(ratios):,.1f} ({min(ratios):,.1f} to {max(ratios):,.1f})"


if __name__ == "__main__":
    main()
