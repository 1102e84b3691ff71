"""Restoring rows in flight at another parallelism: the subtasks of then catch up before they are brought together.

Theory of operation. When barriers overtake rows, the subtasks of an operator are captured at different event times;
what was in flight to each, watermarks included, is what brings them to the same one. An operator of now that took
over the states of several subtasks of then as they were would have one event time for keys that are at different
ones: it would emit again what some have emitted, or take for late what is not. So for each subtask of then whose rows
come here a chain of its own gets that subtask's state, of the key groups of here, and processes what was in flight to
it; then it is captured as at a barrier. These states agree on event time, as those of an aligned checkpoint do, and
are what the subtask's own chain opens with.

The operators that catch up are those from the one that rows were in flight to, up to the chain's sink, or to the next
that rows were in flight to; what they emit is kept for those, which are not open yet, or goes to the task's outputs.
Watermarks are not passed on: they come again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.hashing import key_groups
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.runtime.chain import Chain, Emit
from rayflow.runtime.replay import Replay, RestoredInFlight, RestoredState
from rayflow.state.parts import RestoredPart

FreshChain = Callable[[int, int, Emit], Chain]
"""Makes a chain of the task's operators from one index to before another, anew."""


def own_rows(groups: KeyGroupRange, max_parallelism: int) -> Callable[..., pa.RecordBatch]:
    """Return what gives the rows, by their key columns, that belong to a subtask with these key groups."""

    def own(batch: pa.RecordBatch, keys: Sequence[str]) -> pa.RecordBatch:
        found = pa.array(key_groups(batch, keys, max_parallelism))
        mask = pc.and_(pc.greater_equal(found, groups.start), pc.less(found, groups.stop))
        return batch.filter(mask)

    return own


@dataclass(frozen=True, slots=True)
class _Receiver:
    """A subtask of then: operators [start, stop) of the chain of now catch up with its files."""

    index: int
    start: int
    stop: int
    files: list[RestoredInFlight]


class CatchUp:
    """Task thread only. `sink` is the index of the chain's sink, or its length; `width` its length; `emit` takes what
    leaves the chain; `own` is for `Replay`."""

    def __init__(
        self,
        restored: RestoredState,
        *,
        index_of: Callable[[str], int],
        width: int,
        sink: int,
        fresh: FreshChain,
        emit: Emit,
        own: Callable[[pa.RecordBatch, Sequence[str]], pa.RecordBatch],
        checkpoint_id: int,
    ) -> None:
        self.parts = {uid: list(parts) for uid, parts in restored.parts.items()}
        # Rows that the operators from an index on have yet to process, in order.
        self.emitted: deque[tuple[int, pa.RecordBatch]] = deque()
        self._width = width
        self._fresh = fresh
        self._emit = emit
        self._own = own
        self._checkpoint_id = checkpoint_id
        self._receivers = _receivers(restored, index_of, sink)
        self._chain: Chain | None = None
        self._replay: Replay | None = None

    def step(self) -> bool:
        """Process one batch or watermark; return whether there is more to do."""
        if not self._receivers:
            return False
        current = self._receivers[0]
        if self._chain is None or self._replay is None:
            self._replay = Replay(current.files, self._own)
            self._chain = self._fresh(current.start, current.stop, self._taker(current.stop))
            self._chain.open(self._parts_of(current.index))
        step = self._replay.next()
        if isinstance(step, int):
            self._chain.advance(step)
        elif step is not None:
            self._chain.process(step[1], step[0])
        else:
            self._capture(self._chain, current.index)
            self._receivers.popleft()
        return True

    def close(self) -> list[Exception]:
        """Release what is open; return what the operators raised."""
        chain, self._chain, self._replay = self._chain, None, None
        return [] if chain is None else chain.close()

    def _taker(self, stop: int) -> Emit:
        def take(tag: str | None, batch: pa.RecordBatch) -> None:
            if tag is None and stop < self._width:
                self.emitted.append((stop, batch))
            else:
                self._emit(tag, batch)

        return take

    def _parts_of(self, index: int) -> dict[str, list[RestoredPart]]:
        return {
            uid: [part for part in parts if part.writer_index == index or part.kind == "broadcast"]
            for uid, parts in self.parts.items()
        }

    def _capture(self, chain: Chain, index: int) -> None:
        """Replace the parts of the subtask of then by what they are after it caught up."""
        for uid in chain.uids:
            parts = self.parts.get(uid, [])
            self.parts[uid] = [p for p in parts if p.writer_index != index or p.kind == "broadcast"]
        for uid, part in chain.snapshot(self._checkpoint_id):
            # Broadcasts are never in flight (barriers do not overtake them): what was restored is still right.
            if part.kind != "broadcast":
                self.parts[uid].append(
                    RestoredPart(
                        name=part.name,
                        kind=part.kind,
                        table=part.build(),
                        writer_index=index,
                        checkpoint_id=self._checkpoint_id,
                    )
                )
        for error in self.close():
            raise error


def _receivers(restored: RestoredState, index_of: Callable[[str], int], sink: int) -> deque[_Receiver]:
    """The subtasks of then, those of later operators first, since what these emit comes after what they had to get."""
    groups = restored.receivers()
    heads = sorted({index_of(uid) for uid, _ in groups})
    found = []
    for (uid, index), files in groups.items():
        start = index_of(uid)
        stop = min((head for head in heads if head > start), default=sink)
        found.append(_Receiver(index, start, max(start, min(stop, sink)), files))
    return deque(sorted(found, key=lambda receiver: -receiver.start))


class Recovery:
    """What a task does about rows that were in flight, before anything else. Task thread only.

    At the parallelism of then the task's own chain, opened at once, processes them. At another one the subtasks of then
    catch up first, and the chain opens when they have.
    """

    def __init__(self, chain: Chain, restored: RestoredState, catch_up: CatchUp | None) -> None:
        self._chain = chain
        self._catch_up = catch_up
        self._replays: deque[tuple[int, Replay]] = deque()
        self._emitted: deque[tuple[int, pa.RecordBatch]] = deque()
        if catch_up is None:
            chain.open(restored.parts)
            found = [(chain.index_of(uid), Replay(files)) for (uid, _), files in restored.receivers().items()]
            self._replays.extend(sorted(found, key=lambda item: -item[0]))

    @property
    def opened(self) -> bool:
        """Whether the task's own chain is open."""
        return self._catch_up is None

    def step(
        self,
        process: Callable[[pa.RecordBatch, int, int], None],
        advance: Callable[[int], None],
    ) -> bool:
        """Do one thing, by `process(batch, port, index of operator)` and `advance(watermark)`; return whether there is
        more to do."""
        if self._catch_up is not None:
            if not self._catch_up.step():
                self._chain.open(self._catch_up.parts)
                self._emitted, self._catch_up = self._catch_up.emitted, None
            return True
        if self._emitted:
            start, batch = self._emitted.popleft()
            process(batch, 0, start)
            return True
        if not self._replays:
            return False
        start, replay = self._replays[0]
        step = replay.next()
        if step is None:
            self._replays.popleft()
        elif not isinstance(step, int):
            process(step[1], step[0], start)
        elif start == 0:
            # Whoever is not the first gets its watermarks from those before it.
            advance(step)
        return True

    def close(self) -> list[Exception]:
        """Release what is open besides the task's own chain."""
        return [] if self._catch_up is None else self._catch_up.close()
