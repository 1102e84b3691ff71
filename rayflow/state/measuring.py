"""How many bytes an operator's state takes in memory: found by walking what the operator holds.

Theory of operation. State is NumPy columns, Arrow data, and containers of Python objects, held by instances of
rayflow's own classes. The walk goes through these, counts every array and every Arrow buffer once, by the memory
it owns (a slice counts as what it keeps alive; columns that have grown ahead of need count whole), and takes
`SAMPLE` elements of a long container of Python objects for all of them. So its cost follows from the number of columns
and batches, not of keys.

What a user's object holds (the function itself, a model it has loaded) is not state, and is not entered; elements of
containers are entered whatever they are, since users' accumulators and rows lie in these. An object that keeps its
memory where the walk does not see it (a bitmap in C, a store on disk) has a method `measured_bytes()`, which is
believed.

The result is an estimate: allocators take more, and objects that raise when they are looked at count as nothing.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum, auto
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

_log = logging.getLogger(__name__)
T = TypeVar("T")

SAMPLE = 64
_MOST_VISITS = 20_000
_MOST_ELEMENTS = 4_096
_ELEMENT_DEPTH = 4
_OWN = "rayflow."
_ARROW = (pa.Array, pa.ChunkedArray, pa.RecordBatch, pa.Table)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque, OrderedDict, defaultdict, MappingProxyType)
_COLUMNS = (np.ndarray, *_ARROW)
_MEASURED_BYTES = "measured_bytes"
# Most of what is found: nothing lies within, and the questions below would cost more than all the rest.
_PLAIN = frozenset({int, float, bool, str, type(None)})
# Names of the slots of our own classes, of which there are only so many.
_SLOTS: dict[type, list[str]] = {}


class _Kind(Enum):
    """What is done with an object that an own object has."""

    PLAIN = auto()
    ARRAY = auto()
    ARROW = auto()
    CONTAINER = auto()
    BYTES = auto()
    OWN = auto()
    FOREIGN = auto()


_CLASSES: dict[_Kind, tuple[type, ...]] = {
    _Kind.ARRAY: (np.ndarray,),
    _Kind.ARROW: _ARROW,
    _Kind.CONTAINER: _CONTAINERS,
    _Kind.BYTES: (bytes, bytearray, pa.Buffer),
}


def held_bytes(roots: Iterable[Any]) -> int:
    """Return the bytes that `roots` hold together, for the process that has them. On the thread that changes them."""
    return _Walk().total(roots)


class _Walk:
    """One measurement. Bounded: after `_MOST_VISITS` objects it stops, and what it has is the answer."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._buffers: set[int] = set()
        self._left = _MOST_VISITS

    def total(self, roots: Iterable[Any]) -> int:
        return sum(self._size(root) for root in roots)

    def _size(self, value: Any) -> int:
        """Size of what an own object's attribute is."""
        kind = _kind(type(value))
        if kind is _Kind.PLAIN or self._left <= 0 or id(value) in self._seen:
            return 0
        self._left -= 1
        match kind:
            case _Kind.ARRAY:
                return self._array(value)
            case _Kind.ARROW:
                return self._arrow(value)
            case _Kind.CONTAINER:
                self._seen.add(id(value))
                return self._foreign(self._container, value, _ELEMENT_DEPTH)
            case _Kind.OWN:
                self._seen.add(id(value))
                told = _told(value)
                return sum(map(self._size, _attributes(value))) if told is None else told
            case _Kind.BYTES:
                return sys.getsizeof(value)
        return 0

    def _foreign(self, measure: Callable[[Any, int], int], value: Any, depth: int) -> int:
        """Size of what may be a user's: code of its own may run, and must not fail the job for being looked at."""
        try:
            return measure(value, depth)
        except Exception:
            _log.debug("%s does not let itself be measured", type(value), exc_info=True)
            return 0

    def _element_or_own(self, value: Any, depth: int) -> int:
        """Size of what lies in a container."""
        if type(value) in _PLAIN:
            if id(value) in self._seen:
                return 0
            self._seen.add(id(value))
            return sys.getsizeof(value)
        return self._foreign(self._inside, value, depth)

    def _inside(self, value: Any, depth: int) -> int:
        if _kind(type(value)) is _Kind.CONTAINER:
            return 0 if depth == 0 or id(value) in self._seen else self._container(value, depth - 1)
        if _is_whole(type(value)):
            return self._size(value)
        told = _told(value)
        return self._element(value, depth) if told is None else told

    def _element(self, value: Any, depth: int) -> int:
        """Size of a plain or foreign object that lies in a container."""
        if id(value) in self._seen or callable(value) or isinstance(value, type):
            return 0
        # Names of columns and small numbers are shared by all rows.
        self._seen.add(id(value))
        size = sys.getsizeof(value, 0)
        inner = getattr(value, "__dict__", None)
        if depth > 0 and isinstance(inner, dict):
            size += self._container(inner, depth - 1)
        return size

    def _container(self, value: Any, depth: int) -> int:
        count = len(value)
        pairs = hasattr(value, "items")
        taken = list(islice(value.items() if pairs else value, _MOST_ELEMENTS))
        if not taken:
            return sys.getsizeof(value, 0)
        if not _is_whole(type(taken[0][1] if pairs else taken[0])):
            taken = taken[:SAMPLE]
        parts = (part for item in taken for part in (item if pairs else (item,)))
        inner = sum(self._element_or_own(part, depth) for part in parts)
        return sys.getsizeof(value, 0) + inner * count // len(taken)

    def _array(self, array: np.ndarray[Any, Any]) -> int:
        owner: Any = array
        while isinstance(owner, np.ndarray) and owner.base is not None:
            owner = owner.base
        if id(owner) in self._seen:
            return 0
        self._seen.add(id(owner))
        if not isinstance(owner, np.ndarray):
            return self._buffer(owner) if isinstance(owner, pa.Buffer) else array.nbytes
        if owner.dtype.hasobject and owner.size:
            return owner.nbytes + self._objects(owner)
        return owner.nbytes

    def _objects(self, array: np.ndarray[Any, Any]) -> int:
        taken = list(islice(array.flat, SAMPLE))
        return sum(self._element_or_own(item, _ELEMENT_DEPTH) for item in taken) * array.size // len(taken)

    def _arrow(self, value: Any) -> int:
        if isinstance(value, pa.Array):
            return sum(self._buffer(buffer) for buffer in value.buffers() if buffer is not None)
        if isinstance(value, pa.ChunkedArray):
            return sum(map(self._arrow, value.chunks))
        return sum(map(self._arrow, value.columns))

    def _buffer(self, buffer: pa.Buffer) -> int:
        while buffer.parent is not None:
            buffer = buffer.parent
        if buffer.address in self._buffers:
            return 0
        self._buffers.add(buffer.address)
        size: int = buffer.size
        return size


