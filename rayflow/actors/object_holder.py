"""The Ray actor that holds objects of `rayobj://`: detached, pinned to its node, ended for good when it dies.

It runs the machine of `protocol.replication` and sends what that commands. What clients ask is done one at a time, on
one thread; what other holders send, on another, so that two holders that wait for each other do not do so for ever;
`status` on a third. Small objects lie in the process's heap, larger ones in Ray's object store, put
there by this process, since objects die with the process that put them. Ray spills them to disk when its store is full.

Every `LOOK_AFTER_S` it looks at the registry: a holder that is no member (any more) ends itself; one that is sees that
members that died are replaced, without waiting for a client to notice.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import ObjectStoreFullError, OutOfDiskError

from rayflow.actors.holder_calls import Handles, HolderStatus, NoAnswer, holder_id, node_of, wait_for
from rayflow.protocol.replication import Holder
from rayflow.protocol.replication_messages import (
    Answer,
    Command,
    Commands,
    Configuration,
    ConfigurationTold,
    Confirm,
    CopyAll,
    CopyBegun,
    CopyEnded,
    EffectReceived,
    Entry,
    EntryCopied,
    Event,
    Get,
    HolderId,
    MemberConfirmed,
    MemberFailed,
    Operation,
    OperationAsked,
    Put,
    Refuse,
    SendEffect,
)

_log = logging.getLogger(__name__)

HEAP_BYTES = 100_000
"""Objects up to this size stay in the heap: putting one into Ray's store costs 2 ms."""

LOOK_AFTER_S = 5.0
JOIN_S = 120.0
"""A holder that is no member after this time never will be: whoever started it died, or lost a race."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What became of an operation; `data` of an object read; `full` where a holder had no room for it."""

    outcome: Answer | Refuse
    data: bytes | None = None
    full: str | None = None


@dataclass(frozen=True, slots=True)
class Full:
    """This holder has no room for what it was sent."""

    reason: str


