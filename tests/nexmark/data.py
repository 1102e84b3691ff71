"""Data sets for NEXMark that make wrong answers show: awkward values, and the same rows out of order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tests.nexmark.running import STREAMS, nexmark_events

_SHIFT_US = 23 * 3_600_000_000 + 59 * 60_000_000 + 40 * 1_000_000  # 20 s before midnight
_GRAIN_US = 250_000
_NULLS_OF_A_HUNDRED = 2


def write_awkward(folder: Path, events: int, rate: float) -> None:
    """Write generated events, made awkward, with `rate` events a second of event time.

    Times are whole quarters of a second, in microseconds, and pass midnight: many are equal, many lie exactly on a
    window's end or a session's gap apart. Prices have one digit and zeros: many are equal. Some prices, channels and
    urls are null, some urls short. Each stream has an empty file and two of two row groups.
    """
    for name, stream in nexmark_events.STREAMS.items():
        rows = stream.rows(events)
        table = _awkward(pa.Table.from_batches([stream.make(0, rows, rate)]))
        (folder / name).mkdir(parents=True)
        pq.write_table(table.slice(0, 0), folder / name / "part-000.parquet")
        for file, (start, stop) in enumerate([(0, rows // 3), (rows // 3, rows)], start=1):
            part = table.slice(start, stop - start)
            pq.write_table(part, folder / name / f"part-{file:03}.parquet", row_group_size=len(part) // 2 + 1)


def _awkward(table: pa.Table) -> pa.Table:
    rng = np.random.default_rng(len(table))
    for name in ("dateTime", "expires"):
        if name in table.column_names:
            at_us = table[name].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy() + _SHIFT_US
            table = _set(table, name, pa.array(at_us // _GRAIN_US * _GRAIN_US, pa.timestamp("us")))
    if "price" in table.column_names:
        price = table["price"].to_numpy()
        digits = 10 ** np.floor(np.log10(price)).astype(np.int64)
        table = _set(table, "price", pa.array(price // digits * digits))
        table = _set(table, "url", _short_urls(table["url"], rng))
        for name in ("price", "channel", "url"):
            nulls = pa.array(rng.integers(0, 100, len(table)) < _NULLS_OF_A_HUNDRED)
            table = _set(table, name, pc.if_else(nulls, None, table[name]))
    return table


def _short_urls(urls: Any, rng: np.random.Generator) -> Any:
    short = pa.array(
        ["", "nexmark", "https://www.nexmark.com", "https://n.com/a//b?channel_id=", "https://n.com/a/b"]
    )
    chosen = short.take(pa.array(rng.integers(0, len(short), len(urls))))
    return pc.if_else(pa.array(rng.integers(0, 100, len(urls)) < 10), chosen, urls)


def _set(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def write_shuffled(data: Path, to: Path, *, horizon_s: float = 10.0, seed: int = 0) -> None:
    """Write the same files with the rows of each row group moved by less than `horizon_s` of event time."""
    rng = np.random.default_rng(seed)
    for stream in STREAMS:
        (to / stream).mkdir(parents=True, exist_ok=True)
        for path in sorted((data / stream).glob("*.parquet")):
            file = pq.ParquetFile(path)
            with pq.ParquetWriter(to / stream / path.name, file.schema_arrow) as writer:
                for group in range(file.num_row_groups):
                    _write_moved(writer, file.read_row_group(group), horizon_s, rng)


def _write_moved(writer: Any, rows: pa.Table, horizon_s: float, rng: np.random.Generator) -> None:
    at_us = rows["dateTime"].cast(pa.timestamp("us")).cast(pa.int64()).to_numpy()
    moved = at_us + rng.uniform(0, horizon_s * 1e6, len(rows))
    writer.write_table(rows.take(pa.array(np.argsort(moved, kind="stable"))), max(len(rows), 1))


def write_side_table(path: Path, keys: Sequence[int] = range(0, 10_000, 3)) -> Path:
    """Write q13's table: a value for a third of the keys."""
    path.write_text("key,value\n" + "".join(f"{key},value {key}\n" for key in keys))
    return path
