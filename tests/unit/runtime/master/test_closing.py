"""The end of a job: who may still clean up, and what must stay."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.model.errors import StorageError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.master.closing import Closing
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.records import Records
from rayflow.runtime.master.storage import JobStorage, Sibling
from rayflow.state.manifest import Manifest
from rayflow.state.storage import open_store
from rayflow.testing.faults import Faults, Strike
from rayflow.testing.simulation import Simulation

FINISHED: list[rf.SinkContext] = []
NEWEST = CheckpointId(3)


class Watched(rf.Sink):
    """Tells with which context it was asked to clean up."""

    def write(self, batch: pa.RecordBatch) -> None: ...

    def finish_job(self, ctx: rf.SinkContext) -> str | None:
        FINISHED.append(ctx)
        return None


class Lab:
    """The end of a job whose newest complete checkpoint is 3."""

    def __init__(self, pool: Any, ctx: Context) -> None:
        FINISHED.clear()
        self.pool, self.ctx, self.told = pool, ctx, []
        ctx.storage.claim_attempt(Attempt(2), "now")

    def claim_elsewhere(self) -> None:
        """Another manager takes over."""
        folder = self.ctx.storage.url(CheckpointId(1)).removeprefix("file://").rpartition("/job/")[0]
        JobStorage(open_store, folder, {}, JobId("job")).claim_attempt(Attempt(3), "later")

    def close(
        self,
        publishing: frozenset[CheckpointId] = frozenset(),
        completed: CheckpointId | None = NEWEST,
    ) -> Lab:
        self.closing = Closing(
            self.ctx,
            Records(self.ctx, dict),
            lambda: {"state": "CANCELLED"},
            lambda: self.told.append("done"),
            1_000,
            attempt=max(self.ctx.attempt, Attempt(2)),
            superseded=lambda: self.told.append("superseded"),
            succeeded=False,
            completed=completed,
            kept=() if completed is None else (completed,),
            known=completed,
            publishing=lambda: publishing,
        )
        self.closing.advance()
        self.pool.do_all()
        return self


@pytest.fixture
def lab(pool: Any, make_context: Any) -> Lab:
    return Lab(pool, make_context(Watched()))


def test_sinks_clean_up_and_the_end_is_stored(lab: Lab) -> None:
    assert lab.close().told == ["done"]
    (ctx,) = FINISHED
    assert (ctx.attempt, ctx.completed_checkpoint, ctx.succeeded) == (2, 3, False)
    assert lab.ctx.storage.load().job == {"state": "CANCELLED"}


def test_a_manager_that_was_superseded_meanwhile_touches_nothing(lab: Lab) -> None:
    # It stood still before it could store that the job was cancelled, so another one goes on with it.
    lab.claim_elsewhere()
    assert lab.close().told == ["superseded"]
    assert FINISHED == []
    assert lab.ctx.storage.load().job == {}


def test_a_new_manager_that_ends_the_job_before_its_first_attempt_cleans_up_after_the_last_ones(
    lab: Lab,
) -> None:
    lab.claim_elsewhere()
    lab.ctx.attempt = Attempt(0)
    assert lab.close().told == ["done"]
    assert [ctx.attempt for ctx in FINISHED] == [2]


def test_one_whose_own_next_attempt_never_began_is_still_in_charge(lab: Lab) -> None:
    # No checkpoint could be used: that is what ends the job.
    lab.ctx.storage.claim_attempt(Attempt(3), "later")
    assert lab.close().told == ["done"]
    assert len(FINISHED) == 1


def test_where_that_cannot_be_told_the_sinks_clean_up(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def away() -> bool:
        raise StorageError("away")

    monkeypatch.setattr(lab.ctx.storage, "is_another_in_charge", away)
    assert lab.close().told == ["done"]
    assert len(FINISHED) == 1


def test_what_a_checkpoint_left_pending_stays_while_its_manifest_may_still_appear(lab: Lab) -> None:
    lab.close(publishing=frozenset({CheckpointId(4)}))
    assert [ctx.completed_checkpoint for ctx in FINISHED] == [4]


@pytest.mark.parametrize("away", [False, True])
def test_a_checkpoint_that_appears_when_the_sinks_have_dropped_its_rows_goes(
    pool: Any, make_context: Any, away: bool
) -> None:
    """Simulation seed 46447: a dead manager's request to publish was carried out late. Another job began from it."""

    class Late(Watched):
        def prepare(self, checkpoint_id: int) -> None: ...

        def finish_job(self, ctx: rf.SinkContext) -> str | None:
            manifest = Manifest(job_id="job", attempt=2, checkpoint_id=4, time_ms=0, max_parallelism=8)
            lab.ctx.storage.publish(manifest, Attempt(2))
            if away:
                raise ConnectionError("the database is away: nothing was dropped")
            return None

    lab = Lab(pool, make_context(Late()))
    lab.close()
    assert lab.ctx.storage.list_checkpoints().complete == ((CheckpointId(4),) if away else ())


