"""Which operator a thread is at: for last words, when a process is about to end inside a user's function."""

from __future__ import annotations

from dataclasses import dataclass
from types import FrameType

from rayflow.runtime.chain import ChainedOperator
from rayflow.runtime.source_driver import SourceDriver


@dataclass(frozen=True, slots=True)
class AtWork:
    """An operator's name, and the user's line that made it."""

    operator: str
    location: str | None


def operator_at_work(frame: FrameType | None) -> AtWork | None:
    """Return the operator in whose call `frame` is, None where it is in none. Looks at the innermost first."""
    while frame is not None:
        chained, source = frame.f_locals.get("chained"), frame.f_locals.get("self")
        if isinstance(chained, ChainedOperator):
            return AtWork(chained.context.name, chained.context.location)
        if isinstance(source, SourceDriver):
            return AtWork(source.spec.name, source.spec.location)
        frame = frame.f_back
    return None
