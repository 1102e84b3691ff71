"""The states of users' aggregates by slot: Python objects, stored as text (`state.plain_data`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.user_aggregates import Style
from rayflow.model.errors import RayflowError
from rayflow.model.tracebacks import describe_error
from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.objects import ObjectSlots
from rayflow.state.accumulators.parts import SlotGroups
from rayflow.state.plain_data import decode, encode


class AggregateError(ValueError):
    """A user's aggregate raised, or what it returned is of no use. Names the aggregate and the user's line."""


class UserStatesBySlot(Accumulator):
    """Runs the aggregate called `name`, written in `style`. Values are structs: the columns that it reads."""

    is_columnar = False
    _parts = ("_states", "_groups")

    def __init__(self, name: str, style: Style, output_type: pa.DataType) -> None:
        self._name, self._style, self._output_type = name, style, output_type
        self._states = ObjectSlots(style.create, style.copied)
        self._groups = SlotGroups()
        self._is_storable = False

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        self._change("update", slots, values)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        self._change("retract", slots, values)

    def _change(self, method: str, slots: I64, values: Any) -> None:
        touched, places = self._groups.group(slots)
        if len(touched) > 1:
            values = values.take(pa.array(np.argsort(places, kind="stable")))
        rows, begin = pa.RecordBatch.from_struct_array(values), 0
        with self._blamed():
            states = self._states.owned(touched)
            for i, count in enumerate(np.bincount(places).tolist()):
                states[i] = self._style.change(method, states[i], rows.slice(begin, count))
                begin += count
            if states and not self._is_storable:
                # Found out with the first rows, not at the first checkpoint.
                encode(self._style.data(states[0]))
                self._is_storable = True
        self._states.put(touched, states)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        texts = columns["state"].to_pylist()
        with self._blamed():
            for slot, text in zip(slots, texts):
                if text is not None:
                    self._merge_one(np.array([slot]), self._style.state(decode(text)))

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        with self._blamed():
            for slot, state in zip(into, other._states.get(from_)):
                if state is not None:
                    # The other's state stays in use, and a user's merge may keep parts of what it is given.
                    self._merge_one(np.array([slot]), self._style.copied(state))

    def _merge_one(self, slot: I64, state: Any) -> None:
        if self._states.get(slot)[0] is not None:
            state = self._style.merge(self._states.owned(slot)[0], state)
        self._states.put(slot, [state])

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        with self._blamed():
            texts = [None if s is None else encode(self._style.data(s)) for s in self._states.get(slots)]
        return [("state", pa.array(texts, pa.large_string()))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        style = self._style
        with self._blamed():
            values = [style.result(style.create() if s is None else s) for s in self._states.get(slots)]
            return self._array(values)

    def _array(self, values: list[Any]) -> pa.Array:
        try:
            return pa.array(values, self._output_type)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            for value in values:
                try:
                    pa.array([value], self._output_type)
                except (pa.ArrowException, TypeError, ValueError, OverflowError):
                    shown = f"{value!r} ({type(value).__name__})"
                    raise AggregateError(
                        f"aggregate {self._name!r}: result() returned {shown}, expected {self._output_type}"
                    ) from error
            raise

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except (RayflowError, AggregateError):
            raise
        except Exception as error:
            raise AggregateError(f"aggregate {self._name!r}: {describe_error(error)}") from error
