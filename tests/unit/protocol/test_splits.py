from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.split_watermarks import (
    CapMoved,
    RowsRead,
    SplitFinished,
    SplitOpened,
    SplitWatermarks,
)
from rayflow.protocol.splits import (
    AssignSplit,
    MoveCap,
    NoMoreSplits,
    SplitAssigner,
    SplitInfo,
    SplitRequested,
    SplitsDiscovered,
    SplitsRestored,
    SubtasksReset,
)
from rayflow.protocol.watermark_merging import (
    ChannelEnded,
    WatermarkArrived,
    WatermarkMerger,
)
from rayflow.protocol.watermarks import (
    AdvanceWatermark,
)


def infos(*times):
    return tuple(SplitInfo(f"s{time}", time) for time in times)


def test_splits_are_dealt_out_by_time_and_the_cap_stays_below_what_is_in_store(subtasks):
    a, b = subtasks(2)
    assigner = SplitAssigner((a, b), discovery_ends=True)
    assert assigner.handle(SplitsDiscovered(infos(30, 10, 20), last=True)) == ()
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "s10", 19),)
    assert assigner.handle(SplitRequested(b)) == (AssignSplit(b, "s20", 29), MoveCap(a, 29))
    assert assigner.handle(SplitRequested(a)) == (
        AssignSplit(a, "s30", WATERMARK_MAX),
        MoveCap(b, WATERMARK_MAX),
    )
    assert assigner.handle(SplitRequested(b)) == (NoMoreSplits(b),)
    assert assigner.handle(SplitRequested(b)) == (NoMoreSplits(b),)


def test_split_of_unknown_time_goes_first_and_the_cap_is_unknown_until_then(subtasks):
    a, b = subtasks(2)
    assigner = SplitAssigner((a, b), discovery_ends=True)
    splits = (SplitInfo("x", 5), SplitInfo("z", None, "2"), SplitInfo("y", None, "1"))
    assigner.handle(SplitsDiscovered(splits, last=True))
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "y", WATERMARK_MIN),)
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "z", 4),)


def test_subtasks_that_ask_before_discovery_wait_and_get_splits_in_turn(subtasks):
    a, b, c = subtasks(3)
    assigner = SplitAssigner((a, b, c), discovery_ends=True)
    for subtask in (b, a, c, b):
        assert assigner.handle(SplitRequested(subtask)) == ()
    assert assigner.handle(SplitsDiscovered(infos(10, 20), last=True)) == (
        AssignSplit(b, "s10", WATERMARK_MAX),
        AssignSplit(a, "s20", WATERMARK_MAX),
        NoMoreSplits(c),
    )


def test_endless_discovery_makes_subtasks_wait_and_promises_nothing_about_new_splits(subtasks):
    a, b = subtasks(2)
    assigner = SplitAssigner((a, b), discovery_ends=False)
    assigner.handle(SplitsDiscovered(infos(10), last=False))
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "s10", WATERMARK_MAX),)
    assert assigner.handle(SplitRequested(b)) == (MoveCap(b, WATERMARK_MAX),)
    assert assigner.handle(SplitsDiscovered(infos(10, 5, 7), last=False)) == (
        AssignSplit(b, "s5", 6),
        MoveCap(a, 6),
    )


def test_restored_splits_in_progress_go_first_and_finished_ones_never(subtasks):
    (a,) = subtasks(1)
    assigner = SplitAssigner((a,), discovery_ends=True)
    assigner.handle(SplitsRestored(("s10",), infos(30)))
    assigner.handle(SplitsDiscovered(infos(10, 20, 30), last=True))
    assert assigner.in_store == ("s30", "s20")
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "s30", 19),)
    assert assigner.handle(SplitRequested(a)) == (AssignSplit(a, "s20", WATERMARK_MAX),)
    assert assigner.handle(SplitRequested(a)) == (NoMoreSplits(a),)


def test_new_attempt_deals_everything_out_again_save_what_its_checkpoint_finished(subtasks):
    a, b = subtasks(2)
    assigner = SplitAssigner((a, b), discovery_ends=True)
    assigner.handle(SplitsDiscovered(infos(10, 20, 30), last=True))
    for subtask in (a, b, a, b):
        assigner.handle(SplitRequested(subtask))
    assert assigner.handle(SubtasksReset()) == ()
    assigner.handle(SplitsRestored(("s10",), infos(20)))
    assert assigner.handle(SplitRequested(b)) == (AssignSplit(b, "s20", 29),)
    assert assigner.in_store == ("s30",)


def test_illegal_events_are_refused(subtasks, refused):
    a, b = subtasks(2)
    assigner = SplitAssigner((a,), discovery_ends=True)
    refused(assigner, SplitRequested(b), "does not read")
    assigner.handle(SplitsDiscovered(infos(10), last=True))
    refused(assigner, SplitsDiscovered(infos(20), last=True), "invariant 5")
    assigner.handle(SplitRequested(a))
    refused(assigner, SplitsRestored((), ()), "invariant 1")
    refused(SplitAssigner((a,), discovery_ends=False), SplitsDiscovered((), last=True), "invariant 5")


