"""What the actors of a job are started with. Small: a detached actor's arguments live in Ray's control store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rayflow.model.ids import JobId, SubtaskId

NAMESPACE = "rayflow"
"""The Ray namespace of all job managers."""


def manager_name(job_id: str) -> str:
    """Name of a job's manager actor in `NAMESPACE`."""
    return f"rayflow:{job_id}"


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
class SubtaskSpec:
    """What a subtask's process needs before its first deployment."""

    job_id: JobId
    subtask: SubtaskId
    code_paths: tuple[str, ...]
    token: str
    lease_s: float
