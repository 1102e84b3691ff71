"""When a standby takes over: at once when the leader is gone, later where it may be about to lead."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from rayflow.actors import standby


def asked_before_taking_over(
    monkeypatch: pytest.MonkeyPatch, answers: Sequence[bool | None], patience: int = 1
) -> int:
    """How many answers it takes; the last one is given for ever."""
    monkeypatch.setattr(standby, "_ASK_S", 0)
    asked: list[bool | None] = []

    def leader() -> bool | None:
        asked.append(answers[min(len(asked), len(answers) - 1)])
        return asked[-1]

    standby.await_leaders_end(leader, patience)
    return len(asked)


def test_a_leader_that_is_gone_is_followed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_before_taking_over(monkeypatch, [True, True, None], patience=4) == 3


def test_one_that_does_not_lead_is_asked_again_before_it_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert asked_before_taking_over(monkeypatch, [True, False, False, True, False]) == 7


def test_who_was_restarted_leaves_it_to_the_one_that_stood_by(monkeypatch: pytest.MonkeyPatch) -> None:
    stood_by = asked_before_taking_over(monkeypatch, [True, False], patience=4)
    restarted = asked_before_taking_over(monkeypatch, [False], patience=4)
    assert stood_by == 4
    assert restarted == 12
