"""How the job ends, once that is decided: the state that it will show, and why; how long its subtasks may take to
close, and what follows then (`closing`).

Also the job's state as users see it, which an end is the last change of. Invariant: a final state is shown only when
all that is to be done is done (or could not be).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rayflow.model.errors import JobFailed
from rayflow.model.ids import Attempt
from rayflow.protocol.lifecycle import (
    JOB_TRANSITIONS,
    AttemptAbandoned,
    AttemptRunning,
    JobEvent,
    JobGivenUp,
    JobLifecycle,
    JobState,
)
from rayflow.runtime.master.checkpoints import Checkpoints
from rayflow.runtime.master.closing import Closing
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.records import Records

STOP_LIMIT_MS = 10_000
"""How long subtasks may take to close after Cancel or Finish, and storage work to settle at the end."""


class Ending:
    """The state of one job, and its end. `document` returns the final job.json; `closed` and `superseded` tell how it
    went (see `Closing`)."""

    def __init__(
        self,
        ctx: Context,
        records: Records,
        document: Callable[[], dict[str, Any]],
        *,
        closed: Callable[[], None],
        superseded: Callable[[], None],
    ) -> None:
        self._ctx = ctx
        self._records = records
        self._document = document
        self._closed = closed
        self._superseded = superseded
        self._lifecycle = JobLifecycle()
        self._event: JobEvent | None = None
        self._closing: Closing | None = None
        self._overdue_ms: int | None = None
        self.failure: JobFailed | None = None

    @property
    def state(self) -> JobState:
        """The job's state, as users see it."""
        return self._lifecycle.state

    @property
    def coming_state(self) -> JobState:
        """The state the job will show once it is closed; `state` until its end is decided."""
        return self.state if self._event is None else JOB_TRANSITIONS[self.state, type(self._event)]

    def passed(self, event: AttemptRunning | AttemptAbandoned) -> None:
        """An attempt runs, or is given up."""
        self._lifecycle.handle(event)

    def decide(self, event: JobEvent, failure: JobFailed | None = None) -> None:
        """The job ends so: subtasks close from now on. `failure`: why it fails, if it does."""
        self._event = event
        self.failure = failure
        self._overdue_ms = self._ctx.now_ms + STOP_LIMIT_MS

    @property
    def overdue(self) -> bool:
        """Whether the subtasks have had their time to close."""
        return self._overdue_ms is not None and self._ctx.now_ms >= self._overdue_ms

    @property
    def closing(self) -> bool:
        """Whether nothing but `advance` is left to do."""
        return self._closing is not None

    @property
    def deadline_ms(self) -> int | None:
        """When there is something to do by itself."""
        return self._overdue_ms if self._closing is None else self._closing.deadline_ms

    def close(self, attempt: Attempt, checkpoints: Checkpoints) -> None:
        """All subtasks have closed, or had their time. `attempt` is the newest that ran."""
        state = self.coming_state
        self._ctx.note(f"job_{state.value.lower()}", f"the job is {state.value}")
        self._closing = Closing(
            self._ctx,
            self._records,
            self._document,
            self._shown,
            STOP_LIMIT_MS,
            attempt=attempt,
            superseded=self._superseded,
            succeeded=state is JobState.FINISHED,
            completed=checkpoints.books.newest_ever,
            kept=checkpoints.kept,
            known=checkpoints.books.newest_kept,
            publishing=lambda: checkpoints.publishing,
        )

    def advance(self) -> None:
        """Go on with the end."""
        if self._closing is not None:
            self._closing.advance()

    def clean_up_again(self) -> None:
        """See `Closing.clean_up_again`."""
        if self._closing is not None:
            self._closing.clean_up_again()

    def abort(self, failure: JobFailed) -> None:
        """Show at once that the job failed."""
        self.failure = failure
        self._event = None
        if not self._lifecycle.ended:
            self._lifecycle.handle(JobGivenUp())

    def _shown(self) -> None:
        if self._event is not None:
            self._lifecycle.handle(self._event)
            self._event = None
            self._closed()
