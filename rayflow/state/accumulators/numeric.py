"""Counts, sums, means and variances.

Integers and decimals are summed exactly, in limbs of 32 bits held in int64: a limb takes 2^30 additions
before its carry must be moved on, so sums neither wrap nor depend on the order of rows; whether a sum fits its
type is checked when it is read. Floats are summed as they come. Variances are kept as count, mean and sum
of squared deviations; a batch is reduced in two passes and merged by the formula of Chan, Golub and LeVeque
("Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979), which is stable.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.lanes import ADD, Lane
from rayflow.state.accumulators.parts import SlotArray, SlotGroups
from rayflow.state.fixed_width import FixedWidth

Numbers = npt.NDArray[Any]

_LIMB_BITS = 32
_LIMB_MASK = (1 << _LIMB_BITS) - 1
_ROWS_BETWEEN_CARRIES = 1 << 30


def int64s(array: pa.Array) -> I64:
    """Return an integer column as int64, null as 0."""
    filled = pc.fill_null(array, 0) if array.null_count else array
    return filled.cast(pa.int64()).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class Count(Accumulator):
    """Number of rows, or of values."""

    _parts = ("_counts",)

    def __init__(self, output_type: pa.DataType) -> None:
        self._output_type = output_type
        self._counts = SlotArray(np.int64)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        np.add.at(self._counts.values, slots, 1)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        np.subtract.at(self._counts.values, slots, 1)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        np.add.at(self._counts.values, slots, int64s(columns["count"]))

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        np.add.at(self._counts.values, into, other._counts.values[from_])

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return [("count", pa.array(self.counts(slots)))]

    def states_of(self, rows: int, values: pa.Array | None) -> Columns | None:
        """See `Accumulator`."""
        return [("count", _ones(rows))]

    def counts(self, slots: I64) -> I64:
        """Return the counts of `slots`."""
        counts: I64 = self._counts.values[slots]
        return counts

    def results(self, slots: I64) -> pa.Array:
        """Return counts; 0 where nothing was counted."""
        return self.results_of([self._counts.values[slots]])

    def lanes(self) -> tuple[Lane, ...]:
        """See `Accumulator`."""
        return (Lane(self._counts, ADD),)

    def results_of(self, numbers: Sequence[Numbers]) -> pa.Array:
        """See `Accumulator`."""
        return pa.array(numbers[0]).cast(self._output_type)


class Limbs:
    """Exact integers by slot: the sum of limb i times 2^(32·i), all but the last below 2^32 after a carry."""

    def __init__(self, limbs: int) -> None:
        self._limbs = [SlotArray(np.int64) for _ in range(limbs)]
        self._rows = 0

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return sum(limb.nbytes for limb in self._limbs)

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        for limb in self._limbs:
            limb.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Set `slots` to 0."""
        for limb in self._limbs:
            limb.clear(slots)

    def freeze(self) -> Limbs:
        """Return a copy that later changes do not touch."""
        frozen = Limbs(0)
        frozen._limbs = [limb.freeze() for limb in self._limbs]
        return frozen

    def add(self, slots: I64, parts: list[I64]) -> None:
        """Add numbers given as limbs, each of at most 33 bits with its sign."""
        self._rows += len(slots)
        if self._rows > _ROWS_BETWEEN_CARRIES:
            _carry([limb.values for limb in self._limbs])
            self._rows = len(slots)
        for limb, part in zip(self._limbs, parts):
            np.add.at(limb.values, slots, part)

    def get(self, slots: I64) -> list[I64]:
        """Return the limbs of `slots`, carried."""
        limbs = [limb.values[slots] for limb in self._limbs]
        _carry(limbs)
        return limbs

    def lanes(self) -> tuple[Lane, ...]:
        """Return a lane for each limb, lowest first. Not carried."""
        return tuple(Lane(limb, ADD) for limb in self._limbs)


def _carry(limbs: list[I64]) -> None:
    for low, high in itertools.pairwise(limbs):
        high += low >> _LIMB_BITS
        low &= _LIMB_MASK


def _limbs_of(values: pa.Array) -> list[I64]:
    """Split integers (2 limbs) or decimals (4, or 8 for those of 256 bits), lowest limb first."""
    if not pa.types.is_decimal(values.type):
        return _halves(FixedWidth(values.type).numbers(values))
    wide = values.cast(_widest_decimal(values.type))
    width = wide.type.bit_width // 64
    words = np.frombuffer(wide.buffers()[1], np.uint64, width * len(wide), 8 * width * wide.offset)
    columns = [words[i::width] for i in range(width)]
    return [half for column in [*columns[:-1], columns[-1].view(np.int64)] for half in _halves(column)]


def _widest_decimal(type_: pa.DataType) -> pa.DataType:
    return pa.decimal256(76, type_.scale) if pa.types.is_decimal256(type_) else pa.decimal128(38, type_.scale)


