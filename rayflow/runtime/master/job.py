"""What never changes about a job, in the forms the master needs it in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rayflow.graph.execution import output_channels, subtasks, subtasks_of
from rayflow.graph.plan import JobGraph, JobVertex, OperatorSpec
from rayflow.model.config import JobConfig
from rayflow.model.errors import ConfigError
from rayflow.model.ids import Attempt, CheckpointId, JobId, SubtaskId
from rayflow.operators.contracts import Sink, SinkContext


@dataclass(frozen=True)
class Job:
    """A job's graph and configuration. Order of every collection is that of the graph."""

    job_id: JobId
    graph: JobGraph
    flat: dict[str, Any]
    config: JobConfig

    @staticmethod
    def of(job_id: JobId, graph: JobGraph, flat: dict[str, Any]) -> Job:
        """Parse the configuration; ConfigError where it is wrong or names no checkpoint storage."""
        config = JobConfig.from_flat(flat)
        if config.checkpoint_storage is None:
            raise ConfigError("a job master needs checkpoint.storage: expected a URL such as file:///path")
        return Job(job_id, graph, flat, config)

    @cached_property
    def subtasks(self) -> tuple[SubtaskId, ...]:
        """Every subtask."""
        return tuple(subtasks(self.graph))

    @cached_property
    def sources(self) -> tuple[JobVertex, ...]:
        """The vertices that begin with a source."""
        return tuple(vertex for vertex in self.graph.vertices if vertex.is_source)

    @cached_property
    def source_subtasks(self) -> tuple[SubtaskId, ...]:
        """The subtasks that checkpoints are triggered at."""
        return tuple(s for vertex in self.sources for s in subtasks_of(self.graph, vertex.id))

    @cached_property
    def sinks(self) -> tuple[tuple[JobVertex, OperatorSpec], ...]:
        """Every sink operator, and its vertex."""
        return tuple((v, op) for v in self.graph.vertices for op in v.operators if op.kind == "sink")

    @cached_property
    def transactional_uids(self) -> frozenset[str]:
        """Uids of the sinks that stage transactions."""
        return frozenset(op.uid for _, op in self.sinks if type(op.payload).prepare is not Sink.prepare)

    def vertex_of(self, subtask: SubtaskId) -> JobVertex:
        """Return the vertex of `subtask`."""
        return self.graph.vertex(subtask.vertex)

    def consumers(self, subtask: SubtaskId) -> tuple[SubtaskId, ...]:
        """Return the subtasks that `subtask` has channels to."""
        return tuple(dict.fromkeys(channel.consumer for channel in output_channels(self.graph, subtask)))

    def sink_context(
        self,
        vertex: JobVertex,
        sink: OperatorSpec,
        attempt: Attempt,
        *,
        succeeded: bool = False,
        completed: CheckpointId | None = None,
    ) -> SinkContext:
        """Return the context of the sink's job-level hooks; how the job ended is for `finish_job`."""
        return SinkContext(
            job_id=self.job_id,
            attempt=attempt,
            uid=sink.uid,
            subtask_index=-1,
            parallelism=vertex.parallelism,
            max_parallelism=self.graph.max_parallelism,
            options=self.flat,
            succeeded=succeeded,
            completed_checkpoint=completed,
        )
