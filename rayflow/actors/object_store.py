"""`rayobj://NAME[/PATH]`: an object store in the memory of a Ray cluster.

Theory of operation. Objects of one NAME are kept by a group of holder actors (`holder_group`, `object_holder`): on two
nodes, where there are two. A write returns when all members of the group have it; the death of a holder, of its
node, or of whoever wrote loses nothing, and a new holder on another node gets a copy of everything before it counts.
The rules are in `protocol.replication`. When the last object is removed the holders end.

What a cluster keeps dies with the cluster, and with one node only, with that node (`warning`).

Names are made of letters, digits, '-', '_' and '.'. Any process that is connected to the cluster can open a store.
"""

from __future__ import annotations

import re
import secrets
import threading
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import ray

from rayflow.actors.holder_group import HolderGroup
from rayflow.model.errors import ConfigError, StorageError
from rayflow.protocol.replication_messages import (
    Answer,
    Get,
    ListBelow,
    Operation,
    Put,
    Remove,
)
from rayflow.state.storage import (
    RAY_SCHEME,
    LocalStore,
    LostObjects,
    MissingObject,
    ObjectStore,
    checked_path,
    local_path,
    open_store,
)

_NAME = re.compile(r"[A-Za-z0-9._-]{1,60}")

_groups: dict[str, HolderGroup] = {}
_groups_lock = threading.Lock()


def open_any_store(url: str, options: Mapping[str, str]) -> ObjectStore:
    """Return the store at `url`, as `state.storage.open_store` does, `rayobj://` included."""
    if url.startswith(RAY_SCHEME):
        return RayObjectStore(url)
    store = open_store(url, options)
    return ClusterFolder(local_path(url)) if isinstance(store, LocalStore) else store


class ClusterFolder(LocalStore):
    """A folder as the processes of a cluster see it: the same one for all of them, it is hoped."""

    def warning(self) -> str | None:
        """Return what to know before relying on this store; None if nothing."""
        machines = {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}
        if len(machines) < 2:
            return None
        return (
            f"checkpoint.storage is {self.url}, and the cluster has {len(machines)} machines: it must be a folder that "
            "all of them share; else set it to s3://… or rayobj://…"
        )


class RayObjectStore:
    """Objects of a group below a prefix."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url, allow_fragments=False)
        if not _NAME.fullmatch(parts.netloc):
            raise ConfigError(
                f"{url!r}: expected {RAY_SCHEME}NAME or {RAY_SCHEME}NAME/PATH, NAME of letters, digits, '-', '_', '.'"
            )
        self._name = parts.netloc
        self._prefix = parts.path.strip("/")
        self._start = f"{self._prefix}/" if self._prefix else ""
        with _groups_lock:
            self._group = _groups.setdefault(self._name, HolderGroup(self._name))

    @property
    def url(self) -> str:
        """`rayobj://name`, and the path below it."""
        return f"{RAY_SCHEME}{self._name}/{self._prefix}".rstrip("/")

    def write(self, path: str, data: bytes) -> None:
        """Have every holder keep a copy."""
        self._ask("write", path, Put(self._key(path), None, secrets.token_hex(8)), bytes(data))

    def create(self, path: str, data: bytes) -> bool:
        """Have every holder keep a copy, unless there is an object."""
        operation = Put(self._key(path), None, secrets.token_hex(8), create=True)
        return bool(self._ask("create", path, operation, bytes(data))[0])

    def read(self, path: str) -> bytes:
        """Get it from the primary."""
        _, data = self._ask("read", path, Get(self._key(path)))
        if data is None:
            raise MissingObject(f"{self.url}/{path} does not exist")
        return data

    def list(self, prefix: str) -> list[str]:
        """Ask the primary."""
        found, _ = self._ask("list", prefix, ListBelow(self._below(prefix)))
        return [key[len(self._start) :] for key in found or []]

    def delete(self, path: str) -> None:
        """Have every holder drop it."""
        self._ask("delete", path, Remove(self._key(path)))

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """Have every holder drop them, one after the other."""
        for path in paths:
            self.delete(path)

    def delete_prefix(self, prefix: str) -> None:
        """Have every holder drop what is there; holders that have nothing left end."""
        left, _ = self._ask("delete", prefix, Remove(self._below(prefix), below=True))
        if left is False:
            self._guarded("delete", prefix, self._group.end_if_empty)

    def warning(self) -> str | None:
        """Return what to know before relying on this store; None if nothing."""
        return self._group.warning()

    def forget_lost(self) -> bool:
        """Let a store begin anew whose holders all died; return whether it was one."""
        try:
            self._group.ask(ListBelow(""))
        except LostObjects:
            self._group.forget()
            return True
        return False

    def _ask(
        self, verb: str, path: str, operation: Operation, data: bytes | None = None
    ) -> tuple[Any, bytes | None]:
        reply = self._guarded(verb, path, lambda: self._group.ask(operation, data))
        if reply is None:
            return None, None
        assert isinstance(reply.outcome, Answer), reply
        return reply.outcome.result, reply.data

    def _guarded(self, verb: str, path: str, act: Any) -> Any:
        where = f"{self.url}/{path}".rstrip("/")
        if not ray.is_initialized():
            raise StorageError(
                f"cannot {verb} {where}: this process is not connected to a Ray cluster; give --address"
            )
        try:
            return act()
        except LostObjects as error:
            raise LostObjects(f"cannot {verb} {where}: {error}") from None
        except (StorageError, ray.exceptions.RayError) as error:
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise StorageError(f"cannot {verb} {where}: {first}") from None

    def _key(self, path: str) -> str:
        return self._start + checked_path(path)

    def _below(self, prefix: str) -> str:
        stripped = prefix.rstrip("/")
        return self._start + (checked_path(stripped) + "/" if stripped else "")
