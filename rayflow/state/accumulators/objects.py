"""Python objects by slot: sketches, and the states of users' aggregates.

Objects change in place, and may be large, so neither a snapshot nor an update copies them all: after `freeze`
both sides hold the same objects, and a slot's object is copied only when it is next wanted for a change.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np

from rayflow.state.accumulators.base import I64
from rayflow.state.accumulators.parts import SlotArray

_OVERHEAD_BYTES = 64


class ObjectSlots:
    """An object per slot, None until it is wanted. `create` makes one, `copied` returns a copy of one.

    A frozen part's objects never change, so they may be read on any thread."""

    def __init__(self, create: Callable[[], Any], copied: Callable[[Any], Any]) -> None:
        self._create, self._copied = create, copied
        self._objects = SlotArray(np.object_, None)
        self._shared = SlotArray(np.bool_)
        self.sizes = SlotArray(np.int64)
        """Bytes of each object, as far as its owner keeps account."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, about."""
        arrays = self._objects.nbytes + self._shared.nbytes + self.sizes.nbytes
        return arrays + int(self.sizes.values.sum()) + _OVERHEAD_BYTES * int((self.sizes.values > 0).sum())

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        for part in (self._objects, self._shared, self.sizes):
            part.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Drop the objects of `slots`."""
        for part in (self._objects, self._shared, self.sizes):
            part.clear(slots)

    def freeze(self) -> ObjectSlots:
        """Return what later changes do not touch."""
        frozen = copy.copy(self)
        frozen._objects = self._objects.freeze()
        self._shared.values[:] = True
        return frozen

    def get(self, slots: I64) -> list[Any]:
        """Return the objects of `slots`, to be read only; None where there is none."""
        objects: list[Any] = self._objects.values[slots].tolist()
        return objects

    def owned(self, slots: I64) -> list[Any]:
        """Return the objects of `slots` (none given twice), made where there are none, to be changed."""
        objects, shared = self.get(slots), self._shared.values[slots].tolist()
        for i, object_ in enumerate(objects):
            if object_ is None:
                objects[i] = self._create()
            elif shared[i]:
                objects[i] = self._copied(object_)
        self.put(slots, objects)
        return objects

    def put(self, slots: I64, objects: list[Any]) -> None:
        """Assign objects, nobody else's, to `slots`."""
        values = np.empty(len(objects), np.object_)
        # One by one: NumPy would take lists apart.
        for i, object_ in enumerate(objects):
            values[i] = object_
        self._objects.values[slots] = values
        self._shared.values[slots] = False
