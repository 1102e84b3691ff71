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
from rayflow.operators.source_contract import Split
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
    said = [driver.watermark(0) for _ in range(3)]
    assert any(isinstance(answer, GoIdle) for answer in said) == aside
    driver.assign(assign([], no_more=True))
    assert driver.ended
