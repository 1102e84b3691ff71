"""How fast `rf.SqlSink` is against writing row by row, on the same servers in one run.

Run: `PYTHONPATH=. python tests/benchmarks/bench_sinks.py [--rows N] [--single N] [--rounds N]`. It starts a PostgreSQL
and a MariaDB server (as the tests do: what is written survives the process, not the machine, so a commit costs little,
which is in favour of single rows). Rows of 5 columns (key, text, two numbers, time), about 60 bytes.

`by hand`: an INSERT (that replaces by key), and a commit, for each row, by the driver alone. `rows=1`: the sink with
batches of one row. Then the sink at several sizes of batch, one request at a time and two. All by the sink's own
calls, without an engine around them, but for `job`: the whole local engine with checkpoints, and the sink's defaults.
Medians over the rounds.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
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


def by_hand(server: Any, table: str, batch: pa.RecordBatch, mode: str) -> float:
    """Return rows/s of single statements."""
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
        begin = time.perf_counter()
        for row in found:
            cursor.execute(sql, row)
        return len(found) / (time.perf_counter() - begin)


def by_sink(sink: rf.SqlSink, batches: list[pa.RecordBatch], writers: int) -> float:
    """Return rows/s of the sink, one copy per writer as the engine has them."""
    opened = []
    for _ in range(writers):
        opened.append(copy.copy(sink))
        opened[-1].open(CONTEXT)

    def write(index: int) -> None:
        for batch in batches[index::writers]:
            opened[index].write_batch(batch)

    begin = time.perf_counter()
    with ThreadPoolExecutor(writers) as pool:
        list(pool.map(write, range(writers)))
    seconds = time.perf_counter() - begin
    for each in opened:
        each.close()
    return sum(batch.num_rows for batch in batches) / seconds


def by_job(url: str, table: str, options: dict[str, Any], count: int) -> float:
    env = rf.StreamEnvironment(config={"checkpoint.interval": "1s"})
    env.generate(rows, count).sink_to(rf.SqlSink(url, table, **options))
    begin = time.perf_counter()
    env.execute(local=True)
    return count / (time.perf_counter() - begin)


def measure(server: Any, count: int, single: int, number: int) -> dict[tuple[str, str], float]:
    """Return rows/s by mode and way, of one round."""
    found: dict[tuple[str, str], float] = {}
    for mode, options in (("upsert", {"keys": "id"}), ("append", {})):
        table = f"bench_{mode}_{number}"
        sink = rf.SqlSink(server.url, table, **options).behind(None)
        sink.validate(rows(0, 1).schema)
        sink.start_job(CONTEXT)
        found[mode, "by hand"] = by_hand(server, table, rows(0, single), mode)
        found[mode, "rows=1"] = by_sink(sink, [rows(n, 1) for n in range(single)], 1)
        for size in (100, 1_000, 10_000):
            batches = [rows(n, size) for n in range(0, count, size)]
            found[mode, f"rows={size}"] = by_sink(sink, batches, 1)
        found[mode, "rows=10000, in_flight=2"] = by_sink(sink, batches, 2)
        found[mode, "job"] = by_job(server.url, f"{table}_job", options, count)
        sink.finish_job(CONTEXT)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--single", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with running_postgres() as postgres, running_mariadb() as mariadb:
        rounds = [
            {
                name: measure(server, given.rows, given.single, number)
                for name, server in (("PostgreSQL", postgres), ("MariaDB", mariadb))
            }
            for number in range(given.rounds)
        ]
    print("| database | mode | way | rows/s | times `by hand` |\n|---|---|---|---|---|")
    for name, first in rounds[0].items():
        for mode, way in first:
            rates = [each[name][mode, way] for each in rounds]
            ratio = statistics.median(each[name][mode, way] / each[name][mode, "by hand"] for each in rounds)
            print(f"| {name} | {mode} | {way} | {statistics.median(rates):,.0f} | {ratio:,.1f} |")


if __name__ == "__main__":
    main()
