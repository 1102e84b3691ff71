"""Where a master is in its job's life, and how its parts end an attempt. The picture is in `run`."""

from __future__ import annotations

from enum import Enum
from typing import Protocol


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


class FailTheAttempt(Protocol):
    """Tells the master that the attempt has failed."""

    def __call__(self, cause: str, *, storage: bool = False) -> None:
        """`storage`: since storage takes no checkpoints."""