def test_one_that_appears_after_the_end_is_known_by_what_the_job_says(pool: Any, make_context: Any) -> None:
    class Prepared(Watched):
        def prepare(self, checkpoint_id: int) -> None: ...

    lab = Lab(pool, make_context(Prepared()))
    manifest = Manifest(job_id="job", attempt=2, checkpoint_id=3, time_ms=0, max_parallelism=8)
    lab.ctx.storage.publish(manifest, Attempt(2))
    lab.close()
    lab.ctx.storage.publish(dataclasses.replace(manifest, checkpoint_id=4), Attempt(2))
    folder = lab.ctx.storage.url(CheckpointId(3)).rpartition("/")[0]
    assert [url.rpartition("/")[2] for url in lab.ctx.storage.named(folder)] == ["chk-3"]
    assert lab.ctx.storage.newest_sibling(f"{folder}/chk-4") == Sibling(CheckpointId(3), lost=False)
    # Nor does it keep anything pending when the sinks look once more.
    lab.closing.clean_up_again()
    assert [ctx.completed_checkpoint for ctx in FINISHED] == [3, 3]


def test_where_nothing_was_complete_nothing_that_appears_is(pool: Any, make_context: Any) -> None:
    class Prepared(Watched):
        def prepare(self, checkpoint_id: int) -> None: ...

    lab = Lab(pool, make_context(Prepared()))
    lab.close(completed=None)
    manifest = Manifest(job_id="job", attempt=2, checkpoint_id=1, time_ms=0, max_parallelism=8)
    lab.ctx.storage.publish(manifest, Attempt(2))
    assert lab.ctx.storage.newest_sibling(lab.ctx.storage.url(CheckpointId(1))) is None
    lab.closing.clean_up_again()
    assert [ctx.completed_checkpoint for ctx in FINISHED] == [None, None]


def test_what_a_superseded_manager_published_late_keeps_nothing_pending(lab: Lab) -> None:
    # Attempt 2 went on from chk-2, and completed chk-3; then attempt 1, cut off, published its chk-4.
    for n, attempt in ((3, 2), (4, 1)):
        manifest = Manifest(job_id="job", attempt=attempt, checkpoint_id=n, time_ms=0, max_parallelism=8)
        lab.ctx.storage.publish(manifest, Attempt(2))
    lab.close()
    assert [ctx.completed_checkpoint for ctx in FINISHED] == [3]


def test_a_sink_that_cannot_clean_up_is_told_of_with_the_way_to_do_it_later(
    pool: Any, make_context: Any
) -> None:
    class Broken(Watched):
        def finish_job(self, ctx: rf.SinkContext) -> str | None:
            raise ConnectionError("the database is away")

    lab = Lab(pool, make_context(Broken())).close()
    (event,) = [event for event in lab.ctx.log.since(0) if event["type"] == "sink_cleanup_failed"]
    assert "ConnectionError: the database is away" in event["message"]
    folder = lab.ctx.storage.url(CheckpointId(1)).rpartition("/")[0]
    assert f"`rayflow clean {folder}`" in event["message"]


def test_a_last_look_tells_only_of_what_fails(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    lab.close().closing.clean_up_again()
    assert len(FINISHED) == 2
    monkeypatch.setattr(Watched, "finish_job", lambda self, ctx: "1 prepared and not committed")
    lab.closing.clean_up_again()
    assert lab.ctx.log.since(0) == []

    def away(self: Watched, ctx: rf.SinkContext) -> str | None:
        raise ConnectionError("away")

    monkeypatch.setattr(Watched, "finish_job", away)
    lab.closing.clean_up_again()
    (event,) = lab.ctx.storage.load().events
    assert event["type"] == "sink_cleanup_failed"


def test_nor_does_it_touch_what_a_later_manager_has(lab: Lab) -> None:
    lab.close()
    lab.claim_elsewhere()
    lab.closing.clean_up_again()
    assert len(FINISHED) == 1


def test_a_job_that_a_new_manager_ends_at_once_had_the_attempts_of_the_last_one(tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"checkpoint.interval": "100ms"})
    rows = env.generate(lambda start, count: pa.record_batch({"n": range(start, start + count)}), rows=400)
    rows.write_parquet(str(tmp_path / "out"))
    strike = Strike(moment="after ack", nth=1, action="crash master")
    sim = Simulation(
        seed=3,
        faults=Faults(strikes=1, aimed=(strike,), active_ms=60_000),
        storage_url="memory://ended-at-once",
    )
    outcome = sim.run(env.plan(), env.config, cancel_when=lambda master, _: sim.job.tenures > 1)  # type: ignore[union-attr]
    sim.close()
    assert (outcome.state, outcome.attempts) == (JobState.CANCELLED, 1)
    # What the first attempt had staged is gone.
    assert list((tmp_path / "out").rglob("*.pending")) == []
