"""A group of holders, as its clients see it: asks the primary, and replaces members that do not answer.

The registry is Ray's control store: one key per epoch, put only where there is none. Every client may propose the next
configuration; fresh holders have names made of group, epoch and place, so that clients who try at once start
each of them once.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.actors.holder_calls import (
    Handles,
    HolderDied,
    HolderStatus,
    NoAnswer,
    name_of,
    node_of,
    wait_for,
)
from rayflow.actors.object_holder import ObjectHolder, Reply
from rayflow.actors.specs import NAMESPACE
from rayflow.model.errors import StorageError
from rayflow.protocol.replication import Health, succession
from rayflow.protocol.replication_messages import (
    Answer,
    Configuration,
    HolderId,
    Operation,
    Put,
    Seal,
)
from rayflow.state.storage import LostObjects

REPLICAS = 2
GIVE_UP_S = 90.0
"""An operation that is not answered by then is an error; more than replacing a holder takes on a busy machine."""

_START_S = 60.0
_PAUSE_S = 0.2
_KEPT_EPOCHS = 8


class HolderGroup:
    """The group called `name`. Any thread."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._handles = Handles()
        self._replacing = threading.Lock()
        self._known: Configuration | None = None

    @property
    def known(self) -> Configuration:
        """The configuration as last read; read now, if never."""
        if self._known is None:
            self._known = self.read()
        return self._known

    def read(self) -> Configuration:
        """Return the newest configuration; epoch 0 if there never was one."""
        keys = internal_kv._internal_kv_list(self._key(None), namespace=_KV)
        if not keys:
            return Configuration(0, ())
        newest = max(keys)
        found = internal_kv._internal_kv_get(newest, namespace=_KV)
        return self.read() if found is None else _decoded(found)

    def ask(self, operation: Operation, data: bytes | None = None) -> Reply | None:
        """Have the primary carry out `operation`; None where there is no group, and the operation needs none.

        Raises StorageError where nobody answers in time, LostObjects where nobody ever will.
        """
        given_up_s = time.monotonic() + GIVE_UP_S
        trouble = "no holder could be started"
        while time.monotonic() < given_up_s:
            current = self.known
            if not current.members:
                if not isinstance(operation, Put):
                    self._known = None
                    return None
                self._found(current)
                continue
            try:
                reply = self._asked(current, operation, data)
            except NoAnswer as error:
                trouble = str(error)
            else:
                if isinstance(reply.outcome, Answer):
                    return reply
                if reply.full is not None:
                    raise StorageError(reply.full)
                trouble = f"{name_of(current.members[0])} refused: {reply.outcome.reason}"
                if reply.outcome.reason == "sealed":
                    self._found(current)
                    continue
            self._known = self.read()
            if self._known == current:
                self._replace(current)
            time.sleep(_PAUSE_S)
        raise StorageError(f"no answer within {GIVE_UP_S:.0f} s; last: {trouble}")

    def end_if_empty(self) -> None:
        """End all holders, if they have nothing left."""
        current = self.known
        reply = self.ask(Seal())
        if reply is not None and isinstance(reply.outcome, Answer) and reply.outcome.result:
            self._propose(Configuration(current.epoch + 1, ()))
            self._end(set(current.members))

    def forget(self) -> None:
        """Give up what was lost: the group begins anew, empty, with the next write."""
        current = self.read()
        self._propose(Configuration(current.epoch + 1, ()))
        self._end(set(current.members))

    def look_after(self, me: HolderId) -> bool:
        """Replace dead members, add missing ones; return whether `me` is a member."""
        current = self._known = self.read()
        if me not in current.members:
            return False
        if len(current.members) < min(REPLICAS, len(_nodes())) or not self._all_well(current):
            self._replace(current)
        return True

    def warning(self) -> str | None:
        """Return what to know before relying on this group; None if nothing."""
        if len(_nodes()) >= REPLICAS:
            return None
        return (
            "the cluster has one node: state on rayobj:// does not survive that node; "
            "add a node, or set checkpoint.storage to file:// or s3://"
        )

    # ------------------------------------------------------------------------------- members

    def _asked(self, current: Configuration, operation: Operation, data: bytes | None) -> Reply:
        primary = self._handles.get(current.members[0])
        reply: Reply = wait_for(primary.ask.remote(current.epoch, operation, data), primary)
        return reply

    def _found(self, current: Configuration) -> None:
        """Begin a group, or begin it anew, after `current`."""
        with self._replacing:
            if (latest := self.read()) == current:
                fresh = self._start(current.epoch + 1, set(), set())
                if not fresh:
                    raise StorageError("no node of the cluster could start a holder")
                latest = self._propose(Configuration(current.epoch + 1, fresh, founded=True))
                self._tell(latest)
            self._known = latest

    def _replace(self, current: Configuration) -> None:
        """See that there is a configuration in which all members answer, and enough of them."""
        with self._replacing:
            if (latest := self.read()) != current:
                self._known = latest
                return
            health = self._tell(current)
            verdict, survivors = succession(current, health)
            if verdict == "lost":
                raise LostObjects(
                    f"all holders are dead ({', '.join(map(name_of, current.members))}), and the objects with "
                    "them; `rayflow state rm` of the whole store lets it begin anew, empty"
                )
            wanted = min(REPLICAS, len(_nodes()))
            if verdict == "unreachable" or (survivors == current.members and len(survivors) >= wanted):
                return
            suspects = {node_of(m) for m in current.members if m not in survivors}
            taken = {node_of(m) for m in survivors}
            fresh = self._start(current.epoch + 1, taken, suspects) if len(survivors) < REPLICAS else ()
            if survivors == current.members and not fresh:
                return
            latest = self._propose(Configuration(current.epoch + 1, (*survivors, *fresh)))
            self._tell(latest)
            self._end(set(current.members) - set(latest.members))
            self._known = latest

    def _tell(self, configuration: Configuration) -> dict[HolderId, Health]:
        """Tell all members the configuration, the primary last, since it copies to the others."""
        health: dict[HolderId, Health] = {}
        for member in reversed(configuration.members):
            try:
                actor = self._handles.get(member)
                status: HolderStatus = wait_for(actor.tell.remote(configuration), actor)
                health[member] = "complete" if status.complete else "incomplete"
            except HolderDied:
                health[member] = "dead"
            except NoAnswer:
                health[member] = "silent"
        return health

    def _all_well(self, current: Configuration) -> bool:
        try:
            found = [wait_for(a.status.remote(), a) for a in map(self._handles.get, current.members)]
        except NoAnswer:
            return False
        return found[0].serving and all(s.complete and s.epoch == current.epoch for s in found)

    def _start(self, epoch: int, taken: set[str], suspects: set[str]) -> tuple[HolderId, ...]:
        """Start fresh holders on nodes that have none, suspects last; return those that came up."""
        free = [node for node in self._preferred() if node not in taken]
        trusted = [n for n in free if n not in suspects] or ([] if taken else free)
        wanted = trusted[: REPLICAS - len(taken)]
        actors = [self._started(epoch, place, node) for place, node in enumerate(wanted)]
        return tuple(holder for holder in map(_located, actors) if holder is not None)

    def _preferred(self) -> list[str]:
        """Living nodes, the head last, else in an order that differs by group."""
        heads = {node["NodeID"] for node in ray.nodes() if _HEAD in node["Resources"]}
        return sorted(_nodes(), key=lambda n: (n in heads, sha256(f"{self._name} {n}".encode()).digest()))

    def _started(self, epoch: int, place: int, node: str) -> Any:
        name = f"rayflow-store:{self._name}:{epoch}.{place}"
        options = {
            "name": name,
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "get_if_exists": True,
            "num_cpus": 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
        }
        actor = ray.remote(concurrency_groups={"status": 1, "peers": 1})(ObjectHolder)
        return actor.options(**options).remote(self._name, name)

    def _end(self, members: set[HolderId]) -> None:
        for member in sorted(members):
            try:
                ray.kill(self._handles.get(member), no_restart=True)
            except HolderDied:
                continue

    # ------------------------------------------------------------------------------- registry

    def _propose(self, configuration: Configuration) -> Configuration:
        """Return what the registry has for this epoch: this configuration, or that of whoever was faster."""
        key, value = self._key(configuration.epoch), json.dumps(asdict(configuration)).encode()
        internal_kv._internal_kv_put(key, value, overwrite=False, namespace=_KV)
        old = self._key(configuration.epoch - _KEPT_EPOCHS)
        internal_kv._internal_kv_del(old, namespace=_KV)
        found = internal_kv._internal_kv_get(key, namespace=_KV)
        self._known = configuration if found is None else _decoded(found)
        return self._known

    def _key(self, epoch: int | None) -> bytes:
        # A name holds no '/': see object_store. Fixed width, so that the newest sorts last.
        return f"{self._name}/{'' if epoch is None else f'{epoch:010d}'}".encode()


_KV = b"rayflow-store"
_HEAD = "node:__internal_head__"


def _decoded(value: bytes) -> Configuration:
    document = json.loads(value)
    members = tuple(HolderId(member) for member in document["members"])
    return Configuration(document["epoch"], members, document["founded"])


def _located(actor: Any) -> HolderId | None:
    """Return who a starting holder is; None if it does not come up."""
    try:
        ready, _ = ray.wait([first := actor.status.remote()], timeout=_START_S)
        status: HolderStatus | None = wait_for(first, actor) if ready else None
    except NoAnswer:
        return None
    return None if status is None else status.holder


def _nodes() -> Sequence[str]:
    """Ids of the nodes that live, as far as Ray knows, in a fixed order."""
    return sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
