"""States as functions use them in a subtask: bound to the storage of all keys, and to the key at hand.

Bound states share one `Cursor`, which says which key that is, as a place among the keys of the batch. Values are
loaded for all of these when the first is asked for, and stored when the batch is done (`state.cells`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.operators.states import MISFITS, ListState, MapState, State, ValueState, because
from rayflow.state.cells import Cells, ListCells, ValueCells
from rayflow.state.map_cells import MapCells
from rayflow.state.value_types import owned


class Cursor:
    """Which key is at hand. `keys` are the slots of the keys of a batch, `at` a place among them, or None; `changed`
    are those that the functions changed something of, None where nobody asks."""

    def __init__(self) -> None:
        self.at: Any = None
        self.slots: list[int] = []
        self.keys: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self.changed: set[int] | None = None
        self.now_ms = 0
        self.describe_key: Callable[[], str] = str
        self.misuse = "there is no current key"
        """Why there is none, for error messages."""
        self.may_write_broadcast = False

    def written(self, slot: int) -> int:
        """Something of the key in `slot`, which is returned, is about to change."""
        if self.changed is not None:
            self.changed.add(slot)
        return slot


def bind(state: State, cells: Cells, cursor: Cursor) -> Any:
    """Return what functions use in place of the declaration `state`; `cells` are what its `cells()` gave."""
    match state, cells:
        case ValueState(), ValueCells():
            return BoundValue(state, cells, cursor)
        case ListState(), ListCells():
            return BoundList(state, cells, cursor)
        case MapState(), MapCells():
            return BoundMap(state, cells, cursor)
    raise AssertionError(f"{state!r} is not stored in {cells!r}")


class BoundValue(ValueState):
    """A `ValueState` in a subtask. `begin` and `end` enclose the work on a batch."""

    def __init__(self, declared: ValueState, cells: ValueCells, cursor: Cursor) -> None:
        self.name, self.type, self.checked = declared.name, declared.type, declared.checked
        self._default = declared.default
        self._canonical = declared.checked.canonical
        self._is_nested = declared.checked.is_nested
        self._cells, self._cursor = cells, cursor
        self._values: list[Any] | None = None
        self._dirty = bytearray()

    def begin(self) -> None:
        """Forget the last batch's values."""
        self._values = None

    def end(self) -> None:
        """Store what changed."""
        values, self._values = self._values, None
        if values is None or not any(self._dirty):
            return
        changed = np.flatnonzero(np.frombuffer(self._dirty, np.bool_))
        new = values if len(changed) == len(values) else [values[at] for at in changed.tolist()]
        slots = self._cursor.keys[changed]
        self._cells.store(slots, new, self._cursor.now_ms)
        if self._cursor.changed is not None:
            self._cursor.changed.update(slots.tolist())

    def get(self) -> Any:
        """See `ValueState`."""
        values = self._values
        if values is None:
            values = self._load()
        at = self._cursor.at
        if at is None:
            _no_key(self, self._cursor)
        value = values[at]
        if value is None:
            value = self._default
        return owned(value) if self._is_nested else value

    def set(self, value: Any) -> None:
        """See `ValueState`."""
        values = self._values
        if values is None:
            values = self._load()
        at = self._cursor.at
        if at is None:
            _no_key(self, self._cursor)
        if value is not None:
            try:
                value = self._canonical(value)
            except MISFITS as error:
                raise _misfit(self, "value", self.type, value, error, self._cursor) from None
        values[at] = value
        self._dirty[at] = 1

    value = property(get, set, doc="The value, the default where it is unset. May be assigned.")

    def clear(self) -> None:
        """See `ValueState`."""
        self.set(None)

    def _load(self) -> list[Any]:
        if self._cursor.at is None:
            _no_key(self, self._cursor)
        self._values = self._cells.load(self._cursor.keys, self._cursor.now_ms)
        self._dirty = bytearray(len(self._values))
        return self._values


