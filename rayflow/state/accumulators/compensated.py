"""Sums, means and variances of doubles from which values can be taken back.

Plain sums would keep the rounding errors of what is gone: adding 1e300 and taking it back loses all that was
there. So sums are kept as double-doubles (about 106 bits, see `kernels`), which makes them exact for numbers of
like sizes: integers come back to the last bit, other results to within a few units in the last place, unless
values that are gone were 2^50 (for variances, 2^25) times larger than what is left. Infinities and NaNs are
counted rather than added, so they can leave too. A slot whose last number left starts again from zero. A sum
that on its way leaves the range of doubles stays infinite or NaN until then.

Variance is n·Σx² − (Σx)², over n·(n − 1), in double-doubles; squares leave the range from 1e154 on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.state.accumulators.base import I64, Accumulator, Columns
from rayflow.state.accumulators.numeric import float64s, int64s
from rayflow.state.accumulators.parts import SlotArray

F64 = npt.NDArray[np.float64]


class Pairs:
    """Double-doubles by slot."""

    def __init__(self) -> None:
        self.highs, self.lows = SlotArray(np.float64), SlotArray(np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self.highs.nbytes + self.lows.nbytes

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""
        self.highs.reserve(slot_limit)
        self.lows.reserve(slot_limit)

    def clear(self, slots: I64) -> None:
        """Set `slots` to 0."""
        self.highs.clear(slots)
        self.lows.clear(slots)

    def freeze(self) -> Pairs:
        """Return a copy that later changes do not touch."""
        frozen = Pairs()
        frozen.highs, frozen.lows = self.highs.freeze(), self.lows.freeze()
        return frozen

    def add(self, slots: I64, highs: F64, lows: F64 | None = None) -> None:
        """Add `highs[i] + lows[i]` (without lows: `highs[i]`) to `slots[i]`."""
        from rayflow.state.accumulators import kernels

        lows = np.zeros(len(highs)) if lows is None else lows
        kernels.add_pairs(self.highs.values, self.lows.values, slots, highs, lows)

    def get(self, slots: I64) -> tuple[F64, F64]:
        """Return the higher and lower halves for `slots`."""
        return self.highs.values[slots], self.lows.values[slots]


_STATE = ("count", "nans", "infinities", "minus_infinities", "sum", "sum_low", "squares", "squares_low")


class RetractableMoments(Accumulator):
    """Sum, mean, sample variance or standard deviation of doubles; null where there are too few values."""

    _parts = ("_counts", "_nans", "_infinities", "_minus", "_sums", "_squares")

    def __init__(self, kind: str, output_type: pa.DataType) -> None:
        self._kind, self._output_type = kind, output_type
        self._squared = kind in ("variance", "stddev")
        self._counts = SlotArray(np.int64)  # of finite values
        self._nans, self._infinities, self._minus = (SlotArray(np.int64) for _ in range(3))
        self._sums, self._squares = Pairs(), Pairs()
        nothing = np.zeros(0, np.int64)
        self._change(nothing, np.zeros(0), 1)  # compiles the loops before there are rows

    def update(self, slots: I64, values: pa.Array | None, times: I64) -> None:
        """See `Accumulator`."""
        self._change(slots, float64s(values), 1)

    def retract(self, slots: I64, values: pa.Array | None, times: I64 | None) -> None:
        """See `Accumulator`."""
        self._change(slots, float64s(values), -1)
        empty = slots[self._counts.values[slots] == 0]
        self._sums.clear(empty)
        self._squares.clear(empty)

    def _change(self, slots: I64, numbers: F64, sign: int) -> None:
        from rayflow.state.accumulators import kernels

        finite = np.isfinite(numbers)
        if not finite.all():
            for counts, odd in (
                (self._nans, np.isnan(numbers)),
                (self._infinities, numbers == np.inf),
                (self._minus, numbers == -np.inf),
            ):
                np.add.at(counts.values, slots[odd], sign)
            slots, numbers = slots[finite], numbers[finite]
        np.add.at(self._counts.values, slots, sign)
        self._sums.add(slots, numbers * sign)
        if self._squared:
            highs, lows = np.empty(len(numbers)), np.empty(len(numbers))
            # Written to by the loops below, which are compiled for arrays of their own.
            kernels.square_pairs(np.array(numbers, np.float64), highs, lows)
            self._squares.add(slots, highs * sign, lows * sign)

    def merge(self, slots: I64, columns: Mapping[str, pa.Array]) -> None:
        """See `Accumulator`."""
        for counts, name in zip((self._counts, self._nans, self._infinities, self._minus), _STATE):
            np.add.at(counts.values, slots, int64s(columns[name]))
        self._sums.add(slots, float64s(columns["sum"]), float64s(columns["sum_low"]))
        if self._squared:
            self._squares.add(slots, float64s(columns["squares"]), float64s(columns["squares_low"]))

    def state_columns(self, slots: I64) -> Columns:
        """See `Accumulator`."""
        counts = (self._counts, self._nans, self._infinities, self._minus)
        pairs = [*self._sums.get(slots), *(self._squares.get(slots) if self._squared else ())]
        return list(zip(_STATE, map(pa.array, (*(array.values[slots] for array in counts), *pairs))))

    def results(self, slots: I64) -> pa.Array:
        """See `Accumulator`."""
        finite = self._counts.values[slots]
        nans, plus, minus = (a.values[slots] for a in (self._nans, self._infinities, self._minus))
        count = finite + nans + plus + minus
        if self._squared:
            values = np.where(count > finite, np.nan, self._spread(slots) / np.maximum(count - 1, 1))
            if self._kind == "stddev":
                values = np.sqrt(values)
            return pa.array(values, mask=count < 2).cast(self._output_type)
        highs, lows = self._sums.get(slots)
        values = np.where(plus > 0, np.inf, np.where(minus > 0, -np.inf, highs + lows))
        values = np.where((nans > 0) | ((plus > 0) & (minus > 0)), np.nan, values)
        if self._kind == "mean":
            values = values / np.maximum(count, 1)
        return pa.array(values, mask=count == 0).cast(self._output_type)

    def _spread(self, slots: I64) -> Any:
        from rayflow.state.accumulators import kernels

        spread = np.empty(len(slots))
        counts = np.maximum(self._counts.values[slots], 1).astype(np.float64)
        kernels.spreads(counts, *self._sums.get(slots), *self._squares.get(slots), spread)
        return spread
