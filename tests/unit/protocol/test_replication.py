"""Replicated objects: decisions of one holder, then groups of them among crashes, losses and rival clients."""

from __future__ import annotations

import random
from collections.abc import Generator
from typing import Any

import pytest

from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.replication import Holder, succession
from rayflow.protocol.replication_messages import (
    Answer,
    Command,
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
    Get,
    HolderId,
    ListBelow,
    MemberConfirmed,
    MemberFailed,
    OperationAsked,
    Put,
    Refuse,
    Remove,
    Seal,
    SendEffect,
)

A, B, C = HolderId("a"), HolderId("b"), HolderId("c")


def founded(me: HolderId, *members: HolderId) -> Holder:
    holder = Holder(me)
    assert holder.handle(ConfigurationTold(Configuration(1, members, founded=True))) == ()
    return holder


def alone() -> Holder:
    return founded(A, A)


def ask(holder: Holder, operation: Any) -> Any:
    (answer,) = holder.handle(OperationAsked(holder.epoch, operation))
    assert isinstance(answer, Answer), answer
    return answer.result


def test_a_holder_alone_answers_at_once() -> None:
    holder = alone()
    assert ask(holder, Put("a/x", 1, "op1")) is True
    assert ask(holder, Put("a/y", 2, "op2")) is True
    assert ask(holder, Get("a/x")) == Entry(1, "op1")
    assert ask(holder, Get("nothing")) is None
    assert ask(holder, ListBelow("a/")) == ["a/x", "a/y"]
    assert ask(holder, Remove("a/x")) is True
    assert ask(holder, Remove("a/", below=True)) is False
    assert ask(holder, ListBelow("")) == []


def test_a_creation_succeeds_for_one_operation_however_often_that_is_asked() -> None:
    holder = alone()
    assert ask(holder, Put("x", 1, "op1", create=True)) is True
    assert ask(holder, Put("x", 2, "op2", create=True)) is False
    assert ask(holder, Put("x", 1, "op1", create=True)) is True
    assert ask(holder, Get("x")) == Entry(1, "op1")


def test_nothing_takes_effect_or_is_answered_before_every_member_confirmed() -> None:
    holder = founded(A, A, B, C)
    entry = Entry(1, "op")
    assert holder.handle(OperationAsked(1, Put("x", 1, "op"))) == tuple(
        SendEffect(member, 1, 1, Effect(path="x", entry=entry)) for member in (B, C)
    )
    assert holder.handle(MemberConfirmed(1, B)) == ()
    assert holder.handle(MemberConfirmed(1, B)) == ()
    assert holder.entries == {}
    assert holder.handle(MemberConfirmed(1, C)) == (Answer(True),)
    assert holder.entries == {"x": entry}


def test_a_read_is_confirmed_too() -> None:
    holder = founded(A, A, B)
    assert holder.handle(OperationAsked(1, Get("x"))) == (SendEffect(B, 1, 1, Effect()),)
    assert holder.handle(MemberFailed(1, B)) == (Refuse("unconfirmed", 1, B),)
    assert holder.handle(MemberConfirmed(1, B)) == ()


def test_an_unconfirmed_operation_leaves_the_primary_as_it_was() -> None:
    holder = founded(A, A, B)
    holder.handle(OperationAsked(1, Put("x", 1, "op")))
    holder.handle(MemberFailed(1, B))
    assert holder.entries == {}
    (sent,) = holder.handle(OperationAsked(1, Put("x", 2, "op2", create=True)))
    assert sent == SendEffect(B, 1, 2, Effect(path="x", entry=Entry(2, "op2")))


def test_an_effect_that_arrives_late_does_nothing() -> None:
    backup = founded(B, A, B)
    assert backup.handle(EffectReceived(1, 2, Effect(path="x", entry=Entry(2, "op2")))) == (Confirm(),)
    late = EffectReceived(1, 1, Effect(path="x", entry=Entry(1, "op1")))
    assert backup.handle(late) == (Refuse("epoch", 1),)
    assert backup.entries == {"x": Entry(2, "op2")}