class BoundList(ListState):
    """A `ListState` in a subtask."""

    def __init__(self, declared: ListState, cells: ListCells, cursor: Cursor) -> None:
        self.name, self.type, self.checked = declared.name, declared.type, declared.checked
        self._cells, self._cursor = cells, cursor

    def get(self) -> list[Any]:
        """See `ListState`."""
        elements = self._cells.elements(self._slot(), self._cursor.now_ms)
        return owned(elements) if self.checked.is_nested else list(elements)

    def append(self, element: Any) -> None:
        """See `ListState`."""
        slot = self._cursor.written(self._slot())
        self._cells.extend(slot, (self._checked(element),), self._cursor.now_ms)

    def extend(self, elements: Iterable[Any]) -> None:
        """See `ListState`."""
        slot = self._cursor.written(self._slot())
        self._cells.extend(slot, [self._checked(element) for element in elements], self._cursor.now_ms)

    def set(self, elements: Iterable[Any]) -> None:
        """See `ListState`."""
        slot = self._cursor.written(self._slot())
        self._cells.replace(slot, [self._checked(element) for element in elements], self._cursor.now_ms)

    def clear(self) -> None:
        """See `ListState`."""
        self._cells.replace(self._cursor.written(self._slot()), [], self._cursor.now_ms)

    def __len__(self) -> int:
        """See `ListState`."""
        return len(self._cells.elements(self._slot(), self._cursor.now_ms))

    def _slot(self) -> int:
        at = self._cursor.at
        if at is None:
            _no_key(self, self._cursor)
        slot: int = self._cursor.slots[at]
        return slot

    def _checked(self, element: Any) -> Any:
        if element is None:
            return None
        try:
            return self.checked.canonical(element)
        except MISFITS as error:
            raise _misfit(self, "element", self.type, element, error, self._cursor) from None


class BoundMap(MapState):
    """A `MapState` in a subtask; of broadcast state the one map, in slot 0."""

    def __init__(self, declared: MapState, cells: MapCells, cursor: Cursor) -> None:
        self.name, self.key, self.type = declared.name, declared.key, declared.type
        self.checked_key, self.checked = declared.checked_key, declared.checked
        self.is_broadcast = declared.is_broadcast
        self._cells, self._cursor = cells, cursor

    def get(self, key: Any, default: Any = None) -> Any:
        """See `MapState`."""
        slot = self._slot()
        found = self._cells.get(slot, self._checked_key(key), self._cursor.now_ms, default)
        return owned(found) if self.checked.is_nested else found

    def put(self, key: Any, value: Any) -> None:
        """See `MapState`."""
        slot = self._written_slot()
        key = self._checked_key(key)
        if value is not None:
            try:
                value = self.checked.canonical(value)
            except MISFITS as error:
                raise _misfit(self, f"value of {key!r}", self.type, value, error, self._cursor) from None
        self._cells.put(slot, key, value, self._cursor.now_ms)

    def remove(self, key: Any) -> None:
        """See `MapState`."""
        self._cells.remove(self._written_slot(), self._checked_key(key))

    def clear(self) -> None:
        """See `MapState`."""
        self._cells.clear(self._written_slot())

    def to_dict(self) -> dict[Any, Any]:
        """See `MapState`."""
        entries = self._cells.entries(self._slot(), self._cursor.now_ms)
        return dict(owned(entries)) if self.checked.is_nested else dict(entries)

    def __len__(self) -> int:
        """See `MapState`."""
        return len(self._cells.entries(self._slot(), self._cursor.now_ms))

    def is_empty(self) -> bool:
        """See `MapState`."""
        return len(self) == 0

    def _slot(self) -> int:
        if self.is_broadcast:
            return 0
        at = self._cursor.at
        if at is None:
            _no_key(self, self._cursor)
        slot: int = self._cursor.slots[at]
        return slot

    def _written_slot(self) -> int:
        if self.is_broadcast and not self._cursor.may_write_broadcast:
            raise RuntimeError(
                f"state {self.name!r} is broadcast state: only the broadcast side may change it, since "
                "all subtasks must agree; here it can only be read"
            )
        return 0 if self.is_broadcast else self._cursor.written(self._slot())

    def _checked_key(self, key: Any) -> Any:
        try:
            if key is None:
                raise TypeError
            return self.checked_key.canonical(key)
        except MISFITS as error:
            raise _misfit(self, "map key", self.key, key, error, self._cursor) from None


def _no_key(state: State, cursor: Cursor) -> NoReturn:
    raise RuntimeError(f"state {state.name!r} belongs to a key, but {cursor.misuse}")


def _misfit(
    state: State, what: str, type_: pa.DataType, value: Any, error: Exception, cursor: Cursor
) -> TypeError:
    of_key = "" if cursor.at is None else f" of key {cursor.describe_key()}"
    return TypeError(
        f"state {state.name!r}{of_key}: {what} {value!r} ({type(value).__name__}) is no {type_}{because(error)}"
    )
