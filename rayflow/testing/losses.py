"""What is checked of lost control messages, in any simulated job, by number.

I8   who tells that it lacks a message is sent it again, there and then. (A job gets by without that: what is lost for
     long costs its worker the process, and the job a restart. So the end of a run does not show it.)

Either end of a link keeps a `Debt` for each receiver. A report that arrives with `lacks` says which message is owed,
sending that one pays it, and once the sender has handled all that came, nothing that it still keeps may be owed. (What
it keeps no more has arrived meanwhile: the report was an old one.)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rayflow.protocol.delivery import Outgoing

if TYPE_CHECKING:
    from rayflow.runtime.messages import Heartbeat, HeartbeatAnswered
    from rayflow.testing.world import World


class Debt:
    """The message that one end owes another: the first one that is lost."""

    def __init__(self, world: World, said: str) -> None:
        self._world = world
        self._said = said
        self._owed: tuple[int, int] | None = None

    def told(self, books: Heartbeat | HeartbeatAnswered) -> None:
        """The receiver has told what has arrived there."""
        if books.lacks:
            self._owed = books.attempt, books.arrived + 1

    def sent(self, message: Any) -> None:
        """A control message goes to the receiver."""
        if (message.attempt, getattr(message, "number", 0)) == self._owed:
            self._owed = None

    def settle(self, outgoing: Outgoing[Any]) -> None:
        """The sender has handled all that has come to it."""
        owed, self._owed = self._owed, None
        kept = outgoing._kept
        if owed is not None and outgoing._attempt == owed[0] and kept and kept[0][0] == owed[1]:
            self._world.violated(f"I8: {self._said} lacks message {owed[1]}, and is not sent it again")
