"""From the end of one attempt to the deployment of the next: claim it, choose its checkpoint, tell about it.

At most one claim is under way, and none while storage work of the attempt before is (`Background.critical`):
what is chosen stays true until the attempt is deployed, since nothing else creates or deletes checkpoints then.
"""

from __future__ import annotations

from collections.abc import Callable

from rayflow.model.ids import Attempt, CheckpointId, JobId, SubtaskId
from rayflow.runtime.master.beginning import Beginning, Request, begin
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import iso_utc
from rayflow.runtime.master.restore import RestorePoint
from rayflow.runtime.master.salting import Salting
from rayflow.runtime.messages import Deploy


class Opening:
    """The beginning of each attempt. `beginning` or `error` is what came of the last claim; `newest` returns the
    newest checkpoint that was ever complete."""

    def __init__(
        self,
        ctx: Context,
        *,
        last_attempt: int,
        fresh: bool,
        restore_from: str | None,
        allow_duplicates: bool,
        newest: Callable[[], CheckpointId | None],
        salting: Salting,
    ) -> None:
        self._ctx = ctx
        self._salting = salting
        self._last_attempt = last_attempt
        self._fresh = fresh
        self._restore_from = restore_from
        self._allow_duplicates = allow_duplicates
        self._newest = newest
        self._under_way = False
        self._damaged: dict[str, str] = {}
        self.beginning: Beginning | None = None
        self.error: BaseException | None = None

    @property
    def restore(self) -> RestorePoint | None:
        """What the current attempt began from."""
        return None if self.beginning is None else self.beginning.restore

    @property
    def sinks_started(self) -> bool:
        """Whether the sinks have prepared their targets."""
        return not self._fresh

    def note_damage(self, cause: str) -> bool:
        """A subtask could not use the checkpoint. Return whether it is worth looking for an older one."""
        if self.restore is None:
            return False
        self._damaged[self.restore.path] = cause
        return True

    def reset(self) -> None:
        """The attempt is over, or the claim's failure is dealt with: the next attempt needs a claim of its own."""
        self.beginning = self.error = None

    def advance(self) -> None:
        """Claim, unless that is done or under way, or must wait."""
        ctx = self._ctx
        begun = self.beginning is not None or self.error is not None
        if self._under_way or begun or ctx.background.critical:
            return
        self._under_way = True
        request = Request(
            first_attempt=Attempt(max(ctx.attempt, self._last_attempt) + 1),
            at=iso_utc(ctx.now_ms),
            fresh=self._fresh,
            restore_from=self._restore_from,
            allow_duplicates=self._allow_duplicates,
            damaged=dict(self._damaged),
            newest=self._newest(),
        )
        ctx.background.run(lambda: begin(ctx.job, ctx.storage, request), self._began, critical=True)

    def deploys(self) -> list[Deploy]:
        """Return the deployment of every subtask. All workers must be ready."""
        ctx, restore = self._ctx, self.restore
        self._salting.begin_attempt(restore)
        return [self._deploy(subtask, JobId(ctx.job.job_id), restore) for subtask in ctx.job.subtasks]

    def _deploy(self, subtask: SubtaskId, job_id: JobId, restore: RestorePoint | None) -> Deploy:
        ctx = self._ctx
        return Deploy(
            job_id=job_id,
            attempt=ctx.attempt,
            subtask=subtask,
            graph=ctx.job.graph,
            config=ctx.job.flat,
            peers={peer: ctx.fleet.ready[peer].address for peer in ctx.job.consumers(subtask)},
            restore=None if restore is None else restore.info(ctx.job.graph, subtask),
            salted=self._salting.keys,
        )

    def _began(self, beginning: Beginning | None, error: BaseException | None) -> None:
        self._under_way = False
        self.beginning, self.error = beginning, error
        if beginning is None:
            return
        ctx = self._ctx
        ctx.attempt = beginning.attempt
        self._fresh = False
        for damaged, reason in beginning.passed_over:
            ctx.note(
                "checkpoint_unusable",
                f"checkpoint {damaged} cannot be used, falling back to the one before: {reason}",
                path=damaged,
            )
        path = None if beginning.restore is None else beginning.restore.path
        ctx.note(
            "attempt_started",
            f"attempt {ctx.attempt} begins {'without a checkpoint' if path is None else f'from {path}'}",
            attempt=ctx.attempt,
            restored_from=path,
        )
        if path is not None:
            ctx.note("restored", f"attempt {ctx.attempt} restores {path}", restored_from=path)
