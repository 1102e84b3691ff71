"""Closing line of every exhaustive `match` in this layer (Python 3.10 has no `typing.assert_never`)."""

from __future__ import annotations

from typing import NoReturn

from rayflow.model.errors import ProtocolViolation


def unhandled(event: NoReturn) -> NoReturn:
    """Refuse an event of a type the machine does not know; the type checker proves it is never reached."""
    raise ProtocolViolation(f"no machine handles {event!r} here; it was given to the wrong machine")
