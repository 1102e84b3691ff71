from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.split_watermarks import (
    CapMoved,
    OthersMoved,
    ReadingResumed,
    RowsRead,
    SplitFinished,
    SplitOpened,
    SplitWatermarks,
    Ticked,
)
from rayflow.protocol.watermark_merging import (
    ChannelEnded,
    ChannelIdled,
    ChannelResumed,
    WatermarkArrived,
    WatermarkMerger,
)
from rayflow.protocol.watermarks import (
    AdvanceWatermark,
    GoIdle,
)

MS = 1_000_000

# ------------------------------------------------------------------------------------------------ merger


def test_merged_watermark_is_the_smallest_of_the_channels(channels):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    assert merger.handle(WatermarkArrived(a, 10)) == ()
    assert merger.handle(WatermarkArrived(b, 7)) == (AdvanceWatermark(7),)
    assert merger.handle(WatermarkArrived(b, 30)) == (AdvanceWatermark(10),)
    assert merger.watermark == 10


def test_idle_channel_does_not_hold_back_and_never_takes_back(channels):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    merger.handle(WatermarkArrived(a, 10))
    assert merger.handle(ChannelIdled(b)) == (AdvanceWatermark(10),)
    assert merger.is_idle(b)
    assert merger.handle(WatermarkArrived(b, 5)) == ()
    assert not merger.is_idle(b)
    assert merger.handle(WatermarkArrived(a, 20)) == ()
    assert merger.handle(WatermarkArrived(b, 12)) == (AdvanceWatermark(12),)


def test_rows_on_an_idle_channel_make_it_count_again(channels):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    merger.handle(ChannelIdled(b))
    assert merger.handle(ChannelResumed(b)) == ()
    assert merger.handle(WatermarkArrived(a, 10)) == ()


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_order_in_which_channels_fall_idle_does_not_matter(channels, order):
    inputs = channels(2)
    merger = WatermarkMerger(inputs)
    merger.handle(WatermarkArrived(inputs[0], 10))
    merger.handle(WatermarkArrived(inputs[1], 50))
    commands = [c for i in order for c in merger.handle(ChannelIdled(inputs[i]))]
    assert commands == [AdvanceWatermark(50), GoIdle()]


def test_idleness_is_told_once_and_again_after_something_came(channels):
    (a,) = channels(1)
    merger = WatermarkMerger((a,))
    assert merger.handle(ChannelIdled(a)) == (GoIdle(),)
    assert merger.handle(ChannelIdled(a)) == ()
    merger.handle(ChannelResumed(a))
    assert merger.handle(ChannelIdled(a)) == (GoIdle(),)


def test_end_of_one_channel_lets_the_others_go_on_and_the_end_of_all_is_the_end_of_time(channels):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    merger.handle(WatermarkArrived(b, 10))
    assert merger.handle(ChannelEnded(a)) == (AdvanceWatermark(10),)
    assert merger.handle(ChannelIdled(b)) == (GoIdle(),)
    assert merger.handle(ChannelEnded(b)) == (AdvanceWatermark(WATERMARK_MAX),)


def test_watermarks_of_a_channel_never_go_back_or_come_after_its_end(channels, refused):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    merger.handle(WatermarkArrived(a, 10))
    refused(merger, WatermarkArrived(a, 9), "invariant M1")
    merger.handle(ChannelEnded(a))
    for event in (WatermarkArrived(a, 11), ChannelIdled(a), ChannelResumed(a), ChannelEnded(a)):
        refused(merger, event, "invariant M1")


@pytest.mark.parametrize("idle_first", [True, False])
def test_the_end_of_one_channel_is_not_the_end_of_time_for_an_idle_one(channels, idle_first):
    a, b = channels(2)
    merger = WatermarkMerger((a, b))
    merger.handle(WatermarkArrived(a, 10))
    events = [ChannelIdled(b), WatermarkArrived(a, WATERMARK_MAX), ChannelEnded(a)]
    commands = [
        c for event in (events if idle_first else events[1:] + events[:1]) for c in merger.handle(event)
    ]
    assert commands == [AdvanceWatermark(10), GoIdle()]
    merger.handle(ChannelResumed(b))
    assert merger.handle(WatermarkArrived(b, 12)) == (AdvanceWatermark(12),)
    assert merger.handle(ChannelEnded(b)) == (AdvanceWatermark(WATERMARK_MAX),)


