"""Replication of a small object store over holders that die: which holder may answer what, and who succeeds whom.

Theory of operation. A *group* of holders keeps the same objects, each in its own process. A *configuration* says,
for one epoch, who the members are; the first is the primary. A registry outside (Ray's control store) takes one
configuration per epoch, from whoever comes first: it decides who succeeds, and everything else follows from that.
(Primary and backups with an external configuration master: PacificA, Lin et al. 2008.)

Clients ask the primary. It decides what the operation does (a conditional creation: whether it does anything), has
every other member do it in the current epoch, does it itself, and answers. A read, too, is confirmed by all first:
so a primary that was replaced, and does not know it, can answer nothing. An operation that some member does not
confirm stays unanswered: it may or may not take effect, and the client asks again, with the same operation id.

When a member is thought dead, anyone may propose the next configuration: the complete members that answer, then fresh
ones. A member that is told of a later epoch refuses the earlier ones from then on. The new primary, complete as
it is, copies all it has to the others, and serves once they have it. Whether the one that was left out is really
dead does not matter: it cannot get its operations confirmed. A holder that was left out is never taken in again.

An empty group can be sealed: its primary then refuses everything, and the next configuration may begin empty.

Invariants:

1. An epoch has one configuration, and a holder's epoch only grows.
2. An operation is answered only when every member of the epoch had confirmed it in that epoch. Hence:
3. A complete member of the newest configuration has the effect of every answered operation.
4. A member is complete from when it founded a group (then empty), or got a whole copy from a complete primary.
5. Nothing is answered by a holder that is not the complete primary of its epoch, nor before all members are complete.
6. A creation is answered True for one operation id only, as long as its object is not removed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.replication_messages import (
    Answer,
    Commands,
    Configuration,
    ConfigurationTold,
    Confirm,
    CopyAll,
    CopyBegun,
    CopyEnded,
    Effect,
    EffectReceived,
    Entry,
    EntryCopied,
    Event,
    Get,
    HolderId,
    ListBelow,
    MemberConfirmed,
    MemberFailed,
    Operation,
    OperationAsked,
    Put,
    Refuse,
    Remove,
    Seal,
    SendEffect,
)
from rayflow.protocol.unhandled import unhandled


class Holder:
    """One holder's machine. `entries` are the objects it has; the shell reads them, and changes nothing."""

    def __init__(self, me: HolderId) -> None:
        self._me = me
        self._configuration = Configuration(0, ())
        self._complete = False
        self._sealed = False
        # Members that have yet to confirm: the copy while not serving, else the operation under way.
        self._waiting: set[HolderId] = set()
        self._serving = False
        self._operation: Operation | None = None
        self._effect = Effect()
        # Of effects sent or received in this epoch: one that comes late, after its primary gave it up, does nothing.
        self._number = 0
        self.entries: dict[str, Entry] = {}

    @property
    def epoch(self) -> int:
        """The epoch it was last told of as a member; 0 before."""
        return self._configuration.epoch

    @property
    def complete(self) -> bool:
        """Whether it has the effect of every answered operation (invariant 4)."""
        return self._complete

    @property
    def serving(self) -> bool:
        """Whether it is the primary, and all members are complete."""
        return self._serving and not self._sealed

    def handle(self, event: Event) -> Commands:
        """Take note of `event`; return what to do, in order. An event that is refused changes nothing."""
        match event:
            case ConfigurationTold():
                return self._on_told(event.configuration)
            case OperationAsked():
                return self._on_asked(event)
            case MemberConfirmed():
                return self._on_confirmed(event)
            case MemberFailed():
                return self._on_failed(event)
            case EffectReceived():
                return self._on_effect(event)
            case CopyBegun():
                return self._on_copy_begun(event.configuration)
            case EntryCopied():
                if event.epoch != self.epoch or self._is_primary:
                    return (Refuse("epoch", self.epoch),)
                self.entries[event.path] = event.entry
                return (Confirm(),)
            case CopyEnded():
                return self._on_copy_ended(event)
            case _:
                unhandled(event)

    # ------------------------------------------------------------------------------- configurations

    @property
    def _is_primary(self) -> bool:
        return self._configuration.members[:1] == (self._me,)

    def _on_told(self, told: Configuration) -> Commands:
        if told.epoch == self.epoch and self._is_primary and self._complete and not self._serving:
            return self._copies()  # once more: somebody found that not all members have one
        if told.epoch <= self.epoch or self._me not in told.members:
            return ()
        if told.founded and self._complete:
            raise ProtocolViolation(f"{self._me} has objects, but is told to found {told} (invariant 4)")
        self._adopt(told)
        if told.founded:
            self._complete = True
            self._serving = self._is_primary
            return ()
        # A fresh holder waits for the primary's copy, wherever it stands.
        return self._copies() if self._is_primary and self._complete else ()

    def _adopt(self, configuration: Configuration) -> None:
        self._configuration = configuration
        self._serving = self._sealed = False
        self._operation = None
        self._waiting = set()
        self._number = 0

    def _copies(self) -> Commands:
        others = self._configuration.members[1:]
        self._waiting = set(others)
        self._serving = not others
        return tuple(CopyAll(member, self._configuration) for member in others)

    def _on_copy_begun(self, configuration: Configuration) -> Commands:
        if configuration.epoch < self.epoch or self._me not in configuration.members[1:]:
            return (Refuse("epoch", self.epoch),)
        if configuration.epoch > self.epoch:
            self._adopt(configuration)
        return (Confirm(),)

    def _on_copy_ended(self, event: CopyEnded) -> Commands:
        if event.epoch != self.epoch or self._is_primary or not event.paths <= self.entries.keys():
            return (Refuse("epoch", self.epoch),)
        for path in self.entries.keys() - event.paths:
            del self.entries[path]
        self._complete = True
        return (Confirm(),)

    # ------------------------------------------------------------------------------- operations

    def _on_asked(self, event: OperationAsked) -> Commands:
        if event.epoch != self.epoch:
            return (Refuse("epoch", self.epoch),)
        if not self._is_primary:
            return (Refuse("not primary", self.epoch),)
        if self._sealed:
            return (Refuse("sealed", self.epoch),)
        if not self._serving:
            return (Refuse("not serving", self.epoch),)
        if self._operation is not None:
            raise ProtocolViolation(f"{event} asked while {self._operation} is under way")
        self._operation = event.operation
        self._effect = self._decided(event.operation)
        self._waiting = set(self._configuration.members[1:])
        if not self._waiting:
            return self._done()
        self._number += 1
        others = self._configuration.members[1:]
        return tuple(SendEffect(member, self.epoch, self._number, self._effect) for member in others)

    def _decided(self, operation: Operation) -> Effect:
        match operation:
            case Put(path, value, by, create):
                taken = create and path in self.entries
                return Effect() if taken else Effect(path=path, entry=Entry(value, by))
            case Remove(path, below):
                gone = self._below(path) if below else [path] if path in self.entries else []
                return Effect(dropped=tuple(gone))
            case _:
                return Effect()

    def _on_confirmed(self, event: MemberConfirmed) -> Commands:
        if event.epoch != self.epoch or event.member not in self._waiting:
            return ()
        self._waiting.discard(event.member)
        if self._waiting:
            return ()
        if self._operation is not None:
            return self._done()
        self._serving = True
        return ()

    def _on_failed(self, event: MemberFailed) -> Commands:
        if event.epoch != self.epoch or event.member not in self._waiting:
            return ()
        # The next operation, or the next telling of the configuration, tries that member again.
        self._waiting = set()
        if self._operation is None:
            return ()
        self._operation = None
        return (Refuse("unconfirmed", self.epoch, event.member),)

    def _done(self) -> Commands:
        operation, self._operation = self._operation, None
        assert operation is not None, "called when an operation is confirmed"
        created = self._effect.path is not None
        self._apply(self._effect)
        match operation:
            case Put(path, _, by, create):
                return (Answer(not create or created or self.entries[path].operation == by),)
            case Get(path):
                return (Answer(self.entries.get(path)),)
            case ListBelow(start):
                return (Answer(self._below(start)),)
            case Remove():
                return (Answer(bool(self.entries)),)
            case Seal():
                self._sealed = not self.entries
                return (Answer(self._sealed),)

    def _on_effect(self, event: EffectReceived) -> Commands:
        if (
            event.epoch != self.epoch
            or self._is_primary
            or not self._complete
            or event.number <= self._number
        ):
            return (Refuse("epoch", self.epoch),)
        self._number = event.number
        self._apply(event.effect)
        return (Confirm(),)

    def _apply(self, effect: Effect) -> None:
        if effect.path is not None and effect.entry is not None:
            self.entries[effect.path] = effect.entry
        for path in effect.dropped:
            self.entries.pop(path, None)

    def _below(self, start: str) -> list[str]:
        return sorted(path for path in self.entries if path.startswith(start))


# ---------------------------------------------------------------------------------------------- succession

Health = Literal["complete", "incomplete", "silent", "dead"]
"""What a member said when it was told the configuration; dead only when that is certain."""

Verdict = Literal["succeed", "unreachable", "lost"]


def succession(
    current: Configuration, health: Mapping[HolderId, Health]
) -> tuple[Verdict, tuple[HolderId, ...]]:
    """Return who may go on after `current` (complete members, in order), or why nobody may.

    All members must have been told `current` first. `lost`: every member that had the objects is dead. `unreachable`:
    one may live, and without it nothing can be said.
    """
    complete = tuple(member for member in current.members if health[member] == "complete")
    if complete:
        return "succeed", complete
    if any(health[member] == "silent" for member in current.members):
        return "unreachable", ()
    return "lost", ()
