from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.coordinator import (
    AbortCheckpoint,
    AnnounceCompleted,
    AttemptEnded,
    AttemptStarted,
    CheckpointCoordinator,
    CoordinatorConfig,
    DiscardCheckpoint,
    FailAttempt,
    FinalRequested,
    ManifestFailed,
    ManifestPublished,
    PublishManifest,
    Restored,
    SavepointRequested,
    SubtaskAcked,
    SubtaskCaughtUp,
    SubtaskDeclined,
    Ticked,
    TriggerSources,
)


def config(**changes):
    values = {
        "interval_ms": 1000,
        "timeout_ms": 5000,
        "min_pause_ms": 0,
        "max_concurrent": 1,
        "retained": 3,
        "failures_tolerated": 3,
    }
    return CoordinatorConfig(**{**values, **changes})


@pytest.fixture
def start(subtasks):
    """Return a coordinator whose attempt 1, of two subtasks, started at 0."""

    def start(**changes):
        coordinator = CheckpointCoordinator(config(**changes), job_id="job")
        assert coordinator.handle(AttemptStarted(1, frozenset(subtasks(2)), 0)) == ()
        return coordinator

    return start


@pytest.fixture
def ack(subtasks):
    """Acknowledge for both subtasks; return what the last ack brought."""

    def ack(coordinator, checkpoint_id, now_ms, attempt=1):
        a, b = subtasks(2)
        assert coordinator.handle(SubtaskAcked(attempt, checkpoint_id, b, now_ms)) == ()
        return coordinator.handle(SubtaskAcked(attempt, checkpoint_id, a, now_ms))

    return ack


def trigger(checkpoint_id, final=False, savepoint=False):
    return TriggerSources(checkpoint_id, final, savepoint)


def announce(checkpoint_id, attempt=1):
    return AnnounceCompleted(checkpoint_id, CommitPermit("job", attempt, checkpoint_id))


def test_checkpoint_is_complete_when_all_have_acked_and_the_manifest_is_published(start, ack):
    coordinator = start()
    assert coordinator.next_deadline_ms() == 1000
    assert coordinator.handle(Ticked(999)) == ()
    assert coordinator.handle(Ticked(1000)) == (trigger(1),)
    assert coordinator.pending == (1,)
    assert ack(coordinator, 1, 1100) == (PublishManifest(1),)
    assert coordinator.completed == ()
    assert coordinator.handle(ManifestPublished(1, 1150)) == (announce(1),)
    assert (coordinator.completed, coordinator.pending) == ((1,), ())
    assert coordinator.handle(Ticked(2000)) == (trigger(2),)


def test_next_one_waits_for_the_pause_after_the_last_ended(start, ack):
    # |1000 trigger · 1900 complete · pause 500 → 2400|
    coordinator = start(min_pause_ms=500)
    coordinator.handle(Ticked(1000))
    ack(coordinator, 1, 1900)
    coordinator.handle(ManifestPublished(1, 1900))
    assert coordinator.next_deadline_ms() == 2400
    assert coordinator.handle(Ticked(2399)) == ()
    assert coordinator.handle(Ticked(2400)) == (trigger(2),)


def test_overdue_checkpoint_begins_as_soon_as_the_slot_is_free(start, ack):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    assert coordinator.handle(Ticked(2500)) == ()
    ack(coordinator, 1, 2600)
    assert coordinator.handle(ManifestPublished(1, 2700)) == (announce(1), trigger(2))
    assert coordinator.next_deadline_ms() == 2700 + 5000


def test_late_one_times_out_naming_who_has_not_acked(start, subtasks):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    coordinator.handle(SubtaskAcked(1, 1, subtasks(2)[0], 1500))
    abort, retrigger = coordinator.handle(Ticked(6000))
    assert abort.checkpoint_id == 1
    assert "timed out after 5000 ms: 1 of 2 subtasks had not acknowledged: task[1]" in abort.reason
    assert retrigger == trigger(2)
    # Its late ack is ignored.
    assert coordinator.handle(SubtaskAcked(1, 1, subtasks(2)[1], 6001)) == ()
    assert coordinator.ignored == 1


