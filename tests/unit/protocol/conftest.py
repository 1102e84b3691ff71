"""Names and helpers that the tests of the protocol machines share (session-wide, so that @given may use them)."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import ChannelId, EdgeId, SubtaskId, VertexId


@pytest.fixture(scope="session")
def subtasks() -> Callable[[int], tuple[SubtaskId, ...]]:
    return lambda count: tuple(SubtaskId(VertexId("task"), i) for i in range(count))


@pytest.fixture(scope="session")
def channels() -> Callable[[int], tuple[ChannelId, ...]]:
    consumer = SubtaskId(VertexId("consumer"), 0)
    return lambda count: tuple(
        ChannelId(EdgeId(0), SubtaskId(VertexId("producer"), i), consumer) for i in range(count)
    )


@pytest.fixture(scope="session")
def refused() -> Callable[[Any, object, str], None]:
    def refuse(machine: Any, event: object, match: str) -> None:
        """Give `machine` an illegal event: it must raise, and remember nothing of it."""
        before = pickle.dumps(machine)
        with pytest.raises(ProtocolViolation, match=match):
            machine.handle(event)
        assert pickle.dumps(machine) == before

    return refuse
