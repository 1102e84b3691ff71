"""From the role that a fault names to the processes that have it now. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["subtask", "jobmanager"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A process of the job, on the Ray node `node_id`; `pid` is what it has there."""

    role: Role
    name: str
    pid: int
    node_id: str


def processes(description: Mapping[str, Any]) -> list[Process]:
    """Return the job's processes that are up, its manager last. `description` is what `JobHandle.describe` returns."""
    found = [
        Process(
            role="subtask",
            name=subtask_name(subtask),
            pid=subtask["pid"],
            node_id=subtask["node_id"],
        )
        for subtask in description["subtasks"]
        if subtask["pid"] is not None and subtask["node_id"] is not None
    ]
    manager = description["job_manager"]
    if manager["pid"] is not None and manager["node_id"]:
        found.append(
            Process(role="jobmanager", name="jobmanager", pid=manager["pid"], node_id=manager["node_id"])
        )
    return found


def subtask_name(subtask: Mapping[str, Any]) -> str:
    """Return what a target calls a subtask, after `subtask:`."""
    return f"{subtask['operator']}[{subtask['index']}]"


def subtask_targets(description: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the targets of all subtasks, whether they are up or not."""
    return tuple(f"subtask:{subtask_name(subtask)}" for subtask in description["subtasks"])


def victims(target: str, description: Mapping[str, Any]) -> list[Process]:
    """Return the processes that have the role, none where they are not up. Not for nodes."""
    found = processes(description)
    if target in ("all", "storage"):
        return found
    role, _, name = target.partition(":")
    return [p for p in found if p.role == role and p.name == (name or p.name)]


def node_of(target: str, description: Mapping[str, Any], killable: Sequence[str]) -> str | None:
    """Return the id of the node that `node:N` means: among `killable`, in their order, those that run a process of
    the job. None if there is none."""
    used = {process.node_id for process in processes(description)}
    candidates = [node for node in killable if node in used]
    return candidates[int(target.partition(":")[2]) % len(candidates)] if candidates else None