def test_several_in_flight_complete_in_order_and_the_older_one_is_aborted(start, ack):
    coordinator = start(max_concurrent=2)
    coordinator.handle(Ticked(1000))
    assert coordinator.handle(Ticked(2000)) == (trigger(2),)
    assert coordinator.handle(Ticked(3000)) == ()
    assert ack(coordinator, 2, 3100) == (PublishManifest(2),)
    assert coordinator.handle(ManifestPublished(2, 3200)) == (
        AbortCheckpoint(1, "checkpoint 2 completed first"),
        announce(2),
        trigger(3),
    )
    assert coordinator.completed == (2,)


def test_manifest_that_a_newer_checkpoint_overtook_is_discarded_when_it_lands(start, ack):
    coordinator = start(max_concurrent=2)
    coordinator.handle(Ticked(1000))
    coordinator.handle(Ticked(2000))
    ack(coordinator, 1, 2100)
    ack(coordinator, 2, 2200)
    coordinator.handle(ManifestPublished(2, 2300))
    assert coordinator.handle(ManifestPublished(1, 2400)) == (DiscardCheckpoint(1),)
    assert coordinator.handle(ManifestPublished(1, 2400)) == ()
    assert coordinator.completed == (2,)


def test_manifest_that_lands_after_the_attempt_ended_counts_as_complete(start, ack, subtasks):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    ack(coordinator, 1, 1100)
    assert coordinator.handle(AttemptEnded(1150)) == (AbortCheckpoint(1, "the attempt ended"),)
    assert coordinator.handle(ManifestPublished(1, 1200)) == ()
    assert coordinator.completed == (1,)


def test_manifest_that_lands_in_the_next_attempt_is_discarded(start, ack, subtasks):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    ack(coordinator, 1, 1100)
    coordinator.handle(AttemptEnded(1150))
    coordinator.handle(AttemptStarted(2, frozenset(subtasks(2)), 1160))
    assert coordinator.handle(ManifestPublished(1, 1200)) == (DiscardCheckpoint(1),)
    assert coordinator.completed == ()


def test_remains_of_a_manifest_that_failed_after_its_checkpoint_was_aborted_are_discarded(start, ack):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    ack(coordinator, 1, 1100)
    coordinator.handle(AttemptEnded(1150))
    assert coordinator.handle(ManifestFailed(1, "gone", 1200)) == (DiscardCheckpoint(1),)


def test_only_the_newest_are_retained(start, ack):
    coordinator = start(retained=2)
    for n in range(1, 5):
        coordinator.handle(Ticked(1000 * n))
        ack(coordinator, n, 1000 * n)
        discarded = coordinator.handle(ManifestPublished(n, 1000 * n))[1:]
        assert discarded == ((DiscardCheckpoint(n - 2),) if n > 2 else ())
    assert coordinator.completed == (3, 4)


def test_savepoint_ignores_interval_and_pause_and_is_never_discarded(start, ack):
    coordinator = start(interval_ms=None, retained=1, min_pause_ms=10_000)
    for n in range(1, 4):
        assert coordinator.handle(SavepointRequested(n)) == (trigger(n, savepoint=True),)
        ack(coordinator, n, n)
        assert coordinator.handle(ManifestPublished(n, n)) == (announce(n),)
    assert coordinator.completed == (1, 2, 3)


def test_nothing_overtakes_a_savepoint_and_requests_made_meanwhile_share_the_next(start, ack):
    coordinator = start(max_concurrent=3)
    coordinator.handle(SavepointRequested(10))
    assert coordinator.handle(SavepointRequested(20)) == ()
    assert coordinator.handle(SavepointRequested(30)) == ()
    assert coordinator.handle(Ticked(1500)) == ()
    ack(coordinator, 1, 1600)
    assert coordinator.handle(ManifestPublished(1, 1600)) == (announce(1), trigger(2, savepoint=True))


def test_failed_savepoint_does_not_count_against_the_job(start, subtasks):
    coordinator = start(failures_tolerated=0)
    coordinator.handle(SavepointRequested(0))
    (abort,) = coordinator.handle(SubtaskDeclined(1, 1, subtasks(2)[0], "disk full", 10))
    assert abort == AbortCheckpoint(1, "task[0] declined: disk full")


