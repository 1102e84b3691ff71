"""What is deleted when checkpoints are built on others, against a model of the files themselves."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.ids import CheckpointId
from rayflow.protocol.retention import (
    CheckpointBegun,
    CheckpointDiscarded,
    CheckpointOver,
    DeleteCheckpoint,
    Retention,
)


def number(value: int) -> CheckpointId:
    return CheckpointId(value)


def test_what_is_discarded_while_nothing_is_under_way_goes_at_once() -> None:
    assert Retention().handle(CheckpointDiscarded(number(1))) == (DeleteCheckpoint(number(1)),)


def test_what_is_discarded_is_held_by_those_under_way_and_by_no_later_one() -> None:
    #  2, 3 begin ── 1 discarded ── 4 begins ── 2 over ── 3 over: 1 goes
    retention = Retention()
    for begun in (2, 3):
        retention.handle(CheckpointBegun(number(begun)))
    assert retention.handle(CheckpointDiscarded(number(1))) == ()
    retention.handle(CheckpointBegun(number(4)))
    assert retention.may_build(number(3), number(1), ())
    assert not retention.may_build(number(4), number(1), ())
    assert retention.handle(CheckpointOver(number(2))) == ()
    assert retention.handle(CheckpointOver(number(2))) == ()
    assert retention.handle(CheckpointOver(number(3))) == (DeleteCheckpoint(number(1)),)
    assert not retention.may_build(number(3), number(1), ())


def test_building_on_nothing_or_on_what_is_kept_is_always_possible() -> None:
    assert Retention().may_build(number(2), None, ())
    assert Retention().may_build(number(2), number(1), {number(1)})


STEPS = st.lists(st.sampled_from(["begin", "ack", "complete", "abort"]), max_size=60)


@given(STEPS, st.integers(1, 3), st.data())
@settings(max_examples=200)
def test_no_file_that_a_checkpoint_needs_is_ever_deleted_and_none_stays_for_good(
    steps: list[str], retained: int, data: Any
) -> None:
    """Each checkpoint is a file of its own, and those of the one it builds on; a deletion spares what others need."""
    retention = Retention()
    stored: set[int] = set()
    needs: dict[int, frozenset[int]] = {}
    kept: list[int] = []
    pending: list[int] = []
    begun = 0

    def delete(commands: tuple[DeleteCheckpoint, ...]) -> None:
        for command in commands:
            assert command.checkpoint_id not in kept
            needed = frozenset().union(*(needs[c] for c in kept))
            doomed = {command.checkpoint_id} | (stored - set(kept) - set(pending) - set(retention.held))
            stored.difference_update(doomed - needed)

    def over(one: int) -> None:
        pending.remove(one)
        if one not in kept:
            stored.discard(one)
        delete(retention.handle(CheckpointOver(number(one))))

    for step in steps:
        if step == "begin":
            begun += 1
            pending.append(begun)
            retention.handle(CheckpointBegun(number(begun)))
            continue
        open_ = [c for c in pending if c not in needs]
        acked = [c for c in pending if c in needs]
        if step == "ack" and open_:
            one = data.draw(st.sampled_from(open_))
            # A subtask builds on any that was ever complete: it may have heard late of newer ones.
            candidates = [None, *(c for c in needs if c < one and c not in pending)]
            base = data.draw(st.sampled_from(candidates))
            if not retention.may_build(
                number(one), None if base is None else number(base), map(number, kept)
            ):
                over(one)
                continue
            needs[one] = frozenset({one}) | (frozenset() if base is None else needs[base])
            stored.add(one)
            assert needs[one] <= stored, "it builds on what is gone"
        elif step == "complete" and acked:
            one = data.draw(st.sampled_from(acked))
            for older in [c for c in pending if c < one]:
                over(older)
            kept.append(one)
            over(one)
            gone, kept[:] = sorted(kept)[:-retained], sorted(kept)[-retained:]
            for old in gone:
                delete(retention.handle(CheckpointDiscarded(number(old))))
        elif step == "abort" and pending:
            over(data.draw(st.sampled_from(pending)))
        for one in [*kept, *(c for c in pending if c in needs)]:
            assert needs[one] <= stored, f"{one} lost {needs[one] - stored}"
    for one in list(pending):
        over(one)
    # The sweep of the next completed checkpoint, which finds nothing held any more.
    assert not retention.held
    delete((DeleteCheckpoint(number(0)),))
    assert stored == (frozenset().union(*(needs[c] for c in kept)))
