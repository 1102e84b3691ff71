"""Unaligned checkpoints with rows in flight, restored at another parallelism; seeds that ever failed stay here."""

from __future__ import annotations

import pytest

from rayflow.runtime.catching_up import Recovery
from rayflow.runtime.gate import InputGate
from rayflow.runtime.outputs import OutputChannel
from rayflow.runtime.replay import Replay
from tests.simulation.rescaling import rescale

REGRESSIONS = [
    218,  # one subtask had only the last watermark in flight, the other those before it too
    433,
]
BLOCK = 10


@pytest.mark.parametrize("first", range(0, 40, BLOCK))
def test_rows_in_flight_are_processed_once_at_another_parallelism(first: int) -> None:
    restored = [rescale(seed) for seed in range(first, first + BLOCK)]
    assert any(outcome.in_flight for outcome in restored)


@pytest.mark.parametrize("seed", REGRESSIONS)
def test_seeds_that_once_failed_stay_green(seed: int) -> None:
    assert rescale(seed).seed == seed


def brought_together_at_different_event_times(patch: pytest.MonkeyPatch) -> None:
    init = Recovery.__init__

    def hasty(self: Recovery, chain: object, restored: object, catch_up: object) -> None:
        init(self, chain, restored, None)  # type: ignore[arg-type]

    patch.setattr(Recovery, "__init__", hasty)


def overtaken_rows_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    overtake = OutputChannel.overtake
    patch.setattr(OutputChannel, "overtake", lambda self, barrier: overtake(self, barrier)[:0])


def queued_rows_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(InputGate, "take_recorded", lambda self: self._recorded.clear() or {})


def rows_in_flight_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Replay, "next", lambda self: None)


@pytest.mark.parametrize(
    "plant",
    [
        brought_together_at_different_event_times,
        overtaken_rows_are_not_recorded,
        queued_rows_are_not_recorded,
        rows_in_flight_are_forgotten,
    ],
    ids=lambda plant: plant.__name__,
)
def test_a_planted_bug_is_caught(plant: object, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)  # type: ignore[operator]
    with pytest.raises(BaseException, match="seed"):
        _run_all()


def _run_all() -> None:
    for seed in range(60):
        rescale(seed)