@given(st.integers(0, 2**32), st.booleans())
def test_every_split_is_assigned_once_an_attempt_and_the_cap_told_holds(subtasks, seed, ends):
    order = Random(seed)
    readers = subtasks(order.randint(1, 3))
    assigner = SplitAssigner(readers, ends)
    unknown = [SplitInfo(f"s{i}", order.choice([None, i, i])) for i in range(order.randint(0, 8))]
    order.shuffle(unknown)
    known: dict[str, SplitInfo] = {}
    given_out: set[str] = set()
    finished: set[str] = set()
    caps: dict = {}
    last_told = False
    for _ in range(60):
        kind = order.choice("drrrrrx")
        if kind == "d" and not last_told:
            found = tuple(unknown.pop() for _ in range(order.randint(0, len(unknown))))
            last_told = ends and not unknown
            known.update((s.id, s) for s in found)
            commands = assigner.handle(SplitsDiscovered(found, last_told))
        elif kind == "r":
            subtask = order.choice(readers)
            caps.setdefault(subtask, WATERMARK_MIN)
            commands = assigner.handle(SplitRequested(subtask))
        elif kind == "x":
            commands = assigner.handle(SubtasksReset())
            chosen = order.sample(sorted(given_out), order.randint(0, len(given_out)))
            cut = order.randint(0, len(chosen))
            finished, given_out = set(chosen[:cut]), set()
            caps.clear()
            commands += assigner.handle(
                SplitsRestored(tuple(finished), tuple(known[s] for s in chosen[cut:]))
            )
        else:
            continue
        for command in commands:
            match command:
                case AssignSplit(subtask, split_id, cap):
                    assert split_id not in given_out | finished
                    given_out.add(split_id)
                    caps[subtask] = cap
                case MoveCap(subtask, cap):
                    assert caps[subtask] != cap
                    caps[subtask] = cap
                case NoMoreSplits(subtask):
                    assert last_told
                    assert given_out | finished >= set(known)
                    caps.pop(subtask)
        store = set(known) - given_out - finished
        assert set(assigner.in_store) == store
        times = [known[s].min_time for s in store]
        for cap in caps.values():
            assert all(time is not None and cap < time for time in times) or cap == WATERMARK_MIN


class Job:
    """A source's subtasks reading sorted files, their watermarks merged: nothing may come late."""

    def __init__(self, readers, inputs, files, order) -> None:
        self.files, self.order = files, order
        self.channel = dict(zip(readers, inputs, strict=True))
        self.assigner = SplitAssigner(readers, discovery_ends=True)
        self.clocks = {r: SplitWatermarks(delay=0, unit=1) for r in readers}
        self.merger = WatermarkMerger(inputs)
        self.inbox = {r: [] for r in readers}
        self.rows = {r: [] for r in readers}
        self.asked: set = set()
        self.ended: set = set()
        self.read: list[int] = []

    def send(self, commands) -> None:
        for command in commands:
            self.inbox[command.subtask].append(command)

    def pass_on(self, reader, commands) -> None:
        for command in commands:
            if isinstance(command, AdvanceWatermark):
                self.merger.handle(WatermarkArrived(self.channel[reader], command.watermark))

    def step(self, reader) -> None:
        clock = self.clocks[reader]
        if self.inbox[reader] and self.order.random() < 0.5:
            self.obey(reader, clock, self.inbox[reader].pop(0))
        elif self.rows[reader]:
            split_id, rows = self.rows[reader][0]
            if not rows:
                self.rows[reader].pop(0)
                self.pass_on(reader, clock.handle(SplitFinished(split_id)))
                return
            row = rows.pop(0)
            assert row > self.merger.watermark, "late, although no row is out of order within a split"
            self.read.append(row)
            self.pass_on(reader, clock.handle(RowsRead(split_id, row, 0)))
        elif reader not in self.asked:
            self.asked.add(reader)
            self.send(self.assigner.handle(SplitRequested(reader)))

    def obey(self, reader, clock, command) -> None:
        match command:
            case AssignSplit(_, split_id, cap):
                self.asked.discard(reader)
                self.rows[reader].append((split_id, list(self.files[split_id])))
                self.pass_on(reader, clock.handle(SplitOpened(split_id)))
                self.pass_on(reader, clock.handle(CapMoved(cap)))
            case MoveCap(_, cap):
                self.pass_on(reader, clock.handle(CapMoved(cap)))
            case NoMoreSplits():
                self.ended.add(reader)
                self.merger.handle(ChannelEnded(self.channel[reader]))


@pytest.mark.parametrize("known_times", [True, False])
@given(seed=st.integers(0, 2**32))
def test_no_watermark_passes_a_split_that_is_not_yet_read(subtasks, channels, known_times, seed):
    order = Random(seed)
    width = order.randint(1, 3)
    files = {
        f"f{i}": sorted(order.choices(range(100), k=order.randint(1, 6))) for i in range(order.randint(1, 8))
    }
    job = Job(subtasks(width), channels(width), files, order)
    splits = tuple(
        SplitInfo(f, rows[0] if known_times or order.random() < 0.5 else None) for f, rows in files.items()
    )
    job.send(job.assigner.handle(SplitsDiscovered(splits, last=True)))
    while len(job.ended) < width:
        job.step(order.choice([r for r in job.inbox if r not in job.ended]))
    assert sorted(job.read) == sorted(row for rows in files.values() for row in rows)
    assert job.merger.watermark == WATERMARK_MAX