def _halves(words: Numbers) -> list[I64]:
    if words.dtype == np.uint64:
        return [
            (words & np.uint64(_LIMB_MASK)).astype(np.int64),
            (words >> np.uint64(_LIMB_BITS)).astype(np.int64),
        ]
    return [words & _LIMB_MASK, words >> _LIMB_BITS]


class ExactSum(Accumulator):
    """Sum, or mean, of integers, booleans, durations or decimals; null where there were no values."""

    _parts = ("_sums", "_counts")

    def __init__(self, input_type: pa.DataType, output_type: pa.DataType, *, mean: bool) -> None:
        self._decimal = pa.types.is_decimal(input_type)
        self._input_type, self._output_type, self._mean = input_type, output_type, mean
        self._sums = Limbs(_widest_decimal(input_type).bit_width // 32 if self._decimal else 2)
        self._counts = SlotArray(np.int64)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        assert values is not None
        self._sums.add(slots, _limbs_of(values))
        np.add.at(self._counts.values, slots, 1)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        assert values is not None
        self._sums.add(slots, [-limb for limb in _limbs_of(values)])
        np.subtract.at(self._counts.values, slots, 1)

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        self._sums.add(into, other._sums.get(from_))
        np.add.at(self._counts.values, into, other._counts.values[from_])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        names = [name for name, _ in self.state_columns(slots[:0])]
        self._sums.add(slots, [int64s(columns[name]) for name in names[:-1]])
        np.add.at(self._counts.values, slots, int64s(columns["count"]))

    def state_columns(self, slots: I64) -> Columns:
        """Return the limbs, lowest first, and the count of values."""
        limbs = [(f"limb{i}", pa.array(limb)) for i, limb in enumerate(self._sums.get(slots))]
        return [*limbs, ("count", pa.array(self._counts.values[slots]))]

    def states_of(self, rows: int, values: pa.Array | None) -> Columns | None:
        """See `Accumulator`. The limbs of one number have nothing to carry."""
        limbs = [(f"limb{i}", pa.array(limb)) for i, limb in enumerate(_limbs_of(values))]
        return [*limbs, ("count", _ones(rows))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return self._results(self._sums.get(slots), self._counts.values[slots])

    def lanes(self) -> tuple[Lane, ...]:
        """See `Accumulator`."""
        return (*self._sums.lanes(), Lane(self._counts, ADD))

    def results_of(self, numbers: Sequence[Numbers]) -> pa.Array:
        """See `Accumulator`."""
        limbs = list(numbers[:-1])
        _carry(limbs)
        return self._results(limbs, numbers[-1])

    def _results(self, limbs: list[I64], counts: I64) -> pa.Array:
        none = counts == 0
        if self._mean:
            total = sum(limb * 2.0 ** (_LIMB_BITS * i) for i, limb in reversed(list(enumerate(limbs))))
            scale = 10.0**self._input_type.scale if self._decimal else 1.0
            means = total / np.maximum(counts, 1) / scale
            return masked(means, none).cast(self._output_type)
        if self._decimal:
            return self._decimals(limbs, none)
        return self._integers(limbs, none)

    def _integers(self, limbs: list[I64], none: npt.NDArray[np.bool_]) -> pa.Array:
        low, high = limbs
        unsigned = pa.types.is_unsigned_integer(self._output_type)
        least, most = (0, _LIMB_MASK) if unsigned else (-(1 << 31), (1 << 31) - 1)
        if len(high) and (high.min() < least or high.max() > most):
            raise OverflowError(f"a sum does not fit {self._output_type}; cast the column to a wider type")
        words = (high << _LIMB_BITS) | low
        array = masked(words.view(np.uint64) if unsigned else words, none)
        return array.cast(self._output_type)

    def _decimals(self, limbs: list[I64], none: npt.NDArray[np.bool_]) -> pa.Array:
        if len(none) and not (limbs[-1].min() >= -(1 << 31) and limbs[-1].max() < 1 << 31):
            raise OverflowError(f"a sum does not fit {self._output_type}")
        width = len(limbs) // 2
        words = np.empty(width * len(none), np.int64)
        for i in range(width):
            words[i::width] = (limbs[2 * i + 1] << _LIMB_BITS) | limbs[2 * i]
        bitmap = pa.py_buffer(np.packbits(~none, bitorder="little").tobytes())
        buffers = [bitmap, pa.py_buffer(words)]
        array = pa.Array.from_buffers(_widest_decimal(self._input_type), len(none), buffers)
        try:
            array.validate(full=True)
            return array.cast(self._output_type)
        except pa.ArrowInvalid as error:
            raise OverflowError(f"a sum does not fit {self._output_type}: {error}") from error


class FloatSum(Accumulator):
    """Sum, or mean, of floats; null where there were no values."""

    _parts = ("_sums", "_counts")

    def __init__(self, output_type: pa.DataType, *, mean: bool) -> None:
        self._output_type, self._mean = output_type, mean
        self._sums, self._counts = SlotArray(np.float64), SlotArray(np.int64)

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        self._add(slots, float64s(values))
        np.add.at(self._counts.values, slots, 1)

    def _add(self, slots: I64, numbers: Numbers) -> None:
        # Sums of opposite infinities are NaN; NumPy would warn.
        with np.errstate(invalid="ignore", over="ignore"):
            np.add.at(self._sums.values, slots, numbers)

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        self._add(into, other._sums.values[from_])
        np.add.at(self._counts.values, into, other._counts.values[from_])

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        self._add(slots, float64s(columns["sum"]))
        np.add.at(self._counts.values, slots, int64s(columns["count"]))

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return [
            ("sum", pa.array(self._sums.values[slots])),
            ("count", pa.array(self._counts.values[slots])),
        ]

    def states_of(self, rows: int, values: pa.Array | None) -> Columns | None:
        """See `Accumulator`. To 0 it is added, as there: -0.0 becomes 0.0."""
        return [("sum", pa.array(float64s(values) + 0.0)), ("count", _ones(rows))]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        return self.results_of([self._sums.values[slots], self._counts.values[slots]])

    def lanes(self) -> tuple[Lane, ...]:
        """See `Accumulator`."""
        return (Lane(self._sums, ADD), Lane(self._counts, ADD))

    def results_of(self, numbers: Sequence[Numbers]) -> pa.Array:
        """See `Accumulator`."""
        sums, counts = numbers
        values = sums / np.maximum(counts, 1) if self._mean else sums
        return masked(values, counts == 0).cast(self._output_type)


def _ones(rows: int) -> pa.Array:
    return pa.array(np.ones(rows, np.int64))


def masked(numbers: Numbers, null: npt.NDArray[np.bool_]) -> pa.Array:
    """Return `numbers` as a column, null where `null` is set; without a copy where it is not."""
    return pa.array(numbers, mask=null) if null.any() else pa.array(numbers)


def float64s(values: pa.Array | None) -> npt.NDArray[np.float64]:
    """Return a numeric column without nulls as float64."""
    assert values is not None
    return values.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class Variance(Accumulator):
    """Sample variance, or standard deviation; null below two values."""

    _parts = ("_counts", "_means", "_squares", "_groups")

    def __init__(self, output_type: pa.DataType, *, root: bool) -> None:
        self._output_type, self._root = output_type, root
        self._counts = SlotArray(np.float64)
        self._means, self._squares = SlotArray(np.float64), SlotArray(np.float64)
        self._groups = SlotGroups()

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        numbers = float64s(values)
        touched, rows = self._groups.group(slots)
        counts = np.bincount(rows, minlength=len(touched)).astype(np.float64)
        # Infinities make NaNs here, as they should; NumPy would warn.
        with np.errstate(invalid="ignore", over="ignore"):
            means = np.bincount(rows, numbers, len(touched)) / counts
            squares = np.bincount(rows, (numbers - means[rows]) ** 2, len(touched))
            self._combine(touched, counts, means, squares)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        self._merge(slots, *(float64s(columns[name]) for name in ("count", "mean", "squares")))

    def merge_slots(self, into: I64, from_: I64, source: Any = None) -> None:
        """See `Accumulator`."""
        other = self if source is None else source
        self._merge(into, *(part.values[from_] for part in (other._counts, other._means, other._squares)))

    def _merge(self, slots: I64, counts: Numbers, means: Numbers, squares: Numbers) -> None:
        some = counts > 0
        if not some.all():
            slots, counts, means, squares = slots[some], counts[some], means[some], squares[some]
        touched, rows = self._groups.group(slots)
        with np.errstate(invalid="ignore", over="ignore"):
            # Several states of one slot are first made one: _combine assigns.
            if len(touched) < len(slots):
                all_counts = np.bincount(rows, counts)
                all_means = np.bincount(rows, counts * means) / all_counts
                squares = np.bincount(rows, squares + counts * (means - all_means[rows]) ** 2)
                slots, counts, means = touched, all_counts, all_means
            self._combine(slots, counts, means, squares)

    def _combine(self, slots: I64, counts: Numbers, means: Numbers, squares: Numbers) -> None:
        old = self._counts.values[slots]
        total = old + counts
        delta = means - self._means.values[slots]
        self._counts.values[slots] = total
        self._means.values[slots] += delta * (counts / total)
        self._squares.values[slots] += squares + delta * delta * (old * (counts / total))

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        return [
            ("count", pa.array(self._counts.values[slots].astype(np.int64))),
            ("mean", pa.array(self._means.values[slots])),
            ("squares", pa.array(self._squares.values[slots])),
        ]

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        counts = self._counts.values[slots]
        values = self._squares.values[slots] / np.maximum(counts - 1, 1)
        return pa.array(np.sqrt(values) if self._root else values, mask=counts < 2).cast(self._output_type)
