"""Results of a sliding window that are kept up as it moves on, for aggregates whose state is lanes.

Theory of operation. A window and the next one share all slices but a few. So for each key the number of entries
(see `slice_table`) in the present window is kept, and for each lane the combined number; when the window moves on,
only the entries of slices that come in and go out are looked at, and results are read off for all keys it holds.

A number that is a sum of integers is added to and subtracted from. For all others (extremes, sums of floats) the window
is cut in two at a *bound*, as by van Herk (1992) and Gil and Werman (1993): bounds lie at whole multiples of the
window's width, so there is always one in it. For the *back*, from the bound on, one number per key takes up what
comes. The *front* is combined once from the bound backwards, and with each entry goes the number of those after it,
up to the bound: when the entry goes, that is the key's front. When the front is used up the next bound is taken.
Three combinations an entry, whatever the window's size; and since bounds do not depend on when a job was started,
floats are added in the same order after a restart.

A row that comes into a slice of the present window (late for some of its windows) makes all this void: it is
built anew from the slices, which hold all that is needed. Nothing here is part of snapshots.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayflow.state.accumulators.lanes import Lane
from rayflow.state.key_table import grown
from rayflow.windows.slice_table import OpenSlices, SliceTable

I64 = npt.NDArray[np.int64]
Numbers = npt.NDArray[Any]

_NOWHERE = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, slots=True)
class Results:
    """What is in some windows: `keys[offsets[w] : offsets[w + 1]]` are the numbers of the keys in window w, and
    `numbers` their states, an array a lane. `version`: two with the same have the same keys in every window, in the
    same order; None where keys came or went between these windows."""

    keys: I64
    offsets: I64
    numbers: list[Numbers]
    version: int | None


class RunningResults:
    """The results of a window over the slices of `table`, `width` slices long, for states that are `lanes`."""

    def __init__(self, table: SliceTable, lanes: list[Lane], width: int) -> None:
        from rayflow.windows import running_kernels

        self._kernels: Any = running_kernels
        self._table, self._width = table, width
        self._meta: I64 = np.zeros(running_kernels.META_FIELDS, np.int64)
        # By key number.
        self._entries: I64 = np.zeros(0, np.int64)
        self._places: I64 = np.zeros(0, np.int64)
        self._order: I64 = np.zeros(0, np.int64)
        self._lanes: list[_Sum | _Fold] = [
            (_Sum if lane.is_invertible else _Fold)(running_kernels, lane, width) for lane in lanes
        ]
        self._begin = self._end = _NOWHERE
        self._warm_up()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        own = self._entries.nbytes + self._places.nbytes + self._order.nbytes
        return own + sum(lane.nbytes for lane in self._lanes)

    def touched(self, slices: I64) -> None:
        """Rows came into these slices."""
        if self._end != _NOWHERE and int(slices.min()) < self._end:
            self.reset()

    def reset(self) -> None:
        """Forget all: the next window is built from the slices."""
        self._begin = self._end = _NOWHERE
        self._meta[self._kernels.COUNT] = 0
        self._meta[self._kernels.CHANGES] += 1
        self._entries[:] = 0
        for lane in self._lanes:
            lane.reset()

    def show(self, begins: I64) -> Results:
        """Move the window on, to begin at each of these slices in turn, and return the results."""
        most = len(begins) * self._table.key_count
        return self._move(begins, begins + self._width, np.empty(most, np.int64))

    def bounds(self, results: Results, starts: I64, size: int) -> tuple[I64, I64]:
        """Return the start and end of every result's window; `starts` are those of the windows."""
        firsts, ends = np.empty(len(results.keys), np.int64), np.empty(len(results.keys), np.int64)
        self._kernels.repeat_bounds(starts, results.offsets, size, firsts, ends)
        return firsts, ends

    def leave(self, begin: int) -> None:
        """Take out what is before slice `begin`, which is about to be dropped."""
        if self._begin < begin and self._end != _NOWHERE:
            end = max(self._end, begin)
            self._move(np.array([begin]), np.array([end]), None)

    def _move(self, begins: I64, ends: I64, keys: I64 | None) -> Results:
        self._reserve()
        first = int(begins[0]) if self._begin == _NOWHERE else self._begin
        slices = self._table.between(first, int(ends[-1]))
        high = 0 if self._end == _NOWHERE else int(np.searchsorted(slices.numbers, self._end))
        shows, kernels = keys is not None, self._kernels
        keys = np.zeros(0, np.int64) if keys is None else keys
        offsets = np.zeros(len(begins) + 1, np.int64)
        changes = kernels.move(
            slices.numbers, slices.heads, high, begins, ends, self._table.following, self._table.key_of,
            self._entries, self._places, self._order, self._meta, shows, keys, offsets,
        )  # fmt: skip
        step = _Step(slices, high, begins, ends, self._table, shows, keys[: offsets[-1]], offsets)
        numbers = [lane.move(step) for lane in self._lanes]
        self._begin, self._end = int(begins[-1]), int(ends[-1])
        is_same = changes == self._meta[kernels.CHANGES]
        return Results(step.keys, offsets, numbers, int(changes) if is_same else None)

    def _reserve(self) -> None:
        limit = self._table.key_limit
        self._entries, self._places = grown(self._entries, limit), grown(self._places, limit)
        self._order = grown(self._order, limit)
        for lane in self._lanes:
            lane.reserve(limit, self._table.slot_limit)

    def _warm_up(self) -> None:
        nothing = np.zeros(0, np.int64)
        self.bounds(
            self._move(np.zeros(1, np.int64), np.zeros(1, np.int64), nothing), np.zeros(1, np.int64), 1
        )
        self.reset()


