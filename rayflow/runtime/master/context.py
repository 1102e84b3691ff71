"""What the parts of one running master share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayflow.model.ids import Attempt
from rayflow.runtime.master.background import Background
from rayflow.runtime.master.events import EventLog
from rayflow.runtime.master.fleet import Fleet
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.storage import JobStorage


@dataclass(slots=True, kw_only=True)
class Context:
    """The master's surroundings. `now_ms` is the time of the running step, `attempt` the newest claimed
    attempt (0 before the first)."""

    job: Job
    background: Background
    storage: JobStorage
    fleet: Fleet
    log: EventLog
    now_ms: int
    attempt: Attempt

    def note(self, type: str, message: str, **fields: Any) -> None:
        """Put an event into the log."""
        self.log.add(self.now_ms, type, message, **fields)
