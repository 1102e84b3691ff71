"""A subtask's end of the control messages between it and its job master (`protocol.delivery`); any thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rayflow.model.ids import SubtaskId
from rayflow.protocol.delivery import Incoming, Outgoing
from rayflow.runtime.messages import FromSubtask, Heartbeat, HeartbeatAnswered, ToSubtask
from rayflow.runtime.ports import MasterLink


class Correspondence:
    """Reports of one subtask are kept until the master has them; what the master says is let through once, in order."""

    def __init__(self, subtask: SubtaskId, link: MasterLink) -> None:
        self._subtask = subtask
        self._link = link
        # A number is given and the message sent in one go: order is what makes a loss seen.
        self._lock = threading.Lock()
        self._incoming = Incoming()
        self._outgoing: Outgoing[FromSubtask] = Outgoing(numbered)

    def accepts(self, message: ToSubtask) -> bool:
        """Return whether a message that has just arrived is to be handled."""
        if isinstance(message, Heartbeat):
            return True
        with self._lock:
            return self._incoming.accepts(message.attempt, message.number)

    def report(self, message: FromSubtask) -> None:
        """Send to the master."""
        with self._lock:
            self._link.report(self._outgoing.add(message.attempt, message))

    def answer(self, heartbeat: Heartbeat, statistics: Callable[[], dict[str, Any]]) -> None:
        """Send again what the master lacks, then answer."""
        told, attempt = statistics(), heartbeat.attempt
        with self._lock:
            for message in self._outgoing.arrived(attempt, heartbeat.arrived, heartbeat.lacks):
                self._link.report(message)
            self._link.report(
                HeartbeatAnswered(
                    self._subtask,
                    attempt,
                    heartbeat.sequence,
                    told,
                    sent=self._outgoing.sent(attempt),
                    arrived=self._incoming.arrived(attempt),
                    lacks=self._incoming.lacks(attempt, heartbeat.sent),
                )
            )


def numbered(message: Any, number: int) -> Any:
    """Return the control message with its number."""
    return replace(message, number=number)