def test_only_the_serving_primary_of_the_epoch_answers() -> None:
    assert founded(B, A, B).handle(OperationAsked(1, Get("x"))) == (Refuse("not primary", 1),)
    assert founded(A, A).handle(OperationAsked(2, Get("x"))) == (Refuse("epoch", 1),)
    assert Holder(A).handle(OperationAsked(1, Get("x"))) == (Refuse("epoch", 0),)
    holder = alone()
    holder.handle(ConfigurationTold(Configuration(2, (A, B))))
    assert holder.handle(OperationAsked(2, Get("x"))) == (Refuse("not serving", 2),)


def test_a_member_of_a_later_epoch_confirms_nothing_of_an_earlier_one() -> None:
    backup = founded(B, A, B)
    backup.handle(ConfigurationTold(Configuration(2, (B, C))))
    assert backup.handle(EffectReceived(1, 1, Effect())) == (Refuse("epoch", 2),)
    backup.handle(ConfigurationTold(Configuration(1, (A, B), founded=True)))
    assert backup.epoch == 2


def test_a_successor_serves_only_when_the_fresh_member_has_a_whole_copy() -> None:
    #   A, B founded; A dies; epoch 2 is (B, C): C gets a copy, and counts from then on
    primary, fresh = founded(B, A, B), Holder(C)
    primary.handle(EffectReceived(1, 1, Effect(path="x", entry=Entry(1, "op"))))
    second = Configuration(2, (B, C))
    assert primary.handle(ConfigurationTold(second)) == (CopyAll(C, second),)
    assert not primary.serving
    assert fresh.handle(ConfigurationTold(second)) == ()
    assert not fresh.complete
    assert fresh.handle(CopyBegun(second)) == (Confirm(),)
    assert fresh.handle(EffectReceived(2, 1, Effect())) == (Refuse("epoch", 2),)
    assert fresh.handle(CopyEnded(2, frozenset({"x"}))) == (Refuse("epoch", 2),)
    assert fresh.handle(EntryCopied(2, "x", Entry(1, "op"))) == (Confirm(),)
    assert fresh.handle(CopyEnded(2, frozenset({"x"}))) == (Confirm(),)
    assert fresh.complete
    assert primary.handle(MemberConfirmed(2, C)) == ()
    assert primary.serving


def test_a_copy_that_failed_is_made_again_when_the_configuration_is_told_again() -> None:
    primary, second = founded(A, A), Configuration(2, (A, B))
    primary.handle(ConfigurationTold(second))
    assert primary.handle(MemberFailed(2, B)) == ()
    assert not primary.serving
    assert primary.handle(ConfigurationTold(second)) == (CopyAll(B, second),)


def test_an_empty_group_can_be_sealed_and_one_with_objects_cannot() -> None:
    holder = alone()
    ask(holder, Put("x", 1, "op"))
    assert ask(holder, Seal()) is False
    ask(holder, Remove("x"))
    assert ask(holder, Seal()) is True
    assert holder.handle(OperationAsked(1, Put("y", 1, "op"))) == (Refuse("sealed", 1),)


def test_a_holder_with_objects_never_founds_a_group() -> None:
    holder = alone()
    with pytest.raises(ProtocolViolation, match="has objects"):
        holder.handle(ConfigurationTold(Configuration(2, (A,), founded=True)))


def test_who_succeeds() -> None:
    current = Configuration(3, (A, B, C))
    assert succession(current, {A: "dead", B: "complete", C: "complete"}) == ("succeed", (B, C))
    assert succession(current, {A: "dead", B: "incomplete", C: "silent"}) == ("unreachable", ())
    assert succession(current, {A: "dead", B: "incomplete", C: "dead"}) == ("lost", ())


