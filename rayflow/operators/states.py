"""`ValueState`, `ListState` and `MapState`: what a process function remembers per key.

A state is declared as a class attribute of the function. When a subtask makes the function ready, each declaration
gets a *bound* twin (`bound_states`) in the instance's own dictionary, which Python finds first, so `self.count`
costs no call. Declarations refuse what only bound states can do, and assignment (`self.count = 5`), which would
replace the state.

What `get` returns is the caller's own: only `set`, `append`, `put` and their like change a state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NoReturn

import pyarrow as pa

from rayflow.batch.type_hints import arrow_type
from rayflow.model.durations import parse_duration_ms
from rayflow.model.errors import ConfigError, PlanError
from rayflow.model.location import caller_location
from rayflow.state.cells import Cells, ListCells, ValueCells
from rayflow.state.map_cells import MapCells
from rayflow.state.value_types import ValueType


class State(ABC):
    """A declaration: the name it has in the class, its type, its time to live."""

    kind: str
    is_broadcast = False

    def __init__(self, ttl: Any) -> None:
        self.name = ""
        self.ttl_ms: int | None = None
        if ttl is not None:
            try:
                self.ttl_ms = parse_duration_ms(ttl)
            except ConfigError as error:
                raise self._error(f"ttl: {error}") from None
            if self.ttl_ms == 0:
                raise self._error("ttl: expected a duration longer than zero")

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __set__(self, instance: Any, value: Any) -> None:
        how = f"self.{self.name}.value = …" if self.kind == "value" else f"self.{self.name}.clear() and so on"
        raise AttributeError(f"state {self.name!r} cannot be assigned to; change it with {how}")

    @abstractmethod
    def cells(self) -> Cells:
        """Return empty storage for it."""

    def _type(self, type_: Any, what: str) -> pa.DataType:
        found = None if type_ is None else arrow_type(type_)
        if found is None:
            raise self._error(
                f"{what} {type_!r}: expected an Arrow type, its name such as 'int64', or a Python type such as "
                "int, str, datetime or list[str]"
            )
        if _is_unstorable(found):
            raise self._error(f"{what} {found} cannot be stored; use plain, list, struct and map types")
        return found

    def _error(self, problem: str) -> PlanError:
        location = caller_location()
        return PlanError(f"rf.{type(self).__name__}: {problem}", None if location is None else str(location))

    def _unbound(self) -> NoReturn:
        if not self.name:
            raise RuntimeError(
                f"rf.{type(self).__name__} must be declared in the function's class body (count = rf.ValueState("
                "'int64')), not made in a method"
            )
        raise RuntimeError(
            f"state {self.name!r} can be used only while the function runs in a job: in process and on_timer"
        )


class ValueState(State):
    """One value per key.

    `type`: an Arrow type, its name, or a Python type. `default`: what an unset state gives. `ttl`: a value
    written longer ago than this (processing time) counts as unset. Setting None unsets it.
    """

    kind = "value"

    def __init__(self, type: Any, *, default: Any = None, ttl: Any = None) -> None:
        super().__init__(ttl)
        self.type = self._type(type, "type")
        self.checked = ValueType(self.type)
        try:
            self.default = None if default is None else self.checked.canonical(default)
        except MISFITS as error:
            raise self._error(f"default {default!r} is no {self.type}{because(error)}") from None

    @property
    def value(self) -> Any:
        """The value, the default where it is unset. May be assigned."""
        return self.get()

    @value.setter
    def value(self, value: Any) -> None:
        self.set(value)

    def get(self) -> Any:
        """Return the value, the default where it is unset."""
        self._unbound()

    def set(self, value: Any) -> None:
        """Set the value; None unsets it. Raises TypeError for what its type cannot hold."""
        self._unbound()

    def clear(self) -> None:
        """Unset it."""
        self._unbound()

    def cells(self) -> Cells:
        """See `State`."""
        return ValueCells(self.name, self.type, self.ttl_ms)


class ListState(State):
    """A list per key, of elements of one type. With `ttl`, each element lives so long from when it was added."""

    kind = "list"

    def __init__(self, type: Any, *, ttl: Any = None) -> None:
        super().__init__(ttl)
        self.type = self._type(type, "type")
        self.checked = ValueType(self.type)

    def get(self) -> list[Any]:
        """Return the elements, as a list of the caller's own."""
        self._unbound()

    def append(self, element: Any) -> None:
        """Add an element at the end."""
        self._unbound()

    def extend(self, elements: Iterable[Any]) -> None:
        """Add elements at the end."""
        self._unbound()

    def set(self, elements: Iterable[Any]) -> None:
        """Replace all elements."""
        self._unbound()

    def clear(self) -> None:
        """Remove all elements."""
        self._unbound()

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the elements as they are now."""
        return iter(self.get())

    def __len__(self) -> int:
        """Return the number of elements."""
        return len(self.get())

    def __bool__(self) -> bool:
        """Whether there are elements."""
        return len(self) > 0

    def cells(self) -> Cells:
        """See `State`."""
        return ListCells(self.name, self.type, self.ttl_ms)


class MapState(State):
    """A map per key, from keys of one type to values of another. With `ttl`, each entry lives so long from when it
    was last put.

    `broadcast`: one map for all keys, which the broadcast side of a connected stream writes and the other side
    reads (see `rf.CoProcessFunction`).
    """

    kind = "map"

    def __init__(self, key: Any, value: Any, *, ttl: Any = None, broadcast: bool = False) -> None:
        super().__init__(ttl)
        self.is_broadcast = broadcast
        self.key = self._type(key, "key type")
        self.type = self._type(value, "value type")
        if pa.types.is_nested(self.key):
            raise self._error(f"key type {self.key}: keys are numbers, texts, binaries or times")
        self.checked_key, self.checked = ValueType(self.key), ValueType(self.type)

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of `key`, else `default`."""
        self._unbound()

    def put(self, key: Any, value: Any) -> None:
        """Set the value of `key`; also `state[key] = value`."""
        self._unbound()

    def put_all(self, entries: Mapping[Any, Any]) -> None:
        """Set the values of several keys."""
        for key, value in entries.items():
            self.put(key, value)

    def remove(self, key: Any) -> None:
        """Remove `key`, if it is there; also `del state[key]`, which raises KeyError if it is not."""
        self._unbound()

    def clear(self) -> None:
        """Remove all entries."""
        self._unbound()

    def to_dict(self) -> dict[Any, Any]:
        """Return all entries, as a dict of the caller's own."""
        self._unbound()

    def items(self) -> list[tuple[Any, Any]]:
        """Return (key, value) of all entries as they are now."""
        return list(self.to_dict().items())

    def keys(self) -> list[Any]:
        """Return all keys as they are now."""
        return list(self.to_dict())

    def values(self) -> list[Any]:
        """Return all values as they are now."""
        return list(self.to_dict().values())

    def is_empty(self) -> bool:
        """Whether there are no entries."""
        return not self.to_dict()

    def __getitem__(self, key: Any) -> Any:
        """Return the value of `key`. Raises KeyError."""
        found = self.get(key, _MISSING)
        if found is _MISSING:
            raise KeyError(key)
        return found

    def __setitem__(self, key: Any, value: Any) -> None:
        """Set the value of `key`."""
        self.put(key, value)

    def __delitem__(self, key: Any) -> None:
        """Remove `key`. Raises KeyError."""
        self[key]
        self.remove(key)

    def __contains__(self, key: Any) -> bool:
        """Whether `key` is there."""
        return self.get(key, _MISSING) is not _MISSING

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys as they are now."""
        return iter(self.keys())

    def __len__(self) -> int:
        """Return the number of entries."""
        return len(self.to_dict())

    def __bool__(self) -> bool:
        """Whether there are entries."""
        return not self.is_empty()

    def cells(self) -> Cells:
        """See `State`."""
        return MapCells(self.name, self.key, self.type, self.ttl_ms)


_MISSING: Any = object()


def declared_states(function: type) -> dict[str, State]:
    """Return the states declared in a function's class and its bases, by name, in order of declaration."""
    found: dict[str, State] = {}
    for base in reversed(function.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, State):
                found[name] = value
            else:
                found.pop(name, None)
    return found


MISFITS = (TypeError, ValueError, OverflowError, pa.ArrowException)
"""What `ValueType.canonical` raises."""


def because(error: Exception) -> str:
    """Return the end of a message that says why, where the error does."""
    return f": {error}" if str(error) else ""


def _is_unstorable(type_: pa.DataType) -> bool:
    t = pa.types
    return bool(
        t.is_null(type_)
        or t.is_dictionary(type_)
        or t.is_union(type_)
        or t.is_string_view(type_)
        or t.is_binary_view(type_)
        or isinstance(type_, pa.BaseExtensionType)
        or t.is_run_end_encoded(type_)
        or t.is_list_view(type_)
    )