class ObjectHolder:
    """A member of group `group`. All calls may be repeated."""

    def __init__(self, group: str, name: str) -> None:
        context = ray.get_runtime_context()
        self._group = group
        self._self = context.current_actor
        self._me = holder_id(name, context.get_actor_id(), context.get_node_id())
        self._machine = Holder(self._me)
        self._lock = threading.Lock()  # of the machine, held only while it decides
        self._handles = Handles()
        self._full: str | None = None
        threading.Thread(target=self._look_after, name="look after", daemon=True).start()

    @ray.method(concurrency_group="status")  # type: ignore[untyped-decorator]
    def status(self) -> HolderStatus:
        """Return what it is and has; answered at any time."""
        machine = self._machine
        with self._lock:
            sizes = [_size(entry.value) for entry in machine.entries.values()]
            return HolderStatus(
                self._me,
                os.getpid(),
                machine.epoch,
                machine.complete,
                machine.serving,
                len(sizes),
                sum(sizes),
            )

    def tell(self, configuration: Configuration) -> HolderStatus:
        """Take note of a configuration, and do what it demands."""
        self._run(ConfigurationTold(configuration), None)
        status: HolderStatus = self.status()
        return status

    def ask(self, epoch: int, operation: Operation, data: bytes | None) -> Reply:
        """Carry out a client's operation; `data` is the object that a Put writes."""
        self._full = None
        if isinstance(operation, Put):
            assert data is not None, "a Put comes with data"
            try:
                operation = replace(operation, value=_held(data))
            except (ObjectStoreFullError, OutOfDiskError, MemoryError) as error:
                return Reply(Refuse("unconfirmed", self._machine.epoch), full=self._no_room(error))
        outcome = self._run(OperationAsked(epoch, operation), data)
        if not isinstance(outcome, Answer | Refuse):
            # A later epoch began meanwhile.
            outcome = Refuse("epoch", self._machine.epoch)
        if isinstance(operation, Get) and isinstance(outcome, Answer):
            entry = outcome.result
            return Reply(Answer(entry is not None), None if entry is None else _bytes(entry.value))
        return Reply(outcome, full=self._full)

    @ray.method(concurrency_group="peers")  # type: ignore[untyped-decorator]
    def receive(
        self, event: EffectReceived | CopyBegun | EntryCopied | CopyEnded, data: bytes | None
    ) -> Confirm | Refuse | Full:
        """Take what the primary sends; `data` is the object in it."""
        try:
            if isinstance(event, EntryCopied):
                event = replace(event, entry=_with_data(event.entry, data))
            elif isinstance(event, EffectReceived) and event.effect.entry is not None:
                event = replace(
                    event, effect=replace(event.effect, entry=_with_data(event.effect.entry, data))
                )
        except (ObjectStoreFullError, OutOfDiskError, MemoryError) as error:
            return Full(self._no_room(error))
        (answer,) = self._handle(event)
        assert isinstance(answer, Confirm | Refuse), answer
        return answer

    # ------------------------------------------------------------------------------- commands

    def _handle(self, event: Event) -> Commands:
        with self._lock:
            return self._machine.handle(event)

    def _run(self, event: Event, data: bytes | None) -> Command | None:
        """Have the event handled, and carry out what follows from it; return the last command, which is the answer."""
        queue, last = deque(self._handle(event)), None
        while queue:
            command = queue.popleft()
            match command:
                case SendEffect(member, epoch, number, effect):
                    bare = None if effect.entry is None else replace(effect.entry, value=None)
                    sent = EffectReceived(epoch, number, replace(effect, entry=bare))
                    done = self._sent(member, [(sent, None if bare is None else data)])
                case CopyAll(member, configuration):
                    epoch = configuration.epoch
                    done = self._sent(member, self._copy(configuration))
                case _:
                    last = command
                    continue
            answer = MemberConfirmed(epoch, member) if done else MemberFailed(epoch, member)
            queue.extend(self._handle(answer))
        return last

    def _copy(self, configuration: Configuration) -> Any:
        """Yield the messages that make up a copy, with their data, one object at a time."""
        with self._lock:
            entries, epoch = dict(self._machine.entries), configuration.epoch
        yield CopyBegun(configuration), None
        for path, entry in entries.items():
            yield EntryCopied(epoch, path, replace(entry, value=None)), _bytes(entry.value)
        yield CopyEnded(epoch, frozenset(entries)), None

    def _sent(self, member: HolderId, messages: Any) -> bool:
        """Send messages in order; whether each was confirmed."""
        try:
            actor = self._handles.get(member)
            for event, data in messages:
                answer = wait_for(actor.receive.remote(event, data), actor)
                if isinstance(answer, Full):
                    self._full = answer.reason
                if not isinstance(answer, Confirm):
                    return False
        except NoAnswer as error:
            _log.warning("holder %s did not confirm: %s", member, error)
            return False
        return True

    def _no_room(self, error: Exception) -> str:
        status: HolderStatus = self.status()
        first = (str(error).strip() or "no message").splitlines()[0]
        return (
            f"Ray's object store on node {node_of(self._me)[:8]} has no room ({type(error).__name__}: {first}); "
            f"the holder there has {status.objects} objects of {status.nbytes} bytes. Give the nodes a larger "
            "--object-store-memory, retain fewer checkpoints, or remove old jobs with `rayflow state rm`"
        )

    # ------------------------------------------------------------------------------- itself

    def _look_after(self) -> None:
        from rayflow.actors.holder_group import HolderGroup  # it starts holders, so it imports this module

        group, joined, begun_s = HolderGroup(self._group), False, time.monotonic()
        while True:
            time.sleep(LOOK_AFTER_S)
            try:
                member = group.look_after(self._me)
            except Exception as error:
                _log.warning("group %s could not be looked after: %s", self._group, error)
                continue
            joined |= member
            if not member and (joined or time.monotonic() - begun_s > JOIN_S):
                ray.kill(self._self, no_restart=True)


def _held(data: bytes) -> Any:
    return data if len(data) <= HEAP_BYTES else _Large(ray.put(data), len(data))


def _bytes(value: Any) -> bytes:
    data: bytes = ray.get(value.ref) if isinstance(value, _Large) else value
    return data


def _size(value: Any) -> int:
    return value.nbytes if isinstance(value, _Large) else len(value)


def _with_data(entry: Entry, data: bytes | None) -> Entry:
    assert data is not None, "an object comes with its data"
    return replace(entry, value=_held(data))


@dataclass(frozen=True, slots=True)
class _Large:
    """An object in Ray's store: there as long as this reference is."""

    ref: Any
    nbytes: int