def test_final_checkpoint_waits_for_the_running_one_and_ends_the_periodic_ones(start, ack):
    coordinator = start(min_pause_ms=10_000)
    coordinator.handle(Ticked(1000))
    assert coordinator.handle(FinalRequested(1100)) == ()
    ack(coordinator, 1, 1200)
    assert coordinator.handle(ManifestPublished(1, 1200)) == (announce(1), trigger(2, final=True))
    ack(coordinator, 2, 1300)
    assert coordinator.handle(ManifestPublished(2, 1300)) == (announce(2),)
    assert coordinator.handle(FinalRequested(1400)) == ()
    assert coordinator.next_deadline_ms() is None
    assert coordinator.handle(Ticked(100_000)) == ()


def test_final_checkpoint_is_taken_even_without_an_interval(start):
    assert start(interval_ms=None).handle(FinalRequested(5)) == (trigger(1, final=True),)


def test_final_checkpoint_that_fails_is_tried_again_after_growing_delays(start, subtasks):
    coordinator = start(failures_tolerated=2)
    coordinator.handle(FinalRequested(0))
    decline = [SubtaskDeclined(1, n, subtasks(2)[0], "no", 0) for n in range(4)]
    assert len(coordinator.handle(decline[1])) == 1
    assert coordinator.next_deadline_ms() == 100
    assert coordinator.handle(Ticked(99)) == ()
    assert coordinator.handle(Ticked(100)) == (trigger(2, final=True),)
    coordinator.handle(decline[2])
    assert coordinator.next_deadline_ms() == 200
    assert coordinator.handle(Ticked(200)) == (trigger(3, final=True),)
    _, fail = coordinator.handle(decline[3])
    assert isinstance(fail, FailAttempt)
    assert coordinator.handle(Ticked(10_000)) == ()


def test_failures_in_a_row_beyond_what_is_tolerated_fail_the_attempt_once(start, ack, subtasks):
    coordinator = start(failures_tolerated=1)
    coordinator.handle(Ticked(1000))
    coordinator.handle(SubtaskDeclined(1, 1, subtasks(2)[0], "s3 is away", 1100))
    coordinator.handle(Ticked(2000))
    ack(coordinator, 2, 2100)
    assert len(coordinator.handle(ManifestFailed(2, "503", 2200))) == 2
    assert coordinator.handle(Ticked(50_000)) == ()
    assert coordinator.handle(FinalRequested(50_000)) == ()
    coordinator.handle(AttemptEnded(50_000))
    coordinator.handle(AttemptStarted(2, frozenset(subtasks(2)), 51_000))
    assert coordinator.handle(Ticked(52_000)) == (trigger(3),)


@pytest.mark.parametrize(
    ("kinds", "storage"),
    [
        (["declined", "manifest"], True),
        (["snapshot", "declined"], False),
        (["declined", "snapshot"], False),
        (["declined", "late"], False),
    ],
)
def test_storage_is_the_cause_only_where_it_was_that_of_all_failures(start, ack, subtasks, kinds, storage):
    coordinator = start(failures_tolerated=1)
    for n, kind in enumerate(kinds, 1):
        coordinator.handle(Ticked(1000 * n))
        now_ms = 1000 * n + 100
        if kind == "manifest":
            ack(coordinator, n, now_ms)
            commands = coordinator.handle(ManifestFailed(n, "503", now_ms, storage=True))
        elif kind == "late":
            commands = coordinator.handle(Ticked(100_000))
        else:
            decline = SubtaskDeclined(1, n, subtasks(2)[0], "no", now_ms, storage=kind == "declined")
            commands = coordinator.handle(decline)
    assert [command.storage for command in commands if isinstance(command, FailAttempt)] == [storage]