def _each_type_once(ask: Callable[[type], T]) -> Callable[[type], T]:
    # Types, and not objects, are asked what they are: a job has few, and a walk meets thousands of objects.
    return functools.lru_cache(maxsize=4_096)(ask)


@_each_type_once
def _kind(cls: type) -> _Kind:
    if cls in _PLAIN:
        return _Kind.PLAIN
    for kind, classes in _CLASSES.items():
        if issubclass(cls, classes):
            return kind
    return _Kind.OWN if _is_own(cls) and not issubclass(cls, type) else _Kind.FOREIGN


@_each_type_once
def _is_whole(cls: type) -> bool:
    """Whether elements like this may share memory, so that none can stand for others."""
    return cls not in _PLAIN and (issubclass(cls, _COLUMNS) or _is_own(cls))


def _is_own(cls: type) -> bool:
    return (cls.__module__ or "").startswith(_OWN)


@_each_type_once
def _measuring_method(cls: type) -> Callable[[Any], Any] | None:
    method = getattr(cls, _MEASURED_BYTES, None)
    return method if callable(method) else None


def _told(value: Any) -> int | None:
    method = _measuring_method(type(value))
    return None if method is None else int(method(value))


def _attributes(value: Any) -> list[Any]:
    found = list(vars(value).values()) if hasattr(value, "__dict__") else []
    kind = type(value)
    names = _SLOTS.get(kind)
    if names is None:
        names = _SLOTS[kind] = _slots(kind)
    return found + [getattr(value, name) for name in names if hasattr(value, name)]


def _slots(cls: type) -> list[str]:
    """Return the names of the slots of one of our own classes."""
    names: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names += (slots,) if isinstance(slots, str) else slots
    return [name for name in names if not name.startswith("__")]
