"""The end of a job: sinks clean up, workers end, the final metadata is stored. Then, and only then, the job
shows its final state, so that whoever waits for it finds everything in place.

Nothing here can change how the job ended: what fails is noted. Storage work that is still under way gets
`limit_ms` to settle first, so that it cannot overwrite the final metadata.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

from rayflow.model.errors import StorageError
from rayflow.model.ids import Attempt, CheckpointId
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.records import Records
from rayflow.runtime.master.sink_cleanup import FAILED, Finding, clean_up_failed, clean_up_sinks
from rayflow.state.finding import DROPPED_AFTER

NOT_SWEPT = "files that nobody needs after the end could not be deleted"


class Closing:
    """One job's end. `document` returns the final job.json; `done` is called last, or, where another job manager has
    taken over, `superseded` in place of all else. Sinks are told the newest `attempt` that ran, whoever's it was, if
    the job `succeeded`, and its newest complete checkpoint: what that left pending must stay, unless it did. On storage
    the checkpoints `kept` stay, and the metadata; `known` is the newest one that should be there; those still in
    `publishing` may yet become complete, and stay too."""

    def __init__(
        self,
        ctx: Context,
        records: Records,
        document: Callable[[], dict[str, Any]],
        done: Callable[[], None],
        limit_ms: int,
        *,
        attempt: Attempt,
        superseded: Callable[[], None],
        succeeded: bool,
        completed: CheckpointId | None,
        kept: Collection[CheckpointId],
        known: CheckpointId | None,
        publishing: Callable[[], Collection[CheckpointId]],
    ) -> None:
        self._kept = kept
        self._known = known
        self._publishing = publishing
        self._succeeded = succeeded
        self._completed = completed
        self._ctx = ctx
        self._records = records
        self._document = document
        self._done = done
        self._attempt = attempt
        self._superseded = superseded
        self._begun = False
        # What later checkpoints left pending was dropped; None: nothing was.
        self._dropped_after: CheckpointId | None = None
        self.deadline_ms: int | None = ctx.now_ms + limit_ms

    def advance(self) -> None:
        """Begin as soon as nothing is under way any more, or the limit has passed."""
        if self._begun or self.deadline_ms is None:
            return
        settled = self._ctx.background.critical == 0 and self._records.idle
        if settled or self._ctx.now_ms >= self.deadline_ms:
            self._begun = True
            self.deadline_ms = None
            publishing = frozenset(self._publishing())
            self._ctx.background.run(lambda: self._clean_up(publishing), self._cleaned_up)

    def clean_up_again(self) -> None:
        """Have the sinks look once more, after the end: a process that was cut off may have staged or prepared
        something since. Blocks."""
        ctx = self._ctx
        failed = [f for f in self._clean_up(frozenset(self._publishing())) or () if f.type == FAILED]
        self._tell(failed)
        if failed:
            ctx.storage.save_events(ctx.log.since(0))

    def _clean_up(self, publishing: Collection[CheckpointId]) -> list[Finding] | None:
        """Let every sink clean up (I/O pool). None: another job manager has taken over, and this one has no say any
        more."""
        ctx = self._ctx
        if self._attempt == 0:
            return []
        # Where this one has claimed nothing the newest claim is that of who went before it.
        if ctx.attempt and self._is_superseded():
            return None
        completed = self._newest_complete(publishing)
        found = clean_up_sinks(
            ctx.job,
            self._attempt,
            succeeded=self._succeeded,
            completed=completed,
            way_back=None if completed is None else ctx.storage.url(completed),
        )
        failed = any(finding.type == FAILED for finding in found)
        if ctx.job.transactional_uids and not self._succeeded and not failed:
            self._dropped_after = completed or CheckpointId(0)
        return found

    def _is_superseded(self) -> bool:
        try:
            return self._ctx.storage.is_another_in_charge()
        except StorageError:
            # It cannot be told. What later attempts have is not touched in any case.
            return False

    def _newest_complete(self, publishing: Collection[CheckpointId]) -> CheckpointId | None:
        """Return the newest checkpoint that somebody may restore. One that was published, but so that this was never
        known (its answer lost, its deletion failed), is complete all the same, and one whose manifest is under way may
        yet be: what they left pending must stay. Nobody will go on from one of a superseded manager's."""
        if self._succeeded:
            return self._completed
        storage = self._ctx.storage
        known = set(storage.list_checkpoints().complete)
        if self._completed is not None:
            known.add(self._completed)
        valid = storage.without_zombies(known, Attempt(self._attempt + 1))
        found = max((*valid, *publishing), default=None)
        if found is not None and self._dropped_after is not None and found > self._dropped_after:
            # It has appeared since the sinks looked first.
            return self._dropped_after or None
        return found

    def _cleaned_up(self, found: list[Finding] | None, error: BaseException | None) -> None:
        ctx = self._ctx
        if error is not None:
            found = [clean_up_failed(ctx.job, "all sinks", str(error))]
        elif found is None:
            self._superseded()
            return
        self._tell(found or ())
        ctx.fleet.shutdown()
        # What subtasks still upload may come later: they are being ended, and nobody waits for them here.
        busy = frozenset(self._publishing())
        ctx.background.run(
            lambda: ctx.storage.sweep_all(self._attempt, self._kept, self._known, busy, self._dropped_after),
            self._swept,
        )

    def _tell(self, found: Iterable[Finding]) -> None:
        for finding in found:
            message = f"sink {finding.sink}: {finding.message}"
            self._ctx.note(finding.type, message, operator=finding.sink)

    def _swept(self, _result: Any, error: BaseException | None) -> None:
        ctx = self._ctx
        if error is not None:
            ctx.note("checkpoint_cleanup_failed", f"{NOT_SWEPT}: {error}")
        document, events = self._document(), ctx.log.since(0)
        if self._dropped_after is not None:
            # Storage may yet carry out what a manager asked for that is long dead.
            document[DROPPED_AFTER] = self._dropped_after

        def store() -> None:
            ctx.storage.save_job(document)
            ctx.storage.save_events(events)

        ctx.background.run(store, self._stored)

    def _stored(self, _result: Any, error: BaseException | None) -> None:
        if error is not None:
            self._ctx.note("metadata_failed", f"the final metadata could not be stored: {error}")
        self._done()
