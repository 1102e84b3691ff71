"""Calls to holders of `rayobj://` objects: who they are, and waiting for them without taking the busy for dead.

A call may take long since much is copied, or for ever since a node is cut off (Ray alone tells neither in time). So
whoever waits asks the holder's `status` in between, which is answered on a thread of its own: as long as it
is, the call is waited for.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayError

from rayflow.actors.specs import NAMESPACE
from rayflow.protocol.replication_messages import (
    HolderId,
)

PATIENCE_S = 1.0
"""A call that is not answered for so long is a reason to ask for a sign of life."""

PROBE_S = 4.0
"""How long a sign of life may take."""

LIMIT_S = 120.0
"""How long a call may take in any case."""

_SEPARATOR = " "


class NoAnswer(Exception):
    """A holder did not answer: the call may or may not have been executed, or be executed yet."""


class HolderDied(NoAnswer):
    """It never will."""


@dataclass(frozen=True, slots=True)
class HolderStatus:
    """What a holder says of itself."""

    holder: HolderId
    pid: int
    epoch: int
    complete: bool
    serving: bool
    objects: int
    nbytes: int


def holder_id(name: str, actor_id: str, node_id: str) -> HolderId:
    """Return the id of a holder: an actor's name may be used again, its id never."""
    return HolderId(_SEPARATOR.join((name, actor_id, node_id)))


def name_of(holder: HolderId) -> str:
    """Return the holder's actor name."""
    return holder.split(_SEPARATOR)[0]


def node_of(holder: HolderId) -> str:
    """Return the id of the node it was started on."""
    return holder.split(_SEPARATOR)[2]


class Handles:
    """Actor handles by holder. Any thread."""

    def __init__(self) -> None:
        self._known: dict[HolderId, Any] = {}

    def get(self, holder: HolderId) -> Any:
        """Return the holder's actor. HolderDied where it is gone."""
        if holder not in self._known:
            name, actor_id, _ = holder.split(_SEPARATOR)
            try:
                actor = ray.get_actor(name, namespace=NAMESPACE)
            except ValueError:
                raise HolderDied(f"holder {name} is gone") from None
            if actor._actor_id.hex() != actor_id:
                raise HolderDied(f"holder {name} is gone, and another one has its name")
            self._known[holder] = actor
        return self._known[holder]


def wait_for(call: Any, actor: Any) -> Any:
    """Return what `call`, a reference, gives; NoAnswer as soon as `actor` shows no sign of life."""
    given_up_s = time.monotonic() + LIMIT_S
    while time.monotonic() < given_up_s:
        ready, _ = ray.wait([call], timeout=PATIENCE_S)
        try:
            if ready:
                return ray.get(call, timeout=PROBE_S)
            ray.get(actor.status.remote(), timeout=PROBE_S)
        except ActorDiedError as error:
            raise HolderDied(_first_line(error)) from None
        except RayError as error:
            raise NoAnswer(_first_line(error)) from None
    raise NoAnswer(f"it lives, but did not answer within {LIMIT_S:.0f} s")


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
