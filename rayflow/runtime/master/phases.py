"""Where a master is in its job's life. The picture is in `run`."""

from __future__ import annotations

from enum import Enum


class Phase(Enum):
    """See `rayflow.runtime.master.run`."""

    BEGINNING = "beginning"
    DEPLOYING = "deploying"
    RUNNING = "running"
    FINISHING = "finishing"
    ENDING = "ending"
    CLOSING = "closing"
    CLOSED = "closed"

    @property
    def going_on(self) -> bool:
        """Whether the job's end is not decided."""
        return self in (Phase.BEGINNING, Phase.DEPLOYING, Phase.RUNNING)
