"""What a caller that waited for a job gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class JobResult:
    """How a job ended that did not fail. `state`: FINISHED, CANCELLED or STOPPED; `description` is what
    `describe` says of the job at its end (API.md section 6)."""

    job_id: str
    name: str
    state: str
    description: dict[str, Any] = field(default_factory=dict)
