"""What becomes of runs whose blocks somebody has removed; all else is tested with the windows that lie in them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from rayflow.model.errors import TransientError
from rayflow.observe.metrics import MetricGroup
from rayflow.state.disk.row_store import MemoryRows
from rayflow.state.disk.sorted_runs import BlockFormat, Run, SortedRuns

KEYS, STATES = pa.schema({"k": pa.int64()}), pa.schema({"n": pa.int64()})


@pytest.fixture
def store() -> MemoryRows:
    return MemoryRows()


@pytest.fixture
def runs(store: MemoryRows) -> SortedRuns:
    return SortedRuns(store, BlockFormat(KEYS, STATES), 1 << 20, lambda: 0, MetricGroup(), "totals")


def written(runs: SortedRuns) -> Run:
    rows = pa.record_batch({"k": range(20_000), "n": range(20_000)})
    format_ = BlockFormat(KEYS, STATES)
    run = runs.write([rows.take(pa.array(np.argsort(format_.hashes(format_.stored(rows)))))])
    assert run is not None
    assert run.blocks > 2
    return run


def remove_block(store: MemoryRows, block: int) -> None:
    (name,) = [key for key, _ in store.scan(b"", b"\xff", 1_000) if key.endswith(block.to_bytes(8, "big"))]
    store.write((), [name])


def test_what_is_there_is_read_whole(runs: SortedRuns) -> None:
    run = written(runs)
    for pieces in (runs.merged([run]), runs.rows(run, runs.barrier(1))):
        assert sum(piece.num_rows for piece in pieces) == 20_000


def test_a_block_that_is_gone_is_named_with_its_run_and_operator_and_a_restart_may_help(
    runs: SortedRuns, store: MemoryRows
) -> None:
    runs.barrier(6)
    run = written(runs)
    remove_block(store, 2)
    said = f"operator 'totals': block 2 of the {run.blocks} of run {run.number}, written after checkpoint 6.*state.dir"
    with pytest.raises(TransientError, match=said):
        list(runs.merged([run]))
    with pytest.raises(TransientError, match=said):
        list(runs.rows(run, runs.barrier(7)))
