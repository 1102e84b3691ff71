"""A bounded job for chaos: numbers, keyed state, an append and an upsert output; every row known beforehand."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col

KEYS = 100


def numbers(start: int, count: int) -> pa.RecordBatch:
    """Rows start … start+count−1."""
    n = np.arange(start, start + count)
    return pa.record_batch({"n": n, "key": n * 7 % KEYS, "value": n * 31 % 1009})


class Tally(rf.KeyedProcessFunction):
    """Numbers each key's rows."""

    seq = rf.ValueState("int64", default=0)

    def process(self, row: dict, ctx: rf.ProcessContext) -> list[dict]:
        self.seq.value += 1
        return [{**row, "seq": self.seq.value}]


def build(
    env: rf.StreamEnvironment, *, output: str = "out/counted", rows: int = 60_000, rate: float = 2_000
) -> None:
    """Number and count the rows of each key."""
    # One source subtask: the order of a key's rows, and so their numbers, is the same in every run.
    source = env.generate(numbers, rows=rows, rate_limit=rate).name("numbers").with_parallelism(1)
    tallied = source.key_by("key").process(
        Tally, returns={"n": "int64", "key": "int64", "value": "int64", "seq": "int64"}
    )
    tallied.name("tally").write_parquet(f"{output}/rows", if_exists="overwrite")
    counted = source.key_by("key").aggregate(rows=rf.count(), total=col("value").sum())
    counted.write_parquet(f"{output}/counts", mode="upsert", if_exists="overwrite")


if __name__ == "__main__":
    rf.run(build)
