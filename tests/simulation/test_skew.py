"""Hot keys that are salted while subtasks, managers and storage fail, restored at other parallelisms: seeds decide.

Jobs here have a hundred rows or so: what counts as hot, and as enough rows to tell, is made as little.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

import rayflow as rf
from rayflow.protocol import salting as protocol
from rayflow.skew import salting
from rayflow.skew.salting import SaltOperator
from tests.simulation import rescaling, simulate
from tests.simulation.jobs import _SUM, Shape, check_running, check_sliding, check_windows

AUTO, ROWS = rf.Skew(salt="auto"), rf.Skew(local_aggregation=False, salt="auto")

SHAPES = {
    "running": Shape(
        build=lambda s: s[0].key_by("key", skew=ROWS).aggregate(**_SUM).uid("sum"), check=check_running
    ),
    "windowed": Shape(
        build=lambda s: (
            s[0].key_by("key", skew=AUTO).window(rf.Tumbling("1s")).aggregate(**_SUM).uid("window")
        ),
        check=check_windows,
    ),
    "sliding": Shape(
        build=lambda s: (
            s[0].key_by("key", skew=ROWS).window(rf.Sliding("1s", "500ms")).aggregate(**_SUM).uid("window")
        ),
        check=check_sliding,
    ),
}


SEEDS = [*range(30, 40)]


class Seen:
    """The sets by which senders salted rows; of each that began with one, from a checkpoint, its parallelism and
    whether that was another job's."""

    def __init__(self) -> None:
        self.sets: set[tuple[int, ...]] = set()
        self.restored: list[tuple[int, bool]] = []


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found, open_, process = Seen(), SaltOperator.open, SaltOperator.process

    def opened(self: SaltOperator, ctx: Any, out: Any, restored: Any) -> None:
        open_(self, ctx, out, restored)
        if ctx.restored_from is not None and len(self._salted):
            found.restored.append((ctx.parallelism, ctx.foreign_job is not None))

    def processed(self: SaltOperator, batch: Any, port: int) -> None:
        process(self, batch, port)
        found.sets.add(tuple(self._salted.keys.tolist()))

    monkeypatch.setattr(SaltOperator, "open", opened)
    monkeypatch.setattr(SaltOperator, "process", processed)
    for module in (protocol, salting):
        monkeypatch.setattr(module, "LEAST_ROWS", 4)
    monkeypatch.setattr(protocol, "COOL_MS", 1_000)
    scenario = simulate._scenario

    def beating(seed: int, mode: Any) -> Any:
        drawn = scenario(seed, mode)
        return replace(drawn, config={**drawn.config, "heartbeat.interval": "50ms"})

    monkeypatch.setattr(simulate, "_scenario", beating)
    monkeypatch.setattr(simulate, "SHAPES", SHAPES)
    monkeypatch.setattr(simulate, "RARER", {})
    monkeypatch.setattr(rescaling, "SHAPES", SHAPES)
    return found


def test_whatever_fails_results_are_those_of_the_input(seen: Seen) -> None:
    for seed in SEEDS:
        simulate.simulate(seed)
    assert len(seen.sets) > 3
    assert seen.restored


def test_so_they_are_with_rows_in_flight_at_another_parallelism(seen: Seen) -> None:
    for seed in range(15):
        rescaling.rescale(seed)
    assert any(foreign for _, foreign in seen.restored)
    assert len({parallelism for parallelism, _ in seen.restored}) >= 2
