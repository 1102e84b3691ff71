"""What the actors of a job are started with. Small: a detached actor's arguments live in Ray's control store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayflow.model.ids import JobId, SubtaskId

NAMESPACE = "rayflow"
"""The Ray namespace of all job managers."""


def manager_name(job_id: str, seat: int = 0) -> str:
    """Name of a job's manager actor in `NAMESPACE`; seat 1 is its standby's (`standby`)."""
    return f"rayflow:{job_id}:standby" if seat else f"rayflow:{job_id}"


def worker_prefix(job_id: str) -> str:
    """What the names of a job's worker actors in `NAMESPACE` begin with."""
    return f"rayflow:{job_id}:worker:"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """A job as it is submitted, its graph apart. `config` is flat; `token` is the data plane's secret."""

    job_id: JobId
    name: str
    config: dict[str, Any]
    code_paths: tuple[str, ...]
    token: str
    restore_from: str | None = None
    allow_duplicates: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a subtask's process is started with, before it is known which subtask it will be."""

    job_id: JobId
    code_paths: tuple[str, ...]
    token: str
    lease_s: float
    reset_timeout_s: float
    heartbeat_interval_s: float
    heartbeat_timeout_s: float


@dataclass(frozen=True, slots=True)
class Located:
    """Where a worker is: its transport's address, its Ray node, its process.

    `subtask` is what it was when another job manager left it, None for one that never was any; `silent_ms`, how long
    ago that manager was last heard of. `stderr`: the file that the process's stderr goes to, empty where that is none.
    """

    address: str
    node_id: str
    pid: int
    subtask: SubtaskId | None = None
    silent_ms: int = 0
    stderr: str = ""