# ------------------------------------------------------------------------------- groups under faults

Step = Generator[None, None, Any]


class Unanswered(Exception):
    """A call whose outcome its caller does not know."""


class World:
    """Holders in processes that do one thing at a time, calls that get lost both ways or come late, crashes, a
    registry; all by one seed. A call is a generator: between its steps anything else may happen."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.registry: dict[int, Configuration] = {}
        self.holders: dict[HolderId, Holder] = {}
        self.dead: set[HolderId] = set()
        self.busy: set[HolderId] = set()
        self.late: list[tuple[HolderId, Any]] = []
        self.loss = self.chance.choice([0.0, 0.05, 0.2])
        self.replicas = self.chance.choice([2, 3])
        self.crashes = self.chance.choice([0, 1, 3])

    def latest(self) -> Configuration:
        return self.registry[max(self.registry)] if self.registry else Configuration(0, ())

    def propose(self, configuration: Configuration) -> Configuration:
        return self.registry.setdefault(configuration.epoch, configuration)

    def fresh(self) -> HolderId:
        me = HolderId(f"h{len(self.holders)}")
        self.holders[me] = Holder(me)
        return me

    def lost(self) -> bool:
        return self.chance.random() < self.loss

    def call(self, to: HolderId, event: Any) -> Step:
        """Have `to` handle an event, and what follows from it; return its last command."""
        yield
        if self.lost():
            if self.chance.random() < 0.5:
                self.late.append((to, event))
            raise Unanswered
        if isinstance(event, OperationAsked | ConfigurationTold):
            result = yield from self.take_turns(to, event)
        elif to in self.dead:
            raise Unanswered
        else:
            # What holders send each other is not kept waiting.
            result = yield from self.process(to, event)
        yield
        if to in self.dead or self.lost():
            raise Unanswered
        return result

    def take_turns(self, to: HolderId, event: Any) -> Step:
        while to in self.busy:
            yield
            if self.lost():
                raise Unanswered
        if to in self.dead:
            raise Unanswered
        self.busy.add(to)
        try:
            return (yield from self.process(to, event))
        finally:
            self.busy.discard(to)

    def process(self, me: HolderId, event: Any) -> Step:
        last: Command | None = None
        commands = list(self.holders[me].handle(event))
        while commands:
            command = commands.pop(0)
            if me in self.dead:
                raise Unanswered
            if isinstance(command, SendEffect):
                sent = EffectReceived(command.epoch, command.number, command.effect)
                reply = yield from self.confirmed(command.member, command.epoch, [sent])
                commands += self.holders[me].handle(reply)
            elif isinstance(command, CopyAll):
                entries = self.holders[me].entries
                epoch = command.configuration.epoch
                copy = [EntryCopied(epoch, path, entry) for path, entry in entries.items()]
                events = [CopyBegun(command.configuration), *copy, CopyEnded(epoch, frozenset(entries))]
                reply = yield from self.confirmed(command.member, epoch, events)
                commands += self.holders[me].handle(reply)
            else:
                last = command
        return last

    def confirmed(self, member: HolderId, epoch: int, events: list[Any]) -> Step:
        try:
            for event in events:
                if not isinstance((yield from self.call(member, event)), Confirm):
                    return MemberFailed(epoch, member)
        except Unanswered:
            return MemberFailed(epoch, member)
        return MemberConfirmed(epoch, member)

    # ------------------------------------------------------------------------------- a client

    def operate(self, operation: Any, known: list[Configuration]) -> Step:
        """Ask until it is answered, replacing whoever does not. `known` is what this client last read."""
        for _ in range(40):
            if not known or self.chance.random() < 0.3:
                known[:] = [self.latest()]
            current = known[0]
            if not current.members:
                self.found(current)
                known.clear()
                continue
            try:
                answer = yield from self.call(current.members[0], OperationAsked(current.epoch, operation))
            except Unanswered:
                answer = None
            if isinstance(answer, Answer):
                return answer.result
            if isinstance(answer, Refuse) and answer.reason == "sealed":
                self.found(current)
            elif self.latest() == current:
                yield from self.replace(current)
            known.clear()
        raise Unanswered

    def found(self, current: Configuration) -> None:
        members = tuple(self.fresh() for _ in range(self.replicas))
        self.propose(Configuration(current.epoch + 1, members, founded=True))

    def replace(self, current: Configuration) -> Step:
        health: dict[HolderId, Any] = {}
        for member in current.members:
            try:
                yield from self.call(member, ConfigurationTold(current))
                health[member] = "complete" if self.holders[member].complete else "incomplete"
            except Unanswered:
                health[member] = "dead" if member in self.dead else "silent"
            if self.chance.random() < 0.2:
                health[member] = "silent"  # it lives, and is taken for cut off
        verdict, survivors = succession(current, health)
        if verdict == "succeed" and (len(survivors) < self.replicas or self.chance.random() < 0.1):
            fresh = tuple(self.fresh() for _ in range(self.replicas - len(survivors)))
            self.propose(Configuration(current.epoch + 1, (*survivors, *fresh)))

    # ------------------------------------------------------------------------------- time

    def run(self, clients: list[Step]) -> None:
        """Let clients take steps in any order, holders crash, late calls arrive."""
        running = list(clients)
        for _ in range(20_000):
            if not running:
                return
            client = self.chance.choice(running)
            try:
                next(client)
            except StopIteration:
                running.remove(client)
            if self.crashes and self.chance.random() < 0.01:
                self.crash()
            if self.late and self.chance.random() < 0.2:
                self.arrive()

    def crash(self) -> None:
        alive = [member for member in self.latest().members if member not in self.dead]
        if alive:
            self.crashes -= 1
            self.dead.add(self.chance.choice(alive))

    def arrive(self) -> None:
        to, event = self.late.pop(0)
        if to not in self.dead and isinstance(event, EffectReceived | EntryCopied):
            self.holders[to].handle(event)


class History:
    """What clients saw, and what that must be like."""

    def __init__(self) -> None:
        self.owners: dict[str, str] = {}
        self.acknowledged = 0
        self.seen = 0

    def create(self, world: World, path: str, by: str) -> Step:
        known: list[Configuration] = []
        try:
            mine = yield from world.operate(Put(path, by, by, create=True), known)
            if mine:
                assert self.owners.setdefault(path, by) == by, f"{path} was created twice (invariant 6)"
            entry = yield from world.operate(Get(path), known)
        except Unanswered:
            return
        assert entry is not None, f"{path} exists, said a holder, and is gone (invariant 3)"
        assert entry.value == self.owners.setdefault(path, entry.value), "another one has it now"

    def count(self, world: World) -> Step:
        known: list[Configuration] = []
        for number in range(1, 8):
            try:
                yield from world.operate(Put("counter", number, f"count-{number}"), known)
            except Unanswered:
                return
            self.acknowledged = number

    def watch(self, world: World) -> Step:
        known: list[Configuration] = []
        for _ in range(8):
            least = max(self.acknowledged, self.seen)
            try:
                entry = yield from world.operate(Get("counter"), known)
            except Unanswered:
                return
            found = 0 if entry is None else entry.value
            assert found >= least, f"read {found} after {least} (invariants 2, 3)"
            self.seen = max(self.seen, found)


@pytest.mark.parametrize("seeds", [range(start, start + 100) for start in range(0, 500, 100)])
def test_groups_lose_nothing_and_agree_whatever_fails(seeds: range) -> None:
    for seed in seeds:
        world, history = World(seed), History()
        claims = [history.create(world, f"claim-{n}", f"client-{c}") for n in range(3) for c in range(3)]
        try:
            world.run([*claims, history.count(world), history.watch(world)])
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}") from error
