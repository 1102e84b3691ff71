"""What is said in batched writes (`protocol.batching`, which has the theory): events that the machine is told, and
commands that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Verdict = Literal["retry", "refused", "fatal"]
"""What a failed write was about: something that may pass, its rows, or anything else."""

Reason = Literal["refused", "fatal", "retried", "hung"]
"""Why a request is given up: its verdict, tries that did not help, or no answer in time."""


# ------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class RowsCame:
    """Rows (at least one) were put at the end of a lane."""

    lane: int
    rows: int
    nbytes: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class FlushAsked:
    """Whatever is here shall not wait for more."""

    now_ms: int


@dataclass(frozen=True, slots=True)
class RequestWritten:
    """The system outside has the rows."""

    request: int
    now_ms: int


@dataclass(frozen=True, slots=True)
class RequestFailed:
    """It does not, or nobody knows. `chance`, uniform in [0, 1), is for the delay; `after_ms` is the least delay that
    the system asks for. `halve`: rows that are refused may be set aside."""

    request: int
    verdict: Verdict
    now_ms: int
    chance: float
    after_ms: int = 0
    halve: bool = False


@dataclass(frozen=True, slots=True)
class TimePassed:
    """It is `now_ms`."""

    now_ms: int


BatchingEvent: TypeAlias = RowsCame | FlushAsked | RequestWritten | RequestFailed | TimePassed


# ----------------------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class CutRequest:
    """The first `rows` rows of the lane become this request."""

    request: int
    lane: int
    rows: int


@dataclass(frozen=True, slots=True)
class SendRequest:
    """Have its rows written."""

    request: int


@dataclass(frozen=True, slots=True)
class HalveRequest:
    """Its first `rows` rows become request `first`, the others `second`."""

    request: int
    rows: int
    first: int
    second: int


@dataclass(frozen=True, slots=True)
class SetRowAside:
    """Its one row is refused, and done with."""

    request: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """End the attempt. `tried_ms` since the request's first try, `tries` so many."""

    request: int
    reason: Reason
    tries: int
    tried_ms: int


BatchingCommand: TypeAlias = CutRequest | SendRequest | HalveRequest | SetRowAside | GiveUp
