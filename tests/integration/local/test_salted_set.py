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
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.skew import salting
from rayflow.skew.salting import SaltOperator
from rayflow.state.finding import resolve_checkpoint
from rayflow.state.manifest import Manifest
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
    env = environment(AUTO, "nowhere", 3_000, 2_000, **{"heartbeat.interval": "200ms", "batch.rows": 100})
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


Opened = list[tuple[int | None, str, tuple[int, ...]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Of each sender: the checkpoint that it restored, its uid, and what it salted before its first row."""
    found: Opened = []
    open_ = SaltOperator.open

    def noted(self: SaltOperator, ctx: Any, out: Any, restored: Any) -> None:
        open_(self, ctx, out, restored)
        found.append((ctx.restored_from, ctx.uid, tuple(self._salted.keys.tolist())))

    monkeypatch.setattr(SaltOperator, "open", noted)
    return found


@pytest.mark.parametrize("kill", ["crash all", "crash"])
def test_senders_go_on_with_the_set_of_the_checkpoint_after_a_restart(
    kill: str, opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    sets: dict[int, dict[str, tuple[int, ...]]] = {}
    manifest = Checkpoints._manifest

    def noted(self: Checkpoints, report: Any) -> Any:
        made = manifest(self, report)
        sets[made.checkpoint_id] = dict(made.salted)
        return made

    monkeypatch.setattr(Checkpoints, "_manifest", noted)
    env = environment(AUTO, "nowhere", 3_000, 1_000, **{"heartbeat.interval": "200ms", "batch.rows": 100})
    strikes = tuple(rf.testing.Strike(moment="manifest published", nth=n, action=kill) for n in (42, 50))
    faults = rf.testing.Faults(aimed=strikes, max_delay_ms=5, active_ms=None)
    report = rf.testing.simulate(env, seeds=(1,), faults=faults)
    report.check()
    restored = [(number, uid, keys) for number, uid, keys in opened if number is not None]
    assert len([keys for _, _, keys in restored if keys]) >= 4
    if kill == "crash all":  # A master that lives may know a newer set.
        assert [keys for _, _, keys in restored] == [sets[n].get(uid, ()) for n, uid, _ in restored]


def test_the_set_of_a_checkpoint_is_restored_at_another_parallelism(
    lab: Any, tmp_path: Path, opened: Opened
) -> None:
    rows = 6_000
    settings = {
        "checkpoint.interval": "30ms", "heartbeat.interval": "50ms", "checkpoint.storage": str(tmp_path / "chk"),
    }  # fmt: skip

    def job(parallelism: int, rate: float | None) -> Any:
        return environment(AUTO, tmp_path / "out", rows, rate, parallelism, **settings)

    watcher = lab.watch(lambda local: local.master.cancel() or True if salts(tmp_path) else None)
    result = lab.run(job(2, 3_000), on_start=watcher)
    watcher.stop()
    newest = [c["path"] for c in result.checkpoints if c["status"] == "completed"][-1]
    salted = resolve_checkpoint(newest, {}).manifest.salted
    opened.clear()
    assert lab.run(job(4, None), restore_from=newest).failure is None
    assert len(salted) == 2
    assert {uid: keys for _, uid, keys in opened} == salted
    assert len(opened) == 8
    windows, running = expected(lab, tmp_path / "plain", rows)
    assert lab.rows(tmp_path / "out" / "windows") == windows
    assert lab.rows(tmp_path / "out" / "running") == running


def salts(folder: Path) -> bool:
    """Whether some checkpoint has a set of both operators."""
    manifests = (
        Manifest.from_json(path.read_bytes()) for path in (folder / "chk").glob("*/chk-*/manifest.json")
    )
    return any(len(manifest.salted) == 2 for manifest in manifests)
