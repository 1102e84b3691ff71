"""What is checked of lost control messages."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from rayflow.model.ids import Attempt
from rayflow.protocol.delivery import Outgoing
from rayflow.runtime.correspondence import numbered
from rayflow.runtime.messages import Cancel, Heartbeat
from rayflow.testing.losses import Debt
from rayflow.testing.world import World

ATTEMPT = Attempt(3)


@pytest.fixture
def world() -> World:
    return World(1)


@pytest.fixture
def send(world: World) -> Callable[[int], Outgoing[Cancel]]:
    def sent(count: int) -> Outgoing[Cancel]:
        outgoing: Outgoing[Cancel] = Outgoing(numbered)
        for _ in range(count):
            outgoing.add(ATTEMPT, Cancel(ATTEMPT))
        return outgoing

    return sent


def lacks(arrived: int, attempt: Attempt = ATTEMPT) -> Heartbeat:
    return Heartbeat(attempt, 1, 9, arrived, True)


def test_what_is_lacked_and_not_sent_again_is_a_violation(
    world: World, send: Callable[[int], Outgoing[Cancel]]
) -> None:
    outgoing, debt = send(2), Debt(world, "s[0]")
    outgoing.arrived(ATTEMPT, 1, True)
    debt.told(lacks(1))
    debt.settle(outgoing)
    assert world.violations == ["I8: s[0] lacks message 2, and is not sent it again"]


def test_the_message_that_is_lacked_pays_and_another_does_not(
    world: World, send: Callable[[int], Outgoing[Cancel]]
) -> None:
    outgoing, debt = send(3), Debt(world, "s[0]")
    debt.told(lacks(0))
    debt.sent(numbered(Cancel(ATTEMPT), 1))
    debt.settle(outgoing)
    assert not world.violations
    debt.told(lacks(0))
    debt.sent(numbered(Cancel(ATTEMPT), 2))
    debt.sent(Heartbeat(ATTEMPT, 2))
    debt.settle(outgoing)
    assert len(world.violations) == 1


def test_an_old_report_of_what_has_arrived_since_owes_nothing(
    world: World, send: Callable[[int], Outgoing[Cancel]]
) -> None:
    outgoing, debt = send(3), Debt(world, "s[0]")
    outgoing.arrived(ATTEMPT, 2, False)
    debt.told(lacks(1))
    debt.settle(outgoing)
    assert not world.violations


def test_nothing_is_owed_of_an_attempt_that_is_over_nor_where_nothing_lacks(
    world: World, send: Callable[[int], Outgoing[Cancel]]
) -> None:
    debt = Debt(world, "s[0]")
    debt.told(lacks(0, Attempt(2)))
    debt.settle(send(1))
    debt.told(Heartbeat(ATTEMPT, 1, 1, 0, False))
    debt.settle(send(1))
    assert not world.violations
