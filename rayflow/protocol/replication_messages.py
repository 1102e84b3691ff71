"""What is said in replication (`protocol.replication`, which has the theory): operations that clients ask for, events
that a holder is told, and commands that it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NewType

HolderId = NewType("HolderId", str)
"""One holder process, never reused."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The members of one epoch, the primary first; none: the group has ended. `founded`: they begin empty."""

    epoch: int
    members: tuple[HolderId, ...]
    founded: bool = False


@dataclass(frozen=True, slots=True)
class Entry:
    """An object: its value, which the machine does not look into, and the operation that put it there."""

    value: Any
    operation: str


# ------------------------------------------------------------------------------------------- operations


@dataclass(frozen=True, slots=True)
class Put:
    """Write `value`, or, with `create`, only where there is nothing (True: it is there by this operation)."""

    path: str
    value: Any
    operation: str
    create: bool = False


@dataclass(frozen=True, slots=True)
class Get:
    """Return the Entry, or None."""

    path: str


@dataclass(frozen=True, slots=True)
class ListBelow:
    """Return the paths that begin with `start`, sorted."""

    start: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Remove the object `path`, or, with `below`, all whose paths begin so. Returns whether anything is left."""

    path: str
    below: bool = False


@dataclass(frozen=True, slots=True)
class Seal:
    """If there is nothing left, refuse everything from now on; return whether that is so."""


Operation = Put | Get | ListBelow | Remove | Seal


@dataclass(frozen=True, slots=True)
class Effect:
    """What an operation does to the objects, as decided by the primary: set one, drop some, or nothing."""

    path: str | None = None
    entry: Entry | None = None
    dropped: tuple[str, ...] = ()


# ------------------------------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class ConfigurationTold:
    """Somebody passed on what the registry says."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class OperationAsked:
    """A client, believing that this is the primary of `epoch`, asked. One at a time."""

    epoch: int
    operation: Operation


@dataclass(frozen=True, slots=True)
class MemberConfirmed:
    """Another member did what it was sent in `epoch`: an effect, or a whole copy."""

    epoch: int
    member: HolderId


@dataclass(frozen=True, slots=True)
class MemberFailed:
    """Another member refused, or did not answer."""

    epoch: int
    member: HolderId


@dataclass(frozen=True, slots=True)
class EffectReceived:
    """The primary of `epoch` sent its effect number `number`."""

    epoch: int
    number: int
    effect: Effect


@dataclass(frozen=True, slots=True)
class CopyBegun:
    """The primary of this configuration begins to send everything it has."""

    configuration: Configuration


@dataclass(frozen=True, slots=True)
class EntryCopied:
    """One object of that."""

    epoch: int
    path: str
    entry: Entry


@dataclass(frozen=True, slots=True)
class CopyEnded:
    """Those were all: the objects of these paths, and none else."""

    epoch: int
    paths: frozenset[str]


Event = (
    ConfigurationTold
    | OperationAsked
    | MemberConfirmed
    | MemberFailed
    | EffectReceived
    | CopyBegun
    | EntryCopied
    | CopyEnded
)

# ------------------------------------------------------------------------------------------------ commands


@dataclass(frozen=True, slots=True)
class CopyAll:
    """Send `member` a copy of everything; then report MemberConfirmed or MemberFailed."""

    member: HolderId
    configuration: Configuration


@dataclass(frozen=True, slots=True)
class SendEffect:
    """Send `member` an effect; then report MemberConfirmed or MemberFailed."""

    member: HolderId
    epoch: int
    number: int
    effect: Effect


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the client the result."""

    result: Any


Refusal = Literal["epoch", "not primary", "not serving", "sealed", "unconfirmed"]


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell whoever sent the event that it was not done, or (`unconfirmed`) that nobody knows. `epoch` is this
    holder's; `member` the one that did not confirm."""

    reason: Refusal
    epoch: int
    member: HolderId | None = None


@dataclass(frozen=True, slots=True)
class Confirm:
    """Tell the primary that it was done."""


Command = CopyAll | SendEffect | Answer | Refuse | Confirm
Commands = tuple[Command, ...]
