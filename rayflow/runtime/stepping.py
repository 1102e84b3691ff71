"""What one `step` of an engine tells its driver."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepResult:
    """`progressed`: something was done, step again at once. Else sleep until woken, or until
    `wake_at_ms` (wall clock, ms since the epoch; None: only until woken)."""

    progressed: bool
    wake_at_ms: int | None = None