@dataclass(frozen=True, slots=True)
class _Step:
    """How the window moves on; see `running_kernels`."""

    slices: OpenSlices
    high: int
    begins: I64
    ends: I64
    table: SliceTable
    shows: bool
    keys: I64
    offsets: I64


class _Sum:
    """A lane that is added to and subtracted from."""

    def __init__(self, kernels: Any, lane: Lane, width: int) -> None:
        self._kernels, self._lane = kernels, lane
        self._totals: Numbers = np.zeros(0, lane.array.values.dtype)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return self._totals.nbytes

    def reserve(self, key_limit: int, slot_limit: int) -> None:
        """Make room for keys and entries below these."""
        self._totals = grown(self._totals, key_limit)

    def reset(self) -> None:
        """The window holds nothing."""
        self._totals[:] = 0

    def move(self, step: _Step) -> Numbers:
        """Move the window, and return the number of each key shown."""
        out = np.empty(len(step.keys), self._totals.dtype)
        self._kernels.move_sums(
            step.slices.numbers, step.slices.heads, step.high, step.begins, step.ends, step.table.following,
            step.table.key_of, self._lane.array.values, self._totals, step.shows, step.keys, step.offsets, out,
        )  # fmt: skip
        return out


class _Fold:
    """A lane that is combined anew from every bound on."""

    def __init__(self, kernels: Any, lane: Lane, width: int) -> None:
        self._kernels, self._lane, self._width = kernels, lane, width
        dtype = lane.array.values.dtype
        # The loops are compiled for numbers, which the smallest ones do for flags.
        self._dtype = np.dtype(np.uint8) if dtype == np.bool_ else dtype
        self._identity = self._dtype.type(lane.identity)
        self._bound = _NOWHERE
        # By key: of the front, the back, and both. By entry: of those after it.
        self._fronts, self._backs, self._totals, self._after = (np.zeros(0, self._dtype) for _ in range(4))

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return 3 * self._fronts.nbytes + self._after.nbytes

    def reserve(self, key_limit: int, slot_limit: int) -> None:
        """Make room for keys and entries below these."""
        self._fronts, self._backs, self._totals = (
            grown(array, key_limit, self._identity) for array in (self._fronts, self._backs, self._totals)
        )
        self._after = grown(self._after, slot_limit)

    def reset(self) -> None:
        """The window holds nothing."""
        self._bound = _NOWHERE
        for array in (self._fronts, self._backs, self._totals):
            array[:] = self._identity

    def move(self, step: _Step) -> Numbers:
        """Move the window, and return the number of each key shown."""
        out = np.empty(len(step.keys), self._dtype)
        self._bound = self._kernels.move_folds(
            step.slices.numbers, step.slices.heads, step.high, step.begins, step.ends, self._bound, self._width,
            step.table.following, step.table.key_of, self._lane.operation, self._identity,
            self._lane.array.values.view(self._dtype), self._after, self._fronts, self._backs, self._totals,
            step.shows, step.keys, step.offsets, out,
        )  # fmt: skip
        return out.view(self._lane.array.values.dtype)
