"""Jobs by id or name: those that run on the cluster at hand, and those whose metadata is stored."""

from __future__ import annotations

import difflib
from typing import Any

from rayflow.client.handle import JobHandle
from rayflow.client.ray_session import open_session
from rayflow.client.registry import JobRecord, records
from rayflow.client.stored_job import StoredJob
from rayflow.model.errors import ConfigError, StorageError

_CALL_TIMEOUT_S = 10.0


class Client:
    """Access to this user's jobs. `cluster` is the address of the Ray at hand, None without one."""

    def __init__(self, cluster: str | None) -> None:
        self._cluster = cluster

    def jobs(self) -> list[dict[str, Any]]:
        """Return `job_id`, `name`, `state`, `attempt` and `started_at` of every job, oldest first."""
        return [self._summary(record) for record in records()]

    def job(self, id_or_name: str) -> JobHandle:
        """Return the job of that id, else the newest of that name. ConfigError if there is none."""
        known = records()
        found = [r for r in known if r.job_id == id_or_name] or [r for r in known if r.name == id_or_name]
        if not found:
            names = [n for r in known for n in (r.job_id, r.name)]
            near = difflib.get_close_matches(id_or_name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else "; `rayflow list` shows all"
            raise ConfigError(f"there is no job {id_or_name!r}{hint}")
        return JobHandle(found[-1], self._manager(found[-1]), self._cluster)

    def _summary(self, record: JobRecord) -> dict[str, Any]:
        summary = {"job_id": record.job_id, "name": record.name}
        try:
            description = JobHandle(record, self._manager(record), self._cluster).describe()
            started_at = (StoredJob(record, self._cluster).document() or {}).get("started_at")
        except StorageError as e:
            return {**summary, "state": f"UNKNOWN ({e})", "attempt": None, "started_at": None}
        kept = {key: description[key] for key in ("state", "attempt")}
        return {**summary, **kept, "started_at": started_at}

    def _manager(self, record: JobRecord) -> Any | None:
        if self._cluster is None:
            return None
        import ray

        from rayflow.actors.specs import NAMESPACE, manager_name

        try:
            return ray.get_actor(manager_name(record.job_id), namespace=NAMESPACE)
        except ValueError:
            return None


def connect(address: str | None = None) -> Client:
    """Return access to jobs. Without any cluster only stored metadata is there, and none is started.

    TransientError where the cluster that was asked for cannot be reached.
    """
    session = open_session(address, may_start=False)
    return Client(None if session is None else session.address)