def test_completion_forgets_earlier_failures(start, ack, subtasks):
    coordinator = start(failures_tolerated=1)
    for n in range(1, 7):
        coordinator.handle(Ticked(1000 * n))
        if n % 2:
            assert len(coordinator.handle(SubtaskDeclined(1, n, subtasks(2)[0], "no", 1000 * n))) == 1
        else:
            ack(coordinator, n, 1000 * n)
            coordinator.handle(ManifestPublished(n, 1000 * n))


def test_answers_of_another_attempt_or_repeated_ones_are_ignored_and_counted(start, subtasks):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    a, b = subtasks(2)
    coordinator.handle(SubtaskAcked(1, 1, a, 1001))
    for event in (
        SubtaskAcked(0, 1, b, 1001),
        SubtaskAcked(1, 7, b, 1001),
        SubtaskAcked(1, 1, a, 1001),
        SubtaskDeclined(1, 1, a, "after its ack", 1001),
        SubtaskDeclined(0, 1, b, "of attempt 0", 1001),
    ):
        assert coordinator.handle(event) == ()
    assert coordinator.ignored == 5
    assert coordinator.waiting_for(1) == (b,)


def test_ids_go_on_over_attempts_and_restores(start, subtasks):
    coordinator = start()
    coordinator.handle(Ticked(1000))
    coordinator.handle(AttemptEnded(1100))
    assert coordinator.handle(AttemptEnded(1100)) == ()
    coordinator.handle(Restored(9))
    coordinator.handle(AttemptStarted(2, frozenset(subtasks(2)), 1200))
    assert coordinator.handle(Ticked(2200)) == (trigger(10),)
    assert coordinator.completed == (9,)


def test_nothing_is_triggered_before_every_subtask_is_through_with_what_was_in_flight(subtasks):
    """Simulation seed 85621: one that still had such rows sent no barrier, its receiver, which had the barriers of
    others, recorded until it took no more rows, and both waited for each other until the checkpoint timed out."""
    a, b = subtasks(2)
    coordinator = CheckpointCoordinator(config(max_concurrent=2), job_id="job")
    assert coordinator.handle(AttemptStarted(1, frozenset((a, b)), 0, frozenset((a, b)))) == ()
    assert coordinator.handle(SavepointRequested(10)) == ()
    assert coordinator.handle(Ticked(1500)) == ()
    assert coordinator.next_deadline_ms() is None
    assert coordinator.handle(SubtaskCaughtUp(0, b, 1600)) == ()
    assert coordinator.handle(SubtaskCaughtUp(1, a, 1600)) == ()
    assert coordinator.handle(SubtaskCaughtUp(1, a, 1600)) == ()
    assert coordinator.handle(SubtaskCaughtUp(1, b, 1700)) == (
        TriggerSources(1, final=False, savepoint=True),
    )
    assert coordinator.ignored == 1


def test_one_that_was_catching_up_when_the_attempt_ended_holds_nothing_up_in_the_next(subtasks):
    a, b = subtasks(2)
    coordinator = CheckpointCoordinator(config(), job_id="job")
    coordinator.handle(AttemptStarted(1, frozenset((a, b)), 0, frozenset((a,))))
    coordinator.handle(AttemptEnded(100))
    coordinator.handle(AttemptStarted(2, frozenset((a, b)), 200))
    assert coordinator.handle(Ticked(1200)) == (trigger(1),)


def test_falling_back_forgets_the_newer_checkpoints(start, ack):
    coordinator = start()
    for n in (1, 2, 3):
        coordinator.handle(Ticked(1000 * n))
        ack(coordinator, n, 1000 * n)
        coordinator.handle(ManifestPublished(n, 1000 * n))
    coordinator.handle(AttemptEnded(3500))
    coordinator.handle(Restored(2))
    assert coordinator.completed == (1, 2)