@given(
    st.integers(1, 4), st.lists(st.tuples(st.integers(0, 3), st.sampled_from("wwwwirex"), st.integers(0, 5)))
)
def test_merger_equals_a_model_that_looks_at_all_channels_every_time(channels, width, steps):
    inputs = channels(width)
    merger = WatermarkMerger(inputs)
    times, idle, over, ended = dict.fromkeys(inputs, WATERMARK_MIN), set(), set(), set()
    watermark, quiet = WATERMARK_MIN, False
    for index, kind, amount in steps:
        c = inputs[index % width]
        if c in ended:
            continue
        if kind == "x":
            over.add(c)
            idle.discard(c)
            commands = merger.handle(WatermarkArrived(c, WATERMARK_MAX))
        elif c in over and kind != "e":
            continue
        elif kind == "w":
            times[c] = max(times[c], 0) + amount
            idle.discard(c)
            commands = merger.handle(WatermarkArrived(c, times[c]))
        elif kind == "i":
            idle.add(c)
            commands = merger.handle(ChannelIdled(c))
        elif kind == "r":
            idle.discard(c)
            commands = merger.handle(ChannelResumed(c))
        else:
            ended.add(c)
            idle.discard(c)
            commands = merger.handle(ChannelEnded(c))
        active = [times[x] for x in inputs if x not in idle | over | ended]
        bound = min(active) if active else max(times.values()) if idle else WATERMARK_MAX
        expected = [AdvanceWatermark(bound)] if bound > watermark else []
        watermark = max(watermark, bound)
        was_quiet, quiet = quiet, not active and bool(idle)
        expected += [GoIdle()] if quiet and not was_quiet else []
        assert list(commands) == expected
        assert merger.watermark == watermark


# ------------------------------------------------------------------------------------------------ source


def source(**kwargs):
    machine = SplitWatermarks(delay=100, unit=1, **kwargs)
    machine.handle(CapMoved(WATERMARK_MAX))
    return machine


def test_watermark_is_the_largest_time_less_delay_and_one_unit():
    machine = source()
    assert machine.handle(SplitOpened("a")) == ()
    assert machine.handle(RowsRead("a", 1000, 0)) == (AdvanceWatermark(899),)
    assert machine.handle(RowsRead("a", 900, 0)) == ()
    assert machine.handle(RowsRead("a", None, 0)) == ()
    assert machine.watermark == 899


def test_slowest_open_split_holds_the_watermark_back():
    machine = source()
    machine.handle(SplitOpened("a"))
    machine.handle(SplitOpened("b"))
    assert machine.handle(RowsRead("a", 1000, 0)) == ()
    assert machine.handle(RowsRead("b", 500, 0)) == (AdvanceWatermark(399),)
    assert machine.handle(SplitFinished("b")) == (AdvanceWatermark(899),)


def test_watermark_never_passes_the_cap_and_follows_it_up():
    machine = SplitWatermarks(delay=100, unit=1)
    machine.handle(SplitOpened("a"))
    assert machine.handle(RowsRead("a", 1000, 0)) == ()
    assert machine.handle(CapMoved(600)) == (AdvanceWatermark(600),)
    assert machine.handle(CapMoved(WATERMARK_MAX)) == (AdvanceWatermark(899),)


def test_last_finished_split_leaves_the_watermark_at_the_largest_seen():
    machine = source()
    machine.handle(SplitOpened("a"))
    machine.handle(RowsRead("a", 1000, 0))
    assert machine.handle(SplitFinished("a")) == ()
    assert machine.handle(SplitOpened("b")) == ()
    assert machine.handle(RowsRead("b", 1001, 0)) == (AdvanceWatermark(900),)


def test_restored_source_goes_on_where_it_was():
    machine = source(watermark=899)
    assert machine.watermark == 899
    assert machine.handle(SplitOpened("a", max_time=900)) == ()
    assert machine.handle(RowsRead("a", 1000, 0)) == ()
    assert machine.handle(RowsRead("a", 1001, 0)) == (AdvanceWatermark(900),)


def test_idle_split_steps_aside_until_it_has_rows_again():
    machine = source(idle_after=50 * MS)
    machine.handle(SplitOpened("a"))
    machine.handle(SplitOpened("b"))
    machine.handle(RowsRead("a", 1000, now_ms=0))
    assert machine.handle(Ticked(10)) == ()  # b's time begins to run
    machine.handle(RowsRead("a", 1001, now_ms=40))
    assert machine.next_deadline_ms() == 60
    assert machine.handle(Ticked(60)) == (AdvanceWatermark(900),)
    assert machine.handle(RowsRead("b", 950, now_ms=61)) == ()
    assert machine.handle(RowsRead("a", 2000, now_ms=62)) == ()
    assert machine.handle(RowsRead("b", 1010, now_ms=63)) == (AdvanceWatermark(909),)


def test_source_goes_idle_once_when_all_its_splits_are_and_wakes_with_rows():
    machine = source(idle_after=50 * MS)
    machine.handle(SplitOpened("a"))
    machine.handle(RowsRead("a", 1000, now_ms=0))
    assert machine.handle(Ticked(50)) == (GoIdle(),)
    assert machine.next_deadline_ms() is None
    assert machine.handle(Ticked(90)) == ()
    machine.handle(RowsRead("a", 1000, now_ms=100))
    assert machine.handle(Ticked(150)) == (GoIdle(),)


def test_source_without_any_split_goes_idle_too():
    machine = source(idle_after=50 * MS)
    assert machine.handle(Ticked(10)) == ()
    assert machine.next_deadline_ms() == 60
    assert machine.handle(Ticked(60)) == (GoIdle(),)


def test_time_in_which_the_source_was_held_back_is_not_idleness():
    machine = source(idle_after=50 * MS)
    machine.handle(SplitOpened("a"))
    machine.handle(RowsRead("a", 1000, now_ms=0))
    machine.handle(ReadingResumed(500))
    assert machine.handle(Ticked(501)) == ()
    assert machine.handle(Ticked(550)) == (GoIdle(),)


