"""`StreamEnvironment`: where a job begins, and where it is executed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayflow.api.sources import Sources

if TYPE_CHECKING:
    from rayflow.client.handle import JobHandle
    from rayflow.model.results import JobResult


class StreamEnvironment(Sources):
    """Holds a job while it is written down: its streams, sinks and settings.

    `name` need not be unique. `parallelism` is the number of subtasks of every operator that is given no
    other; `max_parallelism` the number of key groups, the most that a keyed operator can ever be rescaled to.
    `config` has the keys of API.md section 6, flat (`{"checkpoint.interval": "30s"}`) or nested.
    """

    def execute(self, local: bool = False, *, address: str | None = None) -> JobResult:
        """Run the sinks added so far and wait for the job's end; Ctrl-C cancels the job.

        `local` runs it inside this process, without Ray. Else a cluster is found as by `rayflow run`: `address`,
        `RAY_ADDRESS`, the one `rayflow cluster up` recorded, or a local one for this job. Raises `rf.JobFailed`.
        """
        from rayflow.api.execution import execute

        return execute(self, list(self._sinks), local=local, address=address)

    def submit(self, *, address: str | None = None) -> JobHandle:
        """Submit the sinks added so far as a job on Ray, and return at once."""
        from rayflow.api.execution import submit

        return submit(self, list(self._sinks), address=address)