def test_illegal_events_are_refused(start, subtasks, refused):
    coordinator = start()
    refused(coordinator, AttemptStarted(2, frozenset(subtasks(2)), 0), "one at a time")
    refused(coordinator, Restored(1), "while attempt 1 runs")
    coordinator.handle(Ticked(1000))
    refused(coordinator, ManifestPublished(1, 1000), "invariant 3")
    refused(coordinator, ManifestFailed(1, "no", 1000), "invariant 3")
    refused(coordinator, SubtaskAcked(1, 1, subtasks(3)[2], 1000), "no such subtask")
    coordinator.handle(AttemptEnded(1000))
    refused(coordinator, FinalRequested(1000), "no attempt")
    refused(coordinator, AttemptStarted(1, frozenset(subtasks(2)), 0), "attempts grow")
    refused(coordinator, AttemptStarted(2, frozenset(), 0), "have subtasks")
    with pytest.raises(ProtocolViolation):
        CheckpointCoordinator(config(retained=0))


class World:
    """A job under a coordinator: whatever happens, in any order. Its books are kept apart from the machine's."""

    def __init__(self, members, order, cfg) -> None:
        self.members, self.order, self.cfg = members, order, cfg
        self.coordinator = CheckpointCoordinator(cfg, job_id="job")
        self.now_ms, self.attempt, self.running = 0, 0, False
        self.last_id = self.last_permit = 0
        self.pending: dict[int, tuple[int, bool, bool]] = {}  # id → deadline, final, savepoint
        self.acked: dict[int, set] = {}
        self.publishing: set[int] = set()
        self.wanted_by_user: set[int] = set()
        self.savepoints: set[int] = set()
        self.kept: list[int] = []
        self.catching_up: set = set()
        self.failing = self.final_wanted = self.final_done = False

    def tell(self, event) -> None:
        for command in self.coordinator.handle(event):
            self.obey(command)
        assert list(self.coordinator.pending) == sorted(self.pending)
        # Savepoints older than all that is retained are the user's alone, and no longer listed.
        oldest = min(self.own(), default=0)
        self.kept = [n for n in self.kept if n >= oldest or len(self.own()) < self.cfg.retained]
        assert list(self.coordinator.completed) == self.kept
        assert len(self.own()) <= self.cfg.retained  # 6
        assert self.running or not self.pending  # 5
        assert len(self.pending) <= self.cfg.max_concurrent  # 2
        deadline = self.coordinator.next_deadline_ms()
        if isinstance(event, Ticked):
            assert deadline is None or deadline > self.now_ms
            assert all(ends > self.now_ms for ends, _, _ in self.pending.values())
        assert deadline is None or self.running

    def obey(self, command) -> None:
        match command:
            case TriggerSources(n, final, savepoint):
                assert n > self.last_id  # 1
                assert self.running
                assert not self.failing  # 8
                assert not self.catching_up  # 9
                assert not any(f or s for _, f, s in self.pending.values())  # 2
                assert not (self.final_wanted and not final and not savepoint)
                assert not (final and (self.pending or self.final_done))
                self.last_id = n
                self.wanted_by_user |= {n} if savepoint else set()
                self.pending[n] = (self.now_ms + self.cfg.timeout_ms, final, savepoint)
                self.acked[n] = set()
            case PublishManifest(n):
                assert self.acked[n] == set(self.members)  # 3
                assert n in self.pending
                self.publishing.add(n)
            case AnnounceCompleted(n, permit):
                assert permit == CommitPermit("job", self.attempt, n)
                assert n > self.last_permit  # 4
                assert min(self.pending) == n
                self.last_permit = n
                self.final_done |= self.pending[n][1]
                self.keep(n, self.pending.pop(n)[2])
            case AbortCheckpoint(n, reason):
                assert reason
                del self.pending[n]
            case DiscardCheckpoint(n):
                assert n not in self.savepoints or n not in self.kept  # 6
                if n in self.kept:
                    assert len([k for k in self.own() if k > n]) >= self.cfg.retained
                    self.kept.remove(n)
            case FailAttempt(reason):
                assert reason
                assert not self.failing
                self.failing = True

    def own(self) -> list[int]:
        return [n for n in self.kept if n not in self.savepoints]

    def keep(self, n, savepoint) -> None:
        self.kept.append(n)
        self.kept.sort()
        if savepoint:
            self.savepoints.add(n)

    def manifest_landed(self, n, published) -> None:
        self.publishing.discard(n)
        if published and n not in self.pending and not self.running:
            self.keep(n, n in self.wanted_by_user)
        now_ms = self.now_ms
        self.tell(ManifestPublished(n, now_ms) if published else ManifestFailed(n, "503", now_ms))

    def start(self) -> None:
        self.failing = False
        self.final_wanted = self.final_done = False
        if self.kept and self.order.random() < 0.5:
            restored = self.order.choice(self.kept)
            self.kept = [n for n in self.kept if n <= restored]
            self.tell(Restored(restored))
        self.attempt += 1
        self.running = True
        self.catching_up = {who for who in self.members if self.order.random() < 0.3}
        behind = frozenset(self.catching_up)
        self.tell(AttemptStarted(self.attempt, frozenset(self.members), self.now_ms, behind))

    def end(self) -> None:
        self.running = False
        self.tell(AttemptEnded(self.now_ms))

    def any_event(self) -> None:
        order = self.order
        kind = order.choice("ttttaaaaaaaaaadpppffsexxcc")
        target = order.randint(max(1, self.last_id - 2), self.last_id + 1)
        who = order.choice(self.members)
        if kind == "t":
            self.now_ms += order.choice([0, 1, 50, 200, 1000])
            self.tell(Ticked(self.now_ms))
        elif kind == "a":
            attempt = order.choice([self.attempt, self.attempt, self.attempt, max(0, self.attempt - 1)])
            if attempt == self.attempt and target in self.pending:
                self.acked[target].add(who)
            self.tell(SubtaskAcked(attempt, target, who, self.now_ms))
        elif kind == "c" and self.running:
            self.caught_up(who)
        elif kind == "d" and order.random() < 0.5:
            self.tell(SubtaskDeclined(self.attempt, target, who, "no", self.now_ms))
        elif kind == "p" and self.publishing:
            self.manifest_landed(order.choice(sorted(self.publishing)), published=order.random() < 0.8)
        elif kind == "f" and self.running and order.random() < 0.2:
            self.final_wanted = True
            self.tell(FinalRequested(self.now_ms))
        elif kind == "s" and order.random() < 0.3:
            self.tell(SavepointRequested(self.now_ms))
        elif kind == "e" and self.running and order.random() < 0.4:
            self.end()
        elif kind == "x" and not self.running:
            self.start()

    def caught_up(self, who) -> None:
        self.catching_up.discard(who)
        self.tell(SubtaskCaughtUp(self.attempt, who, self.now_ms))

    def finish(self) -> None:
        """From here on all goes well: the job must come to its final checkpoint."""
        if not self.running or self.failing:
            self.end()
            for n in sorted(self.publishing):
                self.manifest_landed(n, published=True)
            self.start()
        for who in self.members:
            self.caught_up(who)
        self.final_wanted = True
        self.tell(FinalRequested(self.now_ms))
        for _ in range(20):
            for n in sorted(self.pending):
                for who in self.members:
                    if n in self.pending:
                        self.acked[n].add(who)
                        self.tell(SubtaskAcked(self.attempt, n, who, self.now_ms))
            for n in sorted(self.publishing):
                self.manifest_landed(n, published=True)
            if self.final_done:
                return
            if not self.pending:
                deadline = self.coordinator.next_deadline_ms()
                assert deadline is not None
                self.now_ms = max(self.now_ms, deadline)
                self.tell(Ticked(self.now_ms))
        raise AssertionError("no final checkpoint")


CONFIGS = st.builds(
    CoordinatorConfig,
    interval_ms=st.sampled_from([None, 1, 100, 1000]),
    timeout_ms=st.sampled_from([1, 300, 5000]),
    min_pause_ms=st.sampled_from([0, 30, 3000]),
    max_concurrent=st.integers(1, 3),
    retained=st.integers(1, 3),
    failures_tolerated=st.integers(0, 3),
)


@settings(deadline=None)
@given(CONFIGS, st.integers(1, 3), st.integers(0, 2**32))
def test_whatever_happens_in_whatever_order_the_invariants_hold_and_the_job_can_finish(
    subtasks, cfg, width, seed
):
    world = World(subtasks(width), Random(seed), cfg)
    for _ in range(150):
        world.any_event()
    world.finish()
