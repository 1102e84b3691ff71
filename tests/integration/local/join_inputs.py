"""What the tests of joins join, and what DuckDB says that must give."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import duckdb
import pyarrow as pa

import rayflow as rf

JOINED = "coalesce(a.k, b.k), coalesce(a.j, b.j), a.v, a.f, a.t, b.v, b.f, b.t"
"""The columns of an inner join on `k` and `j`, in the order in which rayflow has them."""


def env(parallelism: int = 1, rows: int = 65536, **config: Any) -> rf.StreamEnvironment:
    return rf.StreamEnvironment(
        parallelism=parallelism, max_parallelism=8, config={"batch.rows": rows, **config}
    )


def random_table(rows: int, seed: int, letters: str = "abcdefgh") -> pa.Table:
    rng = random.Random(seed)
    return pa.table(
        {
            "k": [rng.choice([None, *letters]) for _ in range(rows)],
            "j": pa.array([rng.choice([None, 0, 1]) for _ in range(rows)], pa.int16()),
            "v": [rng.randrange(3) for _ in range(rows)],
            "f": [rng.choice([0.0, 1.5, None]) for _ in range(rows)],
            "t": pa.array([rng.randrange(60_000) for _ in range(rows)], pa.timestamp("ms")),
        }
    )


def sql_rows(query: str, **tables: pa.Table) -> Counter[Any]:
    with duckdb.connect() as connection:
        for name, table in tables.items():
            connection.register(name, table)
        return Counter(connection.sql(query).fetchall())


def timed(made: rf.StreamEnvironment, table: pa.Table) -> Any:
    # Sorted by a time up to 5 s off, so that no row is late.
    rng = random.Random(table.num_rows)
    order = sorted(range(table.num_rows), key=lambda i: table["t"][i].value + rng.randrange(5000))
    return made.from_arrow(table.take(order), watermark=rf.Watermark("t", delay="6s"))
