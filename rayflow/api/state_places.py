"""Where operators keep their state, for the plan's warnings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rayflow.graph.plan import OperatorSpec
from rayflow.model.config import JobConfig
from rayflow.operators.contracts import Operator


def state_warnings(specs: Iterable[OperatorSpec], settings: Mapping[str, Any]) -> list[str]:
    """Return which operators keep in memory what `state.backend=disk` was asked to take."""
    if JobConfig.from_flat(settings).state_backend != "disk":
        return []
    return [
        f"operator {spec.name!r} keeps its state in memory, whatever state.backend says "
        f"({spec.location or 'unknown line'})"
        for spec in specs
        if spec.kind == "operator" and _is_in_memory(spec.payload)
    ]


def _is_in_memory(factory: Any) -> bool:
    made: Operator = factory()
    return made.state_place == "memory" and type(made).snapshot is not Operator.snapshot
