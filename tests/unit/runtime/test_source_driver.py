"""A source inside its subtask: when its event time stands aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pytest

from rayflow.connectors.memory_sources import RowsSource
from rayflow.graph.plan import OperatorSpec, TimeSpec
from rayflow.model.ids import Attempt
from rayflow.model.times import WATERMARK_MAX
from rayflow.operators.source_contract import Source, Split, SplitReader
from rayflow.protocol.watermarks import GoIdle
from rayflow.runtime.messages import AssignSplits, SplitState
from rayflow.runtime.source_driver import SourceDriver

ROWS = pa.table({"t": pa.array([1_000], pa.timestamp("ms"))})


class Watched(RowsSource):
    """The same, but more may come."""

    @property
    def bounded(self) -> bool:
        return False

    def discovery_interval_ms(self) -> int:
        return 1000


class Endless(Source):
    """Splits that never end: each gives its one batch of rows, then none."""

    bounded = False
    schema = ROWS.schema

    def __init__(self, rows: dict[str, pa.Table]) -> None:
        self.rows = rows

    def splits(self) -> Sequence[Split]:
        return [Split(id=name, payload={}) for name in self.rows]

    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        return Once(self.rows[split.id].to_batches()[0])


class Once(SplitReader):
    def __init__(self, batch: pa.RecordBatch) -> None:
        self.left = [batch]

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        return self.left.pop() if self.left else pa.RecordBatch.from_pylist([], schema=ROWS.schema)

    def position(self) -> int:
        return 1 - len(self.left)


def assign(splits: Sequence[Split], *, no_more: bool) -> AssignSplits:
    states = tuple(SplitState(split=split.to_json()) for split in splits)
    return AssignSplits(attempt=Attempt(1), uid="source", splits=states, cap=WATERMARK_MAX, no_more=no_more)


@pytest.mark.parametrize(("source", "aside"), [(RowsSource(ROWS), False), (Watched(ROWS), True)])
def test_a_bounded_source_that_waits_for_the_masters_last_word_does_not_stand_aside(
    source: Any, aside: bool
) -> None:
    # Windows behind it emit their last rows when it ends: another input of a join must not be ahead by then.
    spec = OperatorSpec(uid="source", name="source", kind="source", payload=source, time=TimeSpec(column="t"))
    driver = SourceDriver(spec, parallelism=1, batch_rows=10, batch_bytes=1 << 20, watermark=None)
    driver.assign(assign(source.splits(), no_more=False))
    read = [driver.poll(0), driver.poll(0)]
    assert [batch and batch.num_rows for batch in read] == [1, None]
    said = [news for _ in range(3) for news in driver.watermark(0)]
    assert (GoIdle() in said) == aside
    driver.assign(assign([], no_more=True))
    assert driver.ended


def test_splits_that_fall_idle_at_once_let_event_time_come_to_the_largest_of_theirs_first() -> None:
    # Reading was held up: the time of idleness begins anew for all splits in one moment.
    ahead, behind = (ROWS.set_column(0, "t", pa.array([ms], pa.timestamp("ms"))) for ms in (9_000, 1_000))
    source = Endless({"a": ahead, "b": behind})
    spec = OperatorSpec(
        uid="source",
        name="source",
        kind="source",
        payload=source,
        time=TimeSpec(column="t", idle_after=10**9),
    )
    driver = SourceDriver(spec, parallelism=1, batch_rows=10, batch_bytes=1 << 20, watermark=None)
    driver.assign(assign(source.splits(), no_more=False))
    said: list[int | GoIdle] = []
    for now_ms in (0, 0, *range(600, 1_700, 80)):
        driver.poll(now_ms)
        said += driver.watermark(now_ms)
    assert said == [999 * 10**6, 8_999 * 10**6, GoIdle()]
