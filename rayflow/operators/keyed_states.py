"""The states and timers of all keys of one subtask: found by key, worked on by batch, snapshot and restored.

`begin` makes the keys of a batch current, `end` stores what changed; a key that has neither state nor timers
left is forgotten. With every batch a few other keys are looked at too, and what has outlived its time is
dropped there, so that keys that never come again do not stay for ever.

With `state.backend=disk` the keys that are not in use lie on disk, with their states and timers
(`state.disk.cached_keys`). Timers are found there by the time at which a key's first one is due: `bring_due`.

Snapshot: one keyed part with a row per key (`state.cells` names its columns), and one of each kind of timer.
Evolution: a state that the snapshot lacks is unset, one that is no longer declared is dropped, a type may
become a wider one; anything else is a PlanError that names the state and both types. Broadcast states are
one row, in a part that every subtask restores. Of keys that lie on disk there is one part, in which timers are lists
beside the states; either kind of snapshot restores into either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.python_values import pylist
from rayflow.model.errors import PlanError
from rayflow.operators.bound_states import BoundValue, Cursor, bind
from rayflow.operators.contracts import OperatorContext
from rayflow.operators.keyed_parts import (
    keyed_table,
    keys_of_operator,
    restored_batches,
    restored_keys,
    stored_part,
)
from rayflow.operators.states import State
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.cells import Cells, ReadColumns
from rayflow.state.disk.cached_keys import CachedKeys
from rayflow.state.disk.state_rows import StateRows
from rayflow.state.key_index import FrozenKeys, KeyIndex
from rayflow.state.map_cells import MapCells
from rayflow.state.parts import KEY_COLUMNS, RestoredPart, StatePart
from rayflow.state.timers import Timer, TimerQueue
from rayflow.state.value_types import widens

I64 = npt.NDArray[np.int64]

_STATE = "state"
_BROADCAST = "broadcast-state"
_TIME = "time"
_SWEPT_AT_LEAST = 64
_SWEPT_AT_SNAPSHOT = 100_000
_REVISITED = 64
_ONE_SLOT = np.zeros(1, np.int64)
_END_OF_TIME = np.iinfo(np.int64).max


class KeyedStates:
    """States and timers by key. `queues` are the kinds of timers by the name of their part."""

    def __init__(
        self,
        key_schema: pa.Schema,
        states: Mapping[str, State],
        queues: Mapping[str, TimerQueue],
        time_type: pa.DataType,
        cursor: Cursor,
        ctx: OperatorContext,
    ) -> None:
        self._groups = SlotGroups()
        self._cursor = cursor
        self._queues = queues
        self._time_type = time_type
        self._cells = [state.cells() for state in states.values()]
        self._rows = StateRows(self._cells, queues, time_type)
        self._index = keys_of_operator(ctx, KeyIndex(key_schema), lambda: self._rows)
        self._on_disk = self._index if isinstance(self._index, CachedKeys) else None
        cursor.changed = None if self._on_disk is None else set()
        self._has_ttl = any(cells.ttl_ms is not None for cells in self._cells)
        self._swept_to = 0
        self.bound: dict[str, Any] = {
            name: bind(state, cells, cursor) for (name, state), cells in zip(states.items(), self._cells)
        }
        """What functions use, by name."""
        self._values = [state for state in self.bound.values() if isinstance(state, BoundValue)]

    def __len__(self) -> int:
        """Return the number of keys in memory that have state or timers."""
        return len(self._index)

    # ---------------------------------------------------------------------------------- batches

    def begin(self, keys: Sequence[pa.Array]) -> list[int]:
        """Make the keys of a batch current; return for each row the place of its key among them."""
        batch = pa.RecordBatch.from_arrays(list(keys), schema=self._index.schema)
        on_disk = self._on_disk
        # Of these it is seen what functions change.
        slots = self._index.slots(batch) if on_disk is None else on_disk.look_up(batch)[0]
        self._reserve()
        return self._make_current(slots)

    def begin_slots(self, slots: I64) -> list[int]:
        """As `begin`, of keys already known, whose timers fire."""
        if self._on_disk is not None:
            self._on_disk.touch(slots)
        return self._make_current(slots)

    def _make_current(self, slots: I64) -> list[int]:
        cursor = self._cursor
        cursor.keys, places = self._groups.group(slots)
        cursor.slots = cursor.keys.tolist()
        for state in self._values:
            state.begin()
        at: list[int] = places.tolist()
        return at

    def current_keys(self) -> list[Any]:
        """Return the current keys: values, or tuples where there are several columns."""
        columns = [pylist(column) for column in self._index.keys(self._cursor.keys).columns]
        return columns[0] if len(columns) == 1 else list(zip(*columns))

    def rows_of_keys(self, slots: Sequence[int]) -> pa.RecordBatch:
        """Return the key columns of slots, to be shown in errors."""
        return self._index.keys(np.array(slots, np.int64))

    def end(self) -> None:
        """The batch is done."""
        for state in self._values:
            state.end()
        keys = self._cursor.keys
        self._note_changes()
        self._forget_empty(keys)
        if self._has_ttl:
            self._sweep(max(_SWEPT_AT_LEAST, 2 * len(keys)), self._cursor.now_ms)
            if self._on_disk is not None:
                self._drop_old(self._on_disk.revisit(_REVISITED), self._cursor.now_ms)
        self._cursor.at = None

    def _note_changes(self) -> None:
        changed = self._cursor.changed
        if self._on_disk is not None and changed:
            self._on_disk.touch(np.fromiter(changed, np.int64, len(changed)))
            changed.clear()

    # ---------------------------------------------------------------------------------- timers

    def timers(self, name: str) -> int:
        """Return how many timers of a kind there are."""
        return len(self._queues[name]) + self._rows.away[name] * (self._on_disk is not None)

    def next_time(self, name: str) -> int | None:
        """Return the time of the earliest timer of a kind, or an earlier one; None where there is none."""
        times = [self._queues[name].next_time()]
        if self._on_disk is not None:
            times.append(self._on_disk.next_due(self._kind(name)))
        return min((time for time in times if time is not None), default=None)

    def bring_due(self, name: str, limit: int, most: int) -> tuple[int, bool]:
        """Have timers due up to `limit` in memory, the earliest first, of up to `most` keys more. Return up to when
        they all are, and whether there may be more."""
        if self._on_disk is None:
            return limit, False
        reached, more = self._on_disk.bring_due(self._kind(name), limit, most)
        self._reserve()
        return reached, more

    def is_due_on_disk(self, name: str, limit: int) -> bool:
        """Return whether keys that are not in memory may have timers due up to `limit`."""
        first = None if self._on_disk is None else self._on_disk.next_due(self._kind(name))
        return first is not None and first <= limit

    def drop_timers(self, name: str, most: int) -> int:
        """Delete all timers of a kind, of up to `most` keys on disk at a time; return how many there were."""
        count = self.timers(name)
        self._clear_timers(name)
        # The rows on disk have them too.
        while self._on_disk is not None and self._on_disk.next_due(self._kind(name)) is not None:
            self.bring_due(name, _END_OF_TIME, most)
            self._clear_timers(name)
        return count

    def _clear_timers(self, name: str) -> None:
        slots = self._index.live()
        slots = slots[self._queues[name].occupied(slots)]
        if self._on_disk is not None:
            self._on_disk.touch(slots)
        self._queues[name].clear()
        self._forget_empty(slots)

    def _kind(self, name: str) -> int:
        return list(self._queues).index(name)

    def _reserve(self) -> None:
        limit = self._index.slot_limit
        self._groups.reserve(limit)
        for cells in self._cells:
            cells.reserve(limit)
        for queue in self._queues.values():
            queue.reserve(limit)

    def _forget_empty(self, slots: I64) -> None:
        holders: list[Cells | TimerQueue] = [*self._cells, *self._queues.values()]
        for holder in holders:
            if len(slots) == 0:
                return
            slots = slots[~holder.occupied(slots)]
        if len(slots):
            self._index.remove(slots)

    def _sweep(self, count: int, now_ms: int) -> None:
        limit = self._index.slot_limit
        # Round and round: where it began anew only once it had met the last slot, new ones would keep it from that.
        slots = (self._swept_to + np.arange(min(count, limit))) % max(1, limit)
        self._swept_to = (self._swept_to + len(slots)) % max(1, limit)
        occupied = np.zeros(len(slots), np.bool_)
        for cells in self._cells:
            if cells.ttl_ms is not None:
                occupied |= cells.occupied(slots)
        self._drop_old(slots[occupied], now_ms)

    def _drop_old(self, slots: I64, now_ms: int) -> None:
        for cells in self._cells:
            cells.expire(slots, now_ms)
        self._forget_empty(slots)

    # ---------------------------------------------------------------------------------- snapshots

    def snapshot(self, ctx: OperatorContext, checkpoint_id: int) -> list[StatePart]:
        """Return states and timers as they are now."""
        now_ms = ctx.now_ms()
        if self._has_ttl:
            self._sweep(_SWEPT_AT_SNAPSHOT, now_ms)
        if self._on_disk is not None:
            return [stored_part(self._on_disk, _STATE, checkpoint_id, ctx.max_parallelism)]
        keys, slots = self._index.freeze(), self._index.live()
        parts = []
        if self._cells:
            readers = [cells.freeze(now_ms) for cells in self._cells]
            build = partial(_state_table, keys, slots, readers, ctx.max_parallelism)
            parts.append(StatePart(name=_STATE, kind="keyed", build=build))
        for name, queue in self._queues.items():
            build = partial(_timer_table, keys, queue.freeze(), self._time_type, ctx.max_parallelism)
            parts.append(StatePart(name=name, kind="keyed", build=build))
        return parts

    def completed(self, checkpoint_id: int) -> None:
        """The checkpoint is complete."""
        if self._on_disk is not None:
            self._on_disk.completed(checkpoint_id)

    def close(self) -> None:
        """Release what is held outside of memory."""
        if self._on_disk is not None:
            self._on_disk.close()

    def restore(self, ctx: OperatorContext, restored: Sequence[RestoredPart]) -> None:
        """Take back what `snapshot` gave. Raises PlanError where declarations do not fit it."""
        schema, now_ms = self._index.schema, ctx.now_ms()
        for part in restored:
            if part.name == _STATE or part.name in self._queues:
                _check_keys(part.schema, schema, ctx)
        for keys, columns in restored_batches(restored, _STATE, schema):
            slots = self._index.slots(keys)
            self._reserve()
            for cells in self._cells:
                _restore_cells(cells, slots, columns, now_ms, ctx)
            for name in [name for name in self._queues if name in columns.schema.names]:
                self._rows.restore_timers(name, slots, columns.column(name))
            # Of states that were dropped from the function nothing is left.
            self._forget_empty(slots)
        for name, queue in self._queues.items():
            for keys, columns in restored_batches(restored, name, schema):
                slots = self._index.slots(keys)
                self._reserve()
                times = columns.column(0).cast(self._time_type, safe=False).cast(pa.int64())
                queue.restore(zip(times.to_pylist(), slots.tolist()))
        restored_keys(ctx, self._index)


class BroadcastStates:
    """Broadcast states: one map each, for all keys. Subtask 0 writes them into the snapshot."""

    def __init__(self, states: Mapping[str, State], cursor: Cursor) -> None:
        self._cells: list[MapCells] = []
        self.bound: dict[str, Any] = {}
        """What functions use, by name."""
        for name, state in states.items():
            cells = state.cells()
            assert isinstance(cells, MapCells)
            cells.reserve(1)
            self._cells.append(cells)
            self.bound[name] = bind(state, cells, cursor)

    def snapshot(self, ctx: OperatorContext) -> list[StatePart]:
        """Return the states as they are now."""
        if not self._cells or ctx.subtask_index != 0:
            return []
        readers = [cells.freeze(ctx.now_ms()) for cells in self._cells]
        return [StatePart(name=_BROADCAST, kind="broadcast", build=partial(_broadcast_table, readers))]

    def restore(self, ctx: OperatorContext, restored: Sequence[RestoredPart]) -> None:
        """Take back what `snapshot` gave. Raises PlanError where declarations do not fit it."""
        for part in restored:
            if part.name == _BROADCAST:
                for batch in part.table.combine_chunks().to_batches():
                    for cells in self._cells:
                        _restore_cells(cells, _ONE_SLOT, batch, ctx.now_ms(), ctx)


def _state_table(
    keys: FrozenKeys, slots: I64, readers: Sequence[ReadColumns], max_parallelism: int
) -> pa.Table:
    columns = [column for read in readers for column in read(slots)]
    table = keyed_table(keys.keys(slots), columns, max_parallelism)
    # A key that has timers only, or whose state has outlived its time, has nothing here.
    filled = np.zeros(table.num_rows, np.bool_)
    for name, _ in columns:
        filled |= pc.is_valid(table.column(name)).to_numpy()
    return _with_key_count(table.filter(pa.array(filled)), keys)


def _timer_table(
    keys: FrozenKeys, timers: Sequence[Timer], type_: pa.DataType, max_parallelism: int
) -> pa.Table:
    times = pa.array(np.fromiter((time for time, _ in timers), np.int64, len(timers))).cast(type_)
    slots = np.fromiter((slot for _, slot in timers), np.int64, len(timers))
    return _with_key_count(keyed_table(keys.keys(slots), [(_TIME, times)], max_parallelism), keys)


def _broadcast_table(readers: Sequence[ReadColumns]) -> pa.Table:
    columns = [column for read in readers for column in read(_ONE_SLOT)]
    return pa.Table.from_arrays([array for _, array in columns], names=[name for name, _ in columns])


def _with_key_count(table: pa.Table, keys: FrozenKeys) -> pa.Table:
    return table.replace_schema_metadata({KEY_COLUMNS: str(len(keys.codec.schema))})


def _check_keys(written: pa.Schema, expected: pa.Schema, ctx: OperatorContext) -> None:
    count = int((written.metadata or {}).get(KEY_COLUMNS, len(expected)))
    fields = list(written)[:count]
    if [field.type for field in fields] != expected.types:
        raise PlanError(
            f"operator {ctx.name!r}: its state is by {_shown(fields)} in the checkpoint and by "
            f"{_shown(expected)} in this job; keep the keys, or start with fresh state under another .uid()",
            ctx.location,
        )


def _shown(fields: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in fields)


def _restore_cells(
    cells: Cells, slots: I64, columns: pa.RecordBatch, now_ms: int, ctx: OperatorContext
) -> None:
    names = columns.schema.names
    if cells.column not in names:
        for kind in ("value", "list", "map"):
            if f"{cells.name}.{kind}" in names:
                raise PlanError(
                    f"operator {ctx.name!r}: state {cells.name!r} is a {kind} in the checkpoint and a "
                    f"{cells.kind} in this job; give the new one another name",
                    ctx.location,
                )
        return
    column = columns.column(cells.column)
    if column.type != cells.type:
        if not widens(column.type, cells.type):
            raise PlanError(
                f"operator {ctx.name!r}: state {cells.name!r} is {column.type} in the checkpoint and "
                f"{cells.type} in this job, which cannot hold all of its values; give the new one another name",
                ctx.location,
            )
        column = column.cast(cells.type)
    updated = columns.column(cells.updated_column) if cells.updated_column in names else None
    cells.restore(slots, column, updated, now_ms)
