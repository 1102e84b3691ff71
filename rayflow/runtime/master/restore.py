"""Which part of a checkpoint goes to which subtask, at whatever parallelism. Pure.

Operators are matched by uid. Keyed files go to every subtask whose key groups they overlap (each keeps its
own rows), list files whole to subtask `writer index % parallelism`, broadcast files to all. What was in flight goes
the way of keyed files where rows came by key, else that of list files. Sources restore
nothing themselves: their splits go back to the master's assignment. A source subtask resumes at the smallest
watermark that its operator's subtasks had.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from rayflow.graph.plan import JobGraph
from rayflow.model.errors import PlanError
from rayflow.model.ids import CheckpointId, JobId, SubtaskId
from rayflow.protocol.key_groups import KeyGroupRange, key_group_range
from rayflow.runtime.messages import RestoreInfo
from rayflow.state.manifest import Manifest, SplitState, StateFile


@dataclass(frozen=True, slots=True)
class RestorePoint:
    """A checkpoint to restore from. `location` is its directory's URL as stores are opened with, `path`
    the same for people; `foreign_job` is the job that wrote it, None for the job's own; `fallen_back`: newer ones were
    passed over."""

    manifest: Manifest
    location: str
    path: str
    foreign_job: JobId | None = None
    fallen_back: bool = False

    @property
    def checkpoint_id(self) -> CheckpointId:
        """The checkpoint's number."""
        return CheckpointId(self.manifest.checkpoint_id)

    def info(self, graph: JobGraph, subtask: SubtaskId) -> RestoreInfo:
        """Return what `subtask` restores."""
        return RestoreInfo(
            directory=self.location,
            checkpoint_id=self.checkpoint_id,
            files=_files_of(self.manifest, graph, subtask),
            rescaled=_is_rescaled(self.manifest, graph, subtask),
            fallen_back=self.fallen_back,
            foreign_job=self.foreign_job,
            watermark=self.manifest.watermarks.get(subtask.vertex),
        )

    def splits(self, uid: str) -> tuple[SplitState, ...]:
        """Return the recorded splits of the source `uid`."""
        return self.manifest.sources.get(uid, ())


def check_fits(manifest: Manifest, graph: JobGraph, path: str) -> None:
    """Raise PlanError where the checkpoint is of another job than `graph`: state nobody would take, or
    other key groups."""
    if manifest.max_parallelism != graph.max_parallelism:
        raise PlanError(
            f"checkpoint {path} has {manifest.max_parallelism} key groups, this job max_parallelism="
            f"{graph.max_parallelism}; state can be restored only with max_parallelism={manifest.max_parallelism}"
        )
    known = {op.uid for vertex in graph.vertices for op in vertex.operators}
    written = {file.uid for file in manifest.files} | manifest.sources.keys()
    for uid in sorted(written - known):
        nearest = difflib.get_close_matches(uid, sorted(known), n=1, cutoff=0.0)
        raise PlanError(
            f"checkpoint {path} has state of operator {uid!r}, which this job does not have "
            f"(nearest: {nearest[0]!r}); give the operator that shall take it .uid({uid!r})"
        )


def _is_rescaled(manifest: Manifest, graph: JobGraph, subtask: SubtaskId) -> bool:
    vertex = graph.vertex(subtask.vertex)
    then = {manifest.operators[op.uid] for op in vertex.operators if op.uid in manifest.operators}
    return not then <= {vertex.parallelism}


def _files_of(manifest: Manifest, graph: JobGraph, subtask: SubtaskId) -> tuple[StateFile, ...]:
    vertex = graph.vertex(subtask.vertex)
    uids = {op.uid for op in vertex.operators}
    own = key_group_range(graph.max_parallelism, vertex.parallelism, subtask.index)
    return tuple(
        file
        for file in manifest.files
        if file.uid in uids
        and (
            file.kind == "broadcast"
            or (
                own.overlaps(KeyGroupRange(*file.key_groups))
                if file.key_groups is not None
                else file.subtask_index % vertex.parallelism == subtask.index
            )
        )
    )