def test_without_idle_after_time_changes_nothing():
    machine = source()
    machine.handle(SplitOpened("a"))
    assert machine.handle(Ticked(10**9)) == ()
    assert machine.next_deadline_ms() is None


def test_how_far_ahead_a_time_is_believed():
    machine = source(max_ahead=1000)
    machine.handle(SplitOpened("a"))
    assert machine.limit("a") is None
    assert machine.step == 899
    machine.handle(RowsRead("a", 1000, 0))
    assert machine.limit("a") == 1899
    assert source().step is None


def test_only_open_splits_are_read_and_each_is_opened_once(refused):
    machine = source()
    for event in (RowsRead("a", 1, 0), SplitFinished("a")):
        refused(machine, event, "invariant S2")
    machine.handle(SplitOpened("a"))
    refused(machine, SplitOpened("a"), "invariant S2")


SPLIT_STEPS = st.lists(
    st.tuples(st.sampled_from("oorrrrfct"), st.integers(0, 3), st.integers(0, 40), st.integers(0, 30))
)


@given(SPLIT_STEPS, st.sampled_from([None, 50]), st.integers(0, 5), st.sampled_from([WATERMARK_MIN, 12]))
def test_source_equals_a_model_that_looks_at_all_splits_every_time(steps, idle_ms, delay, restored):
    machine = SplitWatermarks(delay, 1, None if idle_ms is None else idle_ms * MS, watermark=restored)
    splits: dict[str, list] = {}  # id → [watermark, active since, idle]
    cap, highest, watermark, now_ms, idle = WATERMARK_MIN, restored, restored, 0, False
    for kind, index, time, pause_ms in steps:
        split_id = f"s{index}"
        now_ms += pause_ms
        if kind == "o" and split_id not in splits:
            commands = machine.handle(SplitOpened(split_id))
            splits[split_id] = [WATERMARK_MIN, None, False]
        elif kind == "r" and split_id in splits:
            commands = machine.handle(RowsRead(split_id, time, now_ms))
            splits[split_id] = [max(splits[split_id][0], time - delay - 1), now_ms, False]
            highest = max(highest, time - delay - 1)
        elif kind == "f" and split_id in splits:
            commands = machine.handle(SplitFinished(split_id))
            del splits[split_id]
        elif kind == "c":
            cap = time
            commands = machine.handle(CapMoved(cap))
        elif kind == "t":
            commands = machine.handle(Ticked(now_ms))
            for split in splits.values():
                split[1] = now_ms if split[1] is None and idle_ms else split[1]
                split[2] |= idle_ms is not None and now_ms - split[1] >= idle_ms
        else:
            continue
        active = [w for w, _, quiet in splits.values() if not quiet]
        bound = min(min(active, default=highest), cap)
        advanced = [c.watermark for c in commands if isinstance(c, AdvanceWatermark)]
        assert advanced == ([bound] if bound > watermark else [])
        watermark = max(watermark, bound)
        assert machine.watermark == watermark
        told_idle = GoIdle() in commands
        assert not told_idle or (kind == "t" and not active and not idle)
        idle = (idle or told_idle) and kind not in "or"


def test_a_split_too_far_ahead_of_the_slowest_one_is_not_to_be_read():
    machine = source(max_drift=50)
    for split in "abc":
        machine.handle(SplitOpened(split))
        assert machine.may_read(split), "nothing is known of it"
    machine.handle(RowsRead("a", 1000, 0))
    machine.handle(RowsRead("b", 1050, 0))
    assert machine.slowest == 899
    assert machine.may_read("b")
    machine.handle(RowsRead("b", 1051, 0))
    assert not machine.may_read("b")
    assert machine.may_read("a")
    machine.handle(RowsRead("a", 1001, 0))
    assert machine.may_read("b")


def test_splits_of_other_subtasks_count_and_their_absence_does_not():
    machine = source(max_drift=50)
    machine.handle(SplitOpened("a"))
    machine.handle(RowsRead("a", 1000, 0))
    machine.handle(OthersMoved(848))
    assert not machine.may_read("a")
    machine.handle(OthersMoved(849))
    assert machine.may_read("a")
    machine.handle(OthersMoved(0))
    machine.handle(OthersMoved(None))
    assert machine.may_read("a")


def test_a_split_that_waits_for_others_is_not_idle_and_an_idle_one_is_not_waited_for():
    machine = source(max_drift=50, idle_after=1000 * MS)
    machine.handle(SplitOpened("a"))
    machine.handle(SplitOpened("b"))
    machine.handle(RowsRead("a", 1000, 0))
    machine.handle(RowsRead("b", 2000, 0))
    machine.handle(Ticked(900))
    assert not machine.may_read("b")
    machine.handle(Ticked(1000))  # now a is idle
    assert machine.slowest == 1899
    assert machine.may_read("b")
    machine.handle(Ticked(1899))
    assert machine.slowest == 1899, "the time of idleness of b began when it could last not be read"
