from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from rayflow.operators.contracts import Operator
from rayflow.runtime.chain import Chain, ChainedOperator

ROWS = pa.record_batch({"n": [1, 2, 3]})


class PutAside(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        self.out.emit_side("aside", batch)
        self.out.emit(batch)


@pytest.mark.parametrize(("read", "emitted"), [(True, ["aside", None]), (False, [None])])
def test_a_side_output_leaves_only_where_it_is_read(harness: Any, read: bool, emitted: list[Any]) -> None:
    contexts = [
        harness(PutAside, side_outputs=tags).context for tags in ({}, {"aside": None} if read else {})
    ]
    seen: list[str | None] = []
    operators = [ChainedOperator(PutAside(), context) for context in contexts]
    chain = Chain(operators, lambda tag, _: seen.append(tag), lambda _: None, lambda: None)
    chain.open({})
    chain.process(ROWS, 0)
    assert seen == emitted
    unread = [context.metrics.counter("unread_side_rows").value for context in contexts]
    assert unread == [3, 0 if read else 3]
