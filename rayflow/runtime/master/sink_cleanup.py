"""What the sinks of a job that has ended clean up, and tell: asked by its last job manager, or later by a user."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from rayflow.model.ids import Attempt, CheckpointId
from rayflow.runtime.master.job import Job

LEFT_PENDING, FAILED = "sink_left_pending", "sink_cleanup_failed"


@dataclass(frozen=True, slots=True)
class Finding:
    """What people should know of a sink's clean-up, as an event; `type` is LEFT_PENDING or FAILED."""

    type: str
    sink: str
    message: str

    def to_json(self) -> dict[str, str]:
        """Return it as `rayflow clean --json` prints it."""
        return asdict(self)


def clean_up_sinks(
    job: Job, attempt: Attempt, *, succeeded: bool, completed: CheckpointId | None, way_back: str | None
) -> list[Finding]:
    """Have each sink clean up after attempts up to `attempt`, and return what is to be told. Blocks.

    `completed` is the job's newest complete checkpoint, and `way_back` where it lies. What it left pending stays,
    unless the job `succeeded`.
    """
    found = []
    for vertex, sink in job.sinks:
        context = job.sink_context(vertex, sink, attempt, succeeded=succeeded, completed=completed)
        try:
            if left := sink.payload.finish_job(context):
                where = "" if way_back is None else f" (--from {way_back})"
                found.append(Finding(LEFT_PENDING, sink.name, f"{left}{where}"))
        except Exception as error:
            found.append(clean_up_failed(job, sink.name, f"{type(error).__name__}: {error}"))
    return found


def clean_up_failed(job: Job, sink: str, problem: str) -> Finding:
    """Return the finding of a sink that could not clean up."""
    folder = f"{str(job.config.checkpoint_storage).partition('?')[0].rstrip('/')}/{job.job_id}"
    return Finding(
        FAILED,
        sink,
        f"it could not clean up: {problem}. What the job staged and never committed may still be in the target; "
        f"`rayflow clean {folder}` removes it, once the target can be reached",
    )
