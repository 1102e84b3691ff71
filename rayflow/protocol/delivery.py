"""Control messages in order and without loss, over calls that may fail.

Theory of operation. A call to another process can be lost while both ends live on (Ray: `ActorUnavailableError`), or
be executed and seem lost. So either end numbers what it sends in an attempt, from 1, and keeps it until the other end
has told that it has it. Heartbeats and their answers, which are not numbered, carry the books: how much was *sent*
before them, and how much has *arrived* in order. Calls of one sender to one receiver arrive in order, if they do; so
whoever gets a heartbeat and *lacks* something that was sent before it knows that it is lost, and says so; then all
from there on is sent once more (go-back-N). No clock is needed to find out, and without losses nothing is sent twice.

What has been lost for long (heartbeats arrive, messages do not) is not decided here: see `runtime.master.fleet`.

Numbers belong to an attempt, since a subtask is run by one process in an attempt, and its first message there is
number 1; so neither a new process, nor a new manager, can take what belongs to another sequence for its own.

Invariants:

1. Within an attempt messages are accepted in the order of their numbers, each once, and none before those ahead of it.
2. What is not acknowledged is kept, the newest `MAX_KEPT` of it. What had to be dropped stays lacking.
3. A message is sent again only after the other end has said that it lacks it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from rayflow.model.ids import Attempt

MAX_KEPT = 10_000

Message = TypeVar("Message")


class Outgoing(Generic[Message]):
    """What one end sends to one other. `number(message, n)` returns the message with its number."""

    def __init__(self, number: Callable[[Message, int], Message]) -> None:
        self._number = number
        self._attempt = Attempt(0)
        self._sent = 0
        self._kept: deque[tuple[int, Message]] = deque(maxlen=MAX_KEPT)

    def add(self, attempt: Attempt, message: Message) -> Message:
        """Return `message` as it is to be sent: numbered, unless it belongs to an attempt that is over."""
        if attempt < self._attempt:
            return message
        self._enter(attempt)
        self._sent += 1
        numbered = self._number(message, self._sent)
        self._kept.append((self._sent, numbered))
        return numbered

    def sent(self, attempt: Attempt) -> int:
        """Return how many messages of `attempt` were sent."""
        return self._sent if attempt == self._attempt else 0

    def arrived(self, attempt: Attempt, arrived: int, lacks: bool) -> tuple[Message, ...]:
        """The other end has the first `arrived` messages of `attempt`; return what to send again: what follows, if
        it `lacks` something."""
        if attempt != self._attempt:
            return ()
        while self._kept and self._kept[0][0] <= arrived:
            self._kept.popleft()
        return tuple(message for _, message in self._kept) if lacks else ()

    def _enter(self, attempt: Attempt) -> None:
        if attempt > self._attempt:
            self._attempt = attempt
            self._sent = 0
            self._kept.clear()


class Incoming:
    """What one end gets from one other."""

    def __init__(self) -> None:
        self._attempt = Attempt(0)
        self._arrived = 0

    def accepts(self, attempt: Attempt, number: int) -> bool:
        """Return whether the message is to be handled; if not it came before, or out of turn (and will come again).

        What has no number (0), or belongs to an attempt that is over, is for the caller to judge: it is let through.
        """
        if number == 0 or attempt < self._attempt:
            return True
        if number != self.arrived(attempt) + 1:
            return False
        self._attempt, self._arrived = attempt, number
        return True

    def arrived(self, attempt: Attempt) -> int:
        """Return how many messages of `attempt` have arrived, all in order."""
        return self._arrived if attempt == self._attempt else 0

    def lacks(self, attempt: Attempt, sent: int) -> bool:
        """Return whether some of the `sent` messages of `attempt`, which should be here by now, are lost."""
        return attempt >= self._attempt and sent > self.arrived(attempt)
