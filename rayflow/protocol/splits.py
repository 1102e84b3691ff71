"""Which source subtask reads which split, and how far event time may come meanwhile.

Theory of operation. A source is cut into splits (files, row groups, partitions). Subtasks ask for a split
whenever they have nothing left to read, so the fast ones read more. Splits are dealt out by the smallest
event time in them, those of unknown time first, then by their own order. With each assignment goes the
*cap*: an event time that no split still in store goes down to. No subtask lets its watermark pass the cap,
so no watermark passes a split that nobody has begun to read; a split that was assigned is held by its
reader's own watermark.

Discovery may go on for ever (`watch=`). What it finds later is no promise that was made before: while
nothing is in store the cap is WATERMARK_MAX then, and subtasks that ask wait. Where discovery ends, the cap
stays unknown until it has ended, and a subtask that asks with nothing left is told so.

A new attempt begins with `SubtasksReset`: nothing is assigned, nothing finished. `SplitsRestored` then says
what the restored checkpoint knows; splits begun in it go first, since they hold back event time most.

Invariants:

1. Since a reset every split is assigned at most once, and never one that was restored as finished.
2. Restored splits in progress are assigned first; the others by time, then order, then id.
3. The last cap told to a subtask is below the smallest time of every split in store, and WATERMARK_MIN while
   such a time is unknown.
4. A subtask waits only while nothing is in store.
5. `NoMoreSplits` is told only when discovery has ended and nothing is in store; nothing is discovered after
   it has ended.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation
from rayflow.model.ids import SubtaskId
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.unhandled import unhandled


@dataclass(frozen=True, slots=True)
class SplitInfo:
    """What assignment knows of a split: `min_time` is the smallest event time in it (ns; None: unknown),
    `order` sorts splits of equal or unknown time."""

    id: str
    min_time: int | None = None
    order: str = ""


@dataclass(frozen=True, slots=True)
class SplitsDiscovered:
    """These splits exist (those known before are ignored). `last`: discovery has ended."""

    splits: tuple[SplitInfo, ...]
    last: bool


@dataclass(frozen=True, slots=True)
class SplitsRestored:
    """In the restored checkpoint these splits were finished, and those in progress. Told before anything is
    assigned."""

    finished: tuple[str, ...]
    in_progress: tuple[SplitInfo, ...]


@dataclass(frozen=True, slots=True)
class SplitRequested:
    """The subtask has nothing left to read. Harmless when told twice."""

    subtask: SubtaskId


@dataclass(frozen=True, slots=True)
class SubtasksReset:
    """A new attempt: no subtask has any split."""


@dataclass(frozen=True, slots=True)
class AssignSplit:
    """Tell the subtask to read the split, and the cap."""

    subtask: SubtaskId
    split_id: str
    cap: int


@dataclass(frozen=True, slots=True)
class MoveCap:
    """Tell the subtask the cap."""

    subtask: SubtaskId
    cap: int


@dataclass(frozen=True, slots=True)
class NoMoreSplits:
    """Tell the subtask that it will get no further split; the cap is WATERMARK_MAX."""

    subtask: SubtaskId


SplitEvent = SplitsDiscovered | SplitsRestored | SplitRequested | SubtasksReset
SplitCommand = AssignSplit | MoveCap | NoMoreSplits

_Entry = tuple[bool, int, str, str]


class SplitAssigner:
    """Deals out the splits of one source. `discovery_ends`: a `SplitsDiscovered` with `last` will come."""

    def __init__(self, subtasks: Sequence[SubtaskId], discovery_ends: bool) -> None:
        self._subtasks = tuple(subtasks)
        self._discovery_ends = discovery_ends
        self._discovered = False
        self._known: dict[str, SplitInfo] = {}
        # In store, in the order of assignment.
        self._resumed: list[SplitInfo] = []
        self._unassigned: list[_Entry] = []
        self._finished: frozenset[str] = frozenset()
        self._any_assigned = False
        # Dicts for their order: who waits, and the last cap told to whoever has asked and goes on.
        self._waiting: dict[SubtaskId, None] = {}
        self._caps: dict[SubtaskId, int] = {}

    @property
    def in_store(self) -> tuple[str, ...]:
        """Ids of the splits nobody has, next one first."""
        return tuple(split.id for split in self._resumed) + tuple(entry[3] for entry in self._unassigned)

    @property
    def cap(self) -> int:
        """No split in store holds rows at or before this event time (ns)."""
        if not self._discovered:
            return WATERMARK_MIN
        times = [split.min_time for split in self._resumed]
        times += [self._known[entry[3]].min_time for entry in self._unassigned[:1]]
        if None in times:
            return WATERMARK_MIN
        return min((time for time in times if time is not None), default=WATERMARK_MAX + 1) - 1

    def handle(self, event: SplitEvent) -> tuple[SplitCommand, ...]:
        """Take note of `event`; return what to tell the subtasks, in order."""
        match event:
            case SplitRequested():
                return self._on_requested(event.subtask)
            case SplitsDiscovered():
                return self._on_discovered(event)
            case SplitsRestored():
                return self._on_restored(event)
            case SubtasksReset():
                self._on_reset()
                return ()
            case _:
                unhandled(event)

    def _on_requested(self, subtask: SubtaskId) -> tuple[SplitCommand, ...]:
        if subtask not in self._subtasks:
            raise ProtocolViolation(f"split requested by {subtask}, which does not read this source")
        self._caps.setdefault(subtask, WATERMARK_MIN)
        self._waiting[subtask] = None
        return self._deal()

    def _on_discovered(self, event: SplitsDiscovered) -> tuple[SplitCommand, ...]:
        if self._discovery_ends and self._discovered:
            raise ProtocolViolation("splits discovered after discovery had ended (invariant 5)")
        if event.last and not self._discovery_ends:
            raise ProtocolViolation("discovery that goes on for ever ended (invariant 5)")
        self._discovered = event.last or not self._discovery_ends
        held = self._finished.union(split.id for split in self._resumed)
        for split in event.splits:
            if split.id not in self._known:
                self._known[split.id] = split
                if split.id not in held:
                    insort(self._unassigned, _entry(split))
        return self._deal()

    def _on_restored(self, event: SplitsRestored) -> tuple[SplitCommand, ...]:
        if self._any_assigned:
            raise ProtocolViolation("splits restored after some were assigned (invariant 1)")
        self._finished = frozenset(event.finished)
        self._resumed = sorted(event.in_progress, key=_entry)
        self._known.update((split.id, split) for split in event.in_progress)
        self._store(self._known.values())
        return self._deal()

    def _on_reset(self) -> None:
        self._finished = frozenset()
        self._resumed = []
        self._any_assigned = False
        self._waiting.clear()
        self._caps.clear()
        self._store(self._known.values())

    def _store(self, splits: Iterable[SplitInfo]) -> None:
        held = self._finished.union(split.id for split in self._resumed)
        self._unassigned = sorted(_entry(split) for split in splits if split.id not in held)

    def _deal(self) -> tuple[SplitCommand, ...]:
        """Give the waiting subtasks what is in store, then tell everybody the cap that results."""
        dealt: list[tuple[SubtaskId, str]] = []
        while self._waiting and (self._resumed or self._unassigned):
            subtask = next(iter(self._waiting))
            del self._waiting[subtask]
            split_id = self._resumed.pop(0).id if self._resumed else self._unassigned.pop(0)[3]
            dealt.append((subtask, split_id))
            self._any_assigned = True
        cap = self.cap
        commands: list[SplitCommand] = []
        for subtask, split_id in dealt:
            commands.append(AssignSplit(subtask, split_id, cap))
            self._caps[subtask] = cap
        if self._discovery_ends and self._discovered:
            # Whoever still waits does so because nothing is in store (invariant 4).
            for subtask in self._waiting:
                commands.append(NoMoreSplits(subtask))
                self._caps.pop(subtask, None)
            self._waiting.clear()
        for subtask, told in self._caps.items():
            if told != cap:
                commands.append(MoveCap(subtask, cap))
                self._caps[subtask] = cap
        return tuple(commands)


def _entry(split: SplitInfo) -> _Entry:
    # Splits of unknown time first: while one is in store the cap is unknown.
    return (split.min_time is not None, split.min_time or 0, split.order, split.id)
