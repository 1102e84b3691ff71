"""What waits in an engine's mailbox: the master's control messages, and what its own I/O and transport have found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from rayflow.model.ids import Attempt, ChannelId
from rayflow.runtime.messages import CreditFrame, Frame, ToSubtask
from rayflow.runtime.replay import RestoredState


@dataclass(frozen=True, slots=True)
class StateRead:
    """The I/O pool read the state to restore, or failed to."""

    attempt: Attempt
    state: RestoredState
    error: BaseException | None


@dataclass(frozen=True, slots=True)
class ChannelBroke:
    """The transport lost a channel."""

    attempt: Attempt
    channel: ChannelId
    reason: str


Mail: TypeAlias = ToSubtask | StateRead | ChannelBroke

Arrived: TypeAlias = tuple[Attempt, ChannelId, Frame | CreditFrame]
"""What came over a channel, and for which attempt."""
