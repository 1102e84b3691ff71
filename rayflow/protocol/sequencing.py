"""Fencing by attempt, and order on a channel.

Theory of operation. A job restarts by starting its next attempt; nothing can be sure that everything of the
attempt before is dead (a cut-off process may write on for a minute). So all that crosses a process carries
its attempt, and every receiver has a fence: what is older is dropped and counted. What is newer than the
receiver was told of cannot be: whoever starts an attempt tells its members first.

Within an attempt a channel's data frames are counted from 0. The transport keeps order and loses nothing
without saying so, but a call may be executed twice; so what was seen already is dropped, and a gap means lost
rows, which nothing here may paper over.

Invariants:

1. An attempt only grows (I6).
2. Nothing of an older attempt is accepted.
3. Frames of a channel are accepted in order, each once, without a gap (I4).
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, ChannelId


class AttemptFence:
    """Lets through what belongs to the current attempt."""

    __slots__ = ("_attempt", "_stale")

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._stale = 0

    @property
    def attempt(self) -> Attempt:
        """The current attempt."""
        return self._attempt

    @property
    def stale(self) -> int:
        """How many messages of older attempts were turned away."""
        return self._stale

    def accepts(self, attempt: Attempt) -> bool:
        """Return whether a message of `attempt` is to be handled; count it if it is stale.

        Raises ProtocolViolation for a newer attempt than the fence was advanced to.
        """
        if attempt == self._attempt:
            return True
        if attempt > self._attempt:
            raise ProtocolViolation(
                f"message of attempt {attempt} while the current one is {self._attempt}: its members must be "
                "told of an attempt before anything of it arrives (invariant 1)"
            )
        self._stale += 1
        return False

    def advance(self, attempt: Attempt) -> None:
        """Make `attempt`, which must be newer, the current one."""
        if attempt <= self._attempt:
            raise ProtocolViolation(f"attempt {attempt} after attempt {self._attempt} (invariant 1)")
        self._attempt = attempt


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A data frame with this number arrived."""

    seq: int


@dataclass(frozen=True, slots=True)
class Accept:
    """The frame is the next one."""


@dataclass(frozen=True, slots=True)
class DropDuplicate:
    """The frame was accepted before."""


SequenceCommand = Accept | DropDuplicate

_ACCEPT = (Accept(),)
_DROP = (DropDuplicate(),)


class ChannelSequence:
    """Checks the numbers of one channel's data frames in one attempt."""

    __slots__ = ("_channel", "_expected")

    def __init__(self, channel: ChannelId) -> None:
        self._channel = channel
        self._expected = 0

    @property
    def expected(self) -> int:
        """The number of the next new frame, which is also how many were accepted."""
        return self._expected

    def handle(self, event: FrameArrived) -> tuple[SequenceCommand]:
        """Return whether to accept the frame. Raises ProtocolViolation when frames before it are missing."""
        if event.seq == self._expected:
            self._expected += 1
            return _ACCEPT
        if event.seq > self._expected or event.seq < 0:
            raise ProtocolViolation(
                f"frame {event.seq} on {self._channel}: expected {self._expected}; frames were lost "
                "without the channel being reported broken (invariant 3)"
            )
        return _DROP
