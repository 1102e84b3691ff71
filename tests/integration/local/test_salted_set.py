"""The set of salted keys changes: a new hot key is followed, and kills meanwhile change no results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

import rayflow as rf
from rayflow.batch.hashing import hash_columns
from rayflow.skew import salting
from rayflow.skew.salting import SaltOperator
from tests.integration.local.test_skew import AUTO, environment, expected


@contextmanager
def watched_barriers() -> Iterator[dict[int, list[tuple[int, set[int]]]]]:
    """By sender: at each barrier how many rows of key 2 there had been, and what was salted from then on."""
    found: dict[int, list[tuple[int, set[int]]]] = {}
    rows: Counter[int] = Counter()
    process, snapshot = SaltOperator.process, SaltOperator.snapshot

    def counted(self: SaltOperator, batch: pa.RecordBatch, port: int) -> None:
        rows[id(self)] += pc.sum(pc.equal(batch["k"], 2)).as_py() or 0
        process(self, batch, port)

    def noted(self: SaltOperator, checkpoint_id: int) -> Any:
        parts = snapshot(self, checkpoint_id)
        found.setdefault(id(self), []).append((rows[id(self)], set(self._salted.keys.tolist())))
        return parts

    with pytest.MonkeyPatch.context() as patch:
        # The key comes later: it is the master that finds it.
        patch.setattr(salting, "FIRST_ROWS", 1_000)
        patch.setattr(SaltOperator, "process", counted)
        patch.setattr(SaltOperator, "snapshot", noted)
        yield found


KILLS = {
    "a sender, as it is told": ("crash", "crash", "crash"),
    "the master, as it tells": ("crash master", "crash", "crash master"),
    "everything": ("crash all", "crash all", "freeze"),
}


@pytest.mark.parametrize("kills", KILLS)
def test_kills_while_the_salted_set_changes_change_nothing(
    kills: str,
) -> None:
    env = environment(AUTO, "nowhere", 3_000, 1_000, **{"heartbeat.interval": "200ms", "batch.rows": 100})
    # The first set, the one after the new hot key, and, with a set told and not yet in effect, the next barrier.
    told = [rf.testing.Strike(moment="keys told", nth=n, action=a) for n, a in zip((1, 3, 6), KILLS[kills])]
    barrier = rf.testing.Strike(moment="aligning", nth=30, action=KILLS[kills][0])
    faults = rf.testing.Faults(aimed=(*told, barrier), max_delay_ms=5)
    report = rf.testing.simulate(env, seeds=(1,), faults=faults)
    report.check()
    assert len([fault for fault in report.runs[0].faults if "SaltKeys" in fault]) >= 2


def test_a_new_hot_key_is_salted_within_few_checkpoints(lab: Any, tmp_path: Path) -> None:
    rows = 40_000
    env = environment(
        AUTO, tmp_path / "out", rows, 10_000,
        **{"checkpoint.interval": "200ms", "heartbeat.interval": "100ms", "batch.rows": 500},
    )  # fmt: skip
    with watched_barriers() as barriers:
        lab.finish(env)
    windows, running = expected(lab, tmp_path / "plain", rows)
    assert lab.rows(tmp_path / "out" / "windows") == windows
    assert lab.rows(tmp_path / "out" / "running") == running
    (new_key,) = hash_columns(pa.record_batch({"k": pa.array([2])}), ["k"]).tolist()
    found = [seen for seen in barriers.values() if seen[-1][0] >= 1_000]
    # Whether it was salted, at each barrier since the key was hot. A checkpoint comes 200 ms after the one before it,
    # or later: 50 are ten seconds at the least.
    salted_at = [
        [new_key in salted for rows_of_key, salted in seen if rows_of_key >= 1_000] for seen in found
    ]
    assert any(at[-1] for at in salted_at)
    assert all(at.count(False) < 25 for at in salted_at)
