"""An ended job, as its metadata on checkpoint storage tells it."""

from __future__ import annotations

import functools
import json
import os
import socket
from typing import Any
from urllib.parse import unquote

from rayflow.client.registry import JobRecord
from rayflow.client.stores import open_any_store
from rayflow.model.config import JobConfig, with_environment
from rayflow.model.errors import StorageError
from rayflow.state.storage import RAY_SCHEME, MissingObject, ObjectStore, join_url

_LISTENS_S = 0.5


class StoredJob:
    """Reads a job's directory afresh with each call; StorageError where that cannot be done. `cluster` is the address
    of the Ray at hand, None without one."""

    def __init__(self, record: JobRecord, cluster: str | None) -> None:
        self._record = record
        self._cluster = cluster

    def document(self) -> dict[str, Any] | None:
        """Return job.json; None if the job never got so far."""
        try:
            document: dict[str, Any] = json.loads(self._store.read(f"{self._record.job_id}/job.json"))
        except MissingObject:
            return None
        return document

    def events(self, since: int) -> list[dict[str, Any]]:
        """Return the events numbered `since` and up, oldest first."""
        try:
            lines = self._store.read(f"{self._record.job_id}/events.jsonl").splitlines()
        except MissingObject:
            return []
        return [event for event in map(json.loads, lines) if event["seq"] >= since]

    def logs(self) -> dict[str, str]:
        """Return what each process said, by process."""
        folder = f"{self._record.job_id}/logs"
        return {
            unquote(path.rpartition("/")[2].removesuffix(".log")): self._store.read(path).decode()
            for path in self._store.list(folder)
        }

    @property
    def folder(self) -> str:
        """Where all of it lies."""
        return join_url(self._record.storage, self._record.job_id)

    @property
    def options(self) -> dict[str, str]:
        """What the storage is opened with."""
        return JobConfig.from_flat(with_environment(self._record.options, os.environ)).storage_options

    @property
    def _store(self) -> ObjectStore:
        record = self._record
        if record.storage.startswith(RAY_SCHEME) and record.cluster != self._cluster:
            where = f"in the memory of the job's Ray cluster, {record.cluster}"
            if record.is_gone_from(self._cluster) or _nobody_listens(record.cluster):
                raise StorageError(f"its storage is gone: {record.storage} was {where}, which has ended")
            raise StorageError(
                f"its storage {record.storage} is {where}, which is not at hand: give its --address"
            )
        return open_any_store(self._record.storage, self.options)


@functools.lru_cache(maxsize=64)
def _nobody_listens(address: str) -> bool:
    """Whether there certainly is no cluster at `address` any more: its machine answers that the port is closed."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_LISTENS_S).close()
    except ConnectionRefusedError:
        return True
    except (OSError, ValueError):
        return False
    return False
