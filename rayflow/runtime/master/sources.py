"""Splits of the job's sources: discovery, assignment to subtasks, and their part of a checkpoint.

Theory of operation
-------------------
`Source.splits` runs on the I/O pool, once, or again every `discovery_interval_ms`. Which subtask gets which
split when, and how far the watermark may go, is decided by `protocol.splits.SplitAssigner`, one per source and
attempt; this module knows the splits themselves.

A checkpoint's record of a source is the one this attempt restored, overlaid by what its subtasks reported in their
acks (`merged`). A restored split that no ack names was not touched before the barrier, hence its restored position
still holds; a split in neither was not begun, and is discovered again after a restore.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayflow.graph.plan import JobVertex
from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import Attempt, SubtaskId
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.operators.source_contract import Source, Split
from rayflow.protocol.splits import (
    AssignSplit,
    MoveCap,
    NoMoreSplits,
    SplitAssigner,
    SplitCommand,
    SplitInfo,
    SplitRequested,
    SplitsDiscovered,
    SplitsRestored,
)
from rayflow.runtime.messages import AssignSplits
from rayflow.state.manifest import SplitState

Assignments = list[tuple[SubtaskId, AssignSplits]]


@dataclass(slots=True)
class _Reader:
    """What a subtask was last told, and the slowest of its splits, as it last said (see `SplitsProgressed`)."""

    cap: int = WATERMARK_MIN
    no_more: bool = False
    others: int | None = None
    slowest: int | None = None


class SourceSplits:
    """The splits of one source."""

    def __init__(self, vertex: JobVertex) -> None:
        self.uid = vertex.operators[0].uid
        self.spec = vertex.operators[0]
        self.source: Source = self.spec.payload
        self._subtasks = tuple(SubtaskId(vertex.id, index) for index in range(vertex.parallelism))
        self._found: dict[str, Split] = {}
        self._listed = False
        self._attempt = Attempt(0)
        self._restored: dict[str, SplitState] = {}
        self._readers: dict[SubtaskId, _Reader] = {}
        self._assigner: SplitAssigner | None = None

    @property
    def discovery_interval_ms(self) -> int | None:
        """Milliseconds between discoveries, None for a single one."""
        return self.source.discovery_interval_ms()

    @property
    def _listing_ends(self) -> bool:
        return self.discovery_interval_ms is None

    def begin(self, attempt: Attempt, restored: Iterable[SplitState]) -> Assignments:
        """Start an attempt from the restored record."""
        self._attempt = attempt
        self._restored = {split_id(state): state for state in restored}
        self._readers = {subtask: _Reader() for subtask in self._subtasks}
        self._assigner = SplitAssigner(self._subtasks, self._listing_ends)
        finished = [key for key, state in self._restored.items() if state.finished]
        begun = [Split.from_json(s.split) for s in self._restored.values() if not s.finished]
        commands = self._assigner.handle(
            SplitsRestored(tuple(finished), tuple(split_info(split) for split in begun))
        )
        if self._listed:
            commands += self._assigner.handle(self._discovery(list(self._found.values())))
        return self._messages(commands)

    def discovered(self, splits: Sequence[Split]) -> tuple[int, Assignments]:
        """Take what `Source.splits` returned; return how many splits are new, and what to send."""
        new = {split.id: split for split in splits if split.id not in self._found}
        self._found.update(new)
        self._listed = True
        if self._assigner is None:
            return len(new), []
        return len(new), self._messages(self._assigner.handle(self._discovery(list(new.values()))))

    def requested(self, subtask: SubtaskId) -> Assignments:
        """A subtask has nothing left to read."""
        if self._assigner is None:
            raise ProtocolViolation(f"{subtask} asked for splits of {self.uid} before an attempt began")
        return self._messages(self._assigner.handle(SplitRequested(subtask)))

    def progressed(self, subtask: SubtaskId, watermark: int | None) -> Assignments:
        """A subtask's slowest split came to `watermark`: tell those whom it concerns, which are others."""
        self._readers[subtask].slowest = watermark
        ordered = sorted(r.slowest for r in self._readers.values() if r.slowest is not None)
        concerned = []
        for other, reader in self._readers.items():
            # The slowest subtask is told of the one after it: what it said itself is old news to it.
            behind = ordered[1:] if ordered and reader.slowest == ordered[0] else ordered
            others = behind[0] if behind else None
            if others != reader.others:
                reader.others = others
                concerned.append((other, self._message(other, [])))
        return concerned

    def merged(self, acked: Iterable[SplitState]) -> tuple[SplitState, ...]:
        """Return the checkpoint's record: the restored one, overlaid by `acked`."""
        merged = dict(self._restored)
        merged.update((split_id(state), state) for state in acked)
        return tuple(merged[key] for key in sorted(merged))

    def _discovery(self, splits: list[Split]) -> SplitsDiscovered:
        return SplitsDiscovered(tuple(split_info(split) for split in splits), self._listing_ends)

    def _messages(self, commands: Iterable[SplitCommand]) -> Assignments:
        splits: dict[SubtaskId, list[SplitState]] = {}
        for command in commands:
            reader = self._readers[command.subtask]
            given = splits.setdefault(command.subtask, [])
            match command:
                case AssignSplit():
                    reader.cap = command.cap
                    given.append(self._state(command.split_id))
                case MoveCap():
                    reader.cap = command.cap
                case NoMoreSplits():
                    reader.cap, reader.no_more = WATERMARK_MAX, True
        return [(subtask, self._message(subtask, given)) for subtask, given in splits.items()]

    def _message(self, subtask: SubtaskId, splits: list[SplitState]) -> AssignSplits:
        reader = self._readers[subtask]
        return AssignSplits(
            attempt=self._attempt,
            uid=self.uid,
            splits=tuple(splits),
            cap=reader.cap,
            no_more=reader.no_more,
            others=reader.others,
        )

    def _state(self, key: str) -> SplitState:
        # The restored record has the position; what discovery found is the split's beginning.
        restored = self._restored.get(key)
        return restored if restored is not None else SplitState(split=self._found[key].to_json())


def split_id(state: SplitState) -> str:
    """Return the id of the split that `state` is about."""
    return Split.from_json(state.split).id


def split_info(split: Split) -> SplitInfo:
    """Return what the assigner needs to know of `split`."""
    return SplitInfo(id=split.id, min_time=split.min_time, order=split.order)
