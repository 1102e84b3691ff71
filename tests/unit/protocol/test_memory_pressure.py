from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.memory_pressure import (
    PATIENCE_MS,
    RELIEVED_BELOW,
    SHED_AT,
    SHED_EVERY_MS,
    EndForMemory,
    MemoryPressure,
    MemorySampled,
    RelaxMemory,
    ShedMemory,
)

LIMIT = 1000


def run(samples: list[tuple[int, int]]) -> list[tuple[int, object]]:
    """Feed (ms, bytes); return (ms, command)."""
    machine = MemoryPressure(LIMIT)
    return [(ms, c) for ms, nbytes in samples for c in machine.handle(MemorySampled(nbytes, ms))]


def test_a_process_sheds_near_its_limit_again_after_a_while_and_relaxes_well_below():
    commands = run(
        [
            (0, 500),
            (100, 850),
            (200, 900),
            (10_100, 900),
            (10_300, 749),
            (20_100, 800),
            (20_200, 749),
            (20_300, 500),
        ]
    )
    assert commands == [
        (100, ShedMemory(850, first=True)),
        (10_100, ShedMemory(900, first=False)),
        (20_200, RelaxMemory(749)),
    ]


def test_rows_at_work_that_come_and_go_do_not_have_it_shed_each_time():
    commands = run([(ms, 950 if ms % 400 else 500) for ms in range(0, 10_000, 200)])
    assert commands == [(200, ShedMemory(950, first=True))]


def test_a_limit_that_nobody_set_is_passed_without_shedding_more_often_and_without_an_end():
    machine = MemoryPressure(LIMIT, firm=False)
    samples = [(0, 900), (3_000, 1100), (6_000, 2500), (9_000, 2500), (10_000, 2500)]
    assert [c for ms, nbytes in samples for c in machine.handle(MemorySampled(nbytes, ms))] == [
        ShedMemory(900, first=True),
        ShedMemory(2500, first=False),
    ]


def test_over_the_limit_for_a_moment_is_no_harm():
    #        over ├──────────────┤ below, so the patience begins anew ├─────
    samples = [(0, 1001), (1_900, 1100), (2_000, 999), (2_100, 1001), (4_000, 1001)]
    assert not any(isinstance(command, EndForMemory) for _, command in run(samples))


def test_over_the_limit_in_spite_of_shedding_ends_the_process_once():
    commands = run([(ms, 1200) for ms in range(0, 6_000, 250)])
    assert commands == [(0, ShedMemory(1200, first=True)), (2_000, EndForMemory(1200))]


def test_shedding_is_tried_once_more_when_the_limit_is_passed():
    commands = run([(0, 900), (2_000, 1100), (2_100, 1100)])
    assert commands == [(0, ShedMemory(900, first=True)), (2_000, ShedMemory(1100, first=False))]


def test_twice_the_limit_ends_the_process_at_once():
    assert run([(0, 500), (250, 2000)]) == [(250, EndForMemory(2000))]


def test_a_limit_of_nothing_is_a_mistake_of_ours():
    with pytest.raises(ProtocolViolation):
        MemoryPressure(0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([1, 250, 1_999, 2_000, 9_999]), st.integers(600, 1100) | st.integers(0, 2200)
        ),
        max_size=60,
    )
)
def test_invariants_hold_whatever_the_samples(steps):
    machine, now_ms = MemoryPressure(LIMIT), 0
    over_since_ms = shed_ms = None
    pressed = ended = False
    for step_ms, nbytes in steps:
        now_ms += step_ms
        if nbytes <= LIMIT:
            over_since_ms = None
        elif over_since_ms is None:
            over_since_ms = now_ms
        for command in machine.handle(MemorySampled(nbytes, now_ms)):
            assert not ended  # 2
            assert command.nbytes == nbytes
            if isinstance(command, EndForMemory):
                assert nbytes > LIMIT  # 1
                shed_in_time = shed_ms is not None and shed_ms > over_since_ms - PATIENCE_MS
                assert nbytes >= 2 * LIMIT or (shed_in_time and now_ms - over_since_ms >= PATIENCE_MS)  # 3
                ended = True
            elif isinstance(command, ShedMemory):
                assert nbytes >= SHED_AT * LIMIT
                assert command.first is not pressed
                just_over = over_since_ms == now_ms
                assert shed_ms is None or now_ms - shed_ms >= (
                    PATIENCE_MS if just_over else SHED_EVERY_MS
                )  # 4
                pressed, shed_ms = True, now_ms
            else:
                assert isinstance(command, RelaxMemory)
                assert pressed  # 5
                assert now_ms - shed_ms >= SHED_EVERY_MS  # 5
                assert nbytes < RELIEVED_BELOW * LIMIT
                pressed, shed_ms = False, None
        if not ended:
            assert machine.pressed is pressed
            assert pressed or nbytes < SHED_AT * LIMIT
