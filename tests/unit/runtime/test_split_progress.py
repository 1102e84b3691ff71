"""What the master makes of the progress that a source's subtasks report."""

from __future__ import annotations

import pyarrow as pa

from rayflow.connectors.memory_sources import RowsSource
from rayflow.graph.plan import JobVertex, OperatorSpec
from rayflow.model.ids import Attempt, SubtaskId, VertexId
from rayflow.runtime.master.sources import SourceSplits

SOURCE = VertexId("source")
A, B, C = (SubtaskId(SOURCE, index) for index in range(3))


def started() -> SourceSplits:
    spec = OperatorSpec(uid="source", name="source", kind="source", payload=RowsSource(pa.table({"n": [1]})))
    splits = SourceSplits(JobVertex(id=SOURCE, operators=(spec,), parallelism=3))
    splits.begin(Attempt(1), ())
    return splits


def told(splits: SourceSplits, subtask: SubtaskId, watermark: int | None) -> dict[SubtaskId, int | None]:
    return {other: message.others for other, message in splits.progressed(subtask, watermark)}


def test_each_subtask_is_told_of_the_slowest_of_the_others() -> None:
    splits = started()
    assert told(splits, A, 10) == {B: 10, C: 10}
    assert told(splits, B, 30) == {A: 30}
    assert told(splits, C, 20) == {A: 20}
    assert told(splits, A, 25) == {B: 20, C: 25}
    assert told(splits, C, None) == {A: 30, B: 25}
    assert told(splits, A, None) == {B: None, C: 30}


def test_of_two_that_are_equally_slow_each_is_told_of_the_other() -> None:
    splits = started()
    told(splits, A, 10)
    assert told(splits, B, 10) == {A: 10}


def test_a_new_attempt_knows_nothing_of_the_last_one() -> None:
    splits = started()
    told(splits, A, 10)
    assert all(message.others is None for _, message in splits.begin(Attempt(2), ()))
    assert told(splits, B, 30) == {A: 30, C: 30}
