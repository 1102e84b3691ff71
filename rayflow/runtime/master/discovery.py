"""Runs `Source.splits` on the I/O pool, once or periodically, and hands new splits to assignment.

The first listing of a source must succeed, or the job fails: it cannot run, and a restart would find
the same. A later one (`watch=`) that fails is reported and repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rayflow.operators.source_contract import Split
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.sources import Assignments, SourceSplits

Failed = Callable[[str, SourceSplits], None]


class Discovery:
    """Discovery for all sources of a job. `deliver` sends assignments; `failed` fails the job."""

    def __init__(
        self,
        ctx: Context,
        sources: Mapping[str, SourceSplits],
        deliver: Callable[[Assignments], None],
        failed: Failed,
    ) -> None:
        self._ctx = ctx
        self._sources = sources
        self._deliver = deliver
        self._failed = failed
        self._listed: set[str] = set()
        self._stopped = False
        self._due_ms: dict[str, int] = dict.fromkeys(sources, ctx.now_ms)

    @property
    def next_deadline_ms(self) -> int | None:
        """When `tick` has something to do."""
        return min(self._due_ms.values(), default=None)

    def tick(self) -> None:
        """Start the listings that are due."""
        for uid, due_ms in list(self._due_ms.items()):
            if due_ms <= self._ctx.now_ms:
                del self._due_ms[uid]
                self._list(self._sources[uid])

    def stop(self) -> None:
        """List nothing more."""
        self._stopped = True
        self._due_ms.clear()

    def _list(self, source: SourceSplits) -> None:
        self._ctx.background.run(
            lambda: list(source.source.splits()),
            lambda splits, error: self._ended(source, splits, error),
        )

    def _ended(self, source: SourceSplits, splits: Sequence[Split], error: BaseException | None) -> None:
        if self._stopped:
            return
        interval_ms = source.discovery_interval_ms
        if interval_ms is not None:
            self._due_ms[source.uid] = self._ctx.now_ms + interval_ms
        if error is not None:
            self._report(source, error)
            return
        self._listed.add(source.uid)
        new, assignments = source.discovered(splits)
        if new:
            self._ctx.note(
                "splits_discovered",
                f"source {source.spec.name}: {new} new splits",
                uid=source.uid,
                splits=new,
            )
        self._deliver(assignments)

    def _report(self, source: SourceSplits, error: BaseException) -> None:
        if source.uid not in self._listed:
            self._failed(f"source {source.spec.name!r} cannot list its splits: {error}", source)
            return
        self._ctx.note(
            "discovery_failed",
            f"source {source.spec.name}: listing failed, will be repeated: {error}",
            uid=source.uid,
        )
