"""The job that soaks: an endless, rate-limited source whose every row is known from its number, and keyed state.

A row is (`split`, `n`): the n-th row of a split, from 0; key and value follow from these. Two results are written:

- `rows` (append): every row with the key's `seq` and `total` when it was processed: the key's rows are numbered 1, 2,
  3 … in the order of processing, and `total` is the sum of their values so far. So a lost, repeated or differing piece
  of state shows in some row. `at_ms` is the clock when it was processed (not part of what is compared).
- `counts` (upsert by key): the running aggregates.

The source is unbounded until the file `until` exists, which says how many rows each split shall have in the end.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

import rayflow as rf
from rayflow import col

SPLITS = 4
KEYS = 200
SCHEMA = pa.schema({"split": pa.int64(), "n": pa.int64(), "key": pa.int64(), "value": pa.int64()})


def rows(split: int, start: int, count: int) -> pa.RecordBatch:
    """Return rows start … start+count−1 of a split."""
    n = np.arange(start, start + count)
    key = (n * 7 + split * 13) % KEYS
    value = (n * 31 + split * 17) % 1009
    return pa.record_batch([np.full(count, split), n, key, value], schema=SCHEMA)


class NumberedSource(rf.Source):
    """`SPLITS` splits that go on until the file `until` holds the number of rows of each."""

    def __init__(self, until: str) -> None:
        self._until = until

    @property
    def schema(self) -> pa.Schema:
        return SCHEMA

    @property
    def bounded(self) -> bool:
        return False

    def splits(self) -> list[rf.Split]:
        return [rf.Split(id=f"split-{i}", payload=i) for i in range(SPLITS)]

    def open_split(self, split: rf.Split, position: Any | None) -> rf.SplitReader:
        return _NumberedReader(split.payload, position or 0, Path(self._until))


class _NumberedReader(rf.SplitReader):
    def __init__(self, split: int, at: int, until: Path) -> None:
        self._split, self._at, self._until = split, at, until

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        count = max_rows
        if self._until.exists():
            left = int(self._until.read_text()) - self._at
            if left < 0:
                raise RuntimeError(f"split {self._split} is {-left} rows beyond the end it was told")
            if left == 0:
                return None
            count = min(count, left)
        batch = rows(self._split, self._at, count)
        self._at += count
        return batch

    def position(self) -> int:
        return self._at


class Ledger(rf.KeyedProcessFunction):
    """Numbers and sums up each key's rows."""

    seq = rf.ValueState("int64", default=0)
    total = rf.ValueState("int64", default=0)

    def process(self, row: dict[str, Any], ctx: rf.ProcessContext) -> Iterator[dict[str, Any]]:
        self.seq.value += 1
        self.total.value += row["value"]
        yield {**row, "seq": self.seq.value, "total": self.total.value, "at_ms": time.time_ns() // 1_000_000}


LEDGER_SCHEMA = {**{f.name: f.type for f in SCHEMA}, "seq": "int64", "total": "int64", "at_ms": "int64"}


def tell_end(output: Path, until: Path, rate: float, margin_s: float = 40) -> int:
    """Tell the source, of `rate` rows per second, where to stop: so far beyond what is committed that no reader can
    have read more. Return how many rows each split will have."""
    committed = ds.dataset(output / "rows", format="parquet").to_table(columns=["n"])["n"]
    newest = pc.max(committed).as_py() or 0
    last = newest + int(rate / SPLITS * margin_s)
    temporary = until.with_suffix(".new")
    temporary.write_text(str(last))
    temporary.replace(until)
    return last


def build(env: rf.StreamEnvironment, *, output: str = "out/soak-job", until: str = "out/until") -> None:
    """Number and count the rows of each key, until told where to stop."""
    numbered = env.from_source(NumberedSource(until)).name("numbers")
    ledger = numbered.key_by("key").process(Ledger, returns=LEDGER_SCHEMA).name("ledger")
    ledger.write_parquet(f"{output}/rows")
    counted = numbered.key_by("key").aggregate(rows=rf.count(), total=col("value").sum())
    counted.write_parquet(f"{output}/counts", mode="upsert")


if __name__ == "__main__":
    rf.run(build)
