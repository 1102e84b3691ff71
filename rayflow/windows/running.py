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

from rayflow.batch.memory import empty
from rayflow.state.accumulators.lanes import Lane
from rayflow.state.key_table import grown
from rayflow.windows.slice_table import OpenSlices, SliceTable

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Numbers = npt.NDArray[Any]

_NOWHERE = int(np.iinfo(np.int64).min)


@dataclass(frozen=True, slots=True)
class Results:
    """What is in some windows. Keys that nothing came to or went from have the same *version* in one window after the
    other: version i is of the key numbered `owners[i]`, and has the state `numbers` (an array a lane). In window w are
    the versions `rows[offsets[w] : offsets[w + 1]]`, of different keys. Windows with the same number in `orders` have
    the same keys in the same order."""

    owners: I64
    numbers: list[Numbers]
    rows: I32
    offsets: I64
    orders: I64


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
        # By place in that order.
        self._current: I32 = np.zeros(0, np.int32)
        self._lanes: list[_Sum | _Fold] = [
            (_Sum if lane.is_invertible else _Fold)(running_kernels, lane, width) for lane in lanes
        ]
        self._begin = self._end = _NOWHERE
        self._warm_up()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        own = (self._entries, self._places, self._order, self._current)
        return sum(array.nbytes for array in own) + sum(lane.nbytes for lane in self._lanes)

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
        return self._move(begins, begins + self._width, len(begins) * self._table.key_count)

    def leave(self, begin: int) -> None:
        """Take out what is before slice `begin`, which is about to be dropped."""
        if self._begin < begin and self._end != _NOWHERE:
            end = max(self._end, begin)
            self._move(np.array([begin]), np.array([end]), -1)

    def _move(self, begins: I64, ends: I64, most: int) -> Results:
        """Move on, and show `most` results, or fewer; below 0: none are wanted."""
        self._reserve()
        first = int(begins[0]) if self._begin == _NOWHERE else self._begin
        slices = self._table.between(first, int(ends[-1]))
        high = 0 if self._end == _NOWHERE else int(np.searchsorted(slices.numbers, self._end))
        shows, most = most >= 0, max(0, most)
        # Every entry may come, and go.
        moved, movers = empty(2 * len(self._table), np.int32), empty(2 * len(self._table), np.int32)
        cuts = np.zeros(2 * len(begins) + 1, np.int64)
        owners, made = empty(most, np.int64), np.zeros(len(begins) + 1, np.int64)
        rows, offsets = empty(most, np.int32), np.zeros(len(begins) + 1, np.int64)
        orders = np.zeros(len(begins), np.int64)
        self._kernels.move(
            slices.numbers, slices.heads, high, begins, ends, self._table.following, self._table.key_of,
            self._entries, self._places, self._order, self._current, self._meta, shows, moved, movers, cuts,
            owners, made, rows, offsets, orders,
        )  # fmt: skip
        step = _Step(
            slices, high, begins, ends, self._table, shows, moved, movers, cuts, owners[: made[-1]], made
        )
        numbers = [lane.move(step) for lane in self._lanes]
        self._begin, self._end = int(begins[-1]), int(ends[-1])
        return Results(step.owners, numbers, rows[: offsets[-1]], offsets, orders)

    def _reserve(self) -> None:
        limit = self._table.key_limit
        self._entries, self._places = grown(self._entries, limit), grown(self._places, limit)
        self._order, self._current = grown(self._order, limit), grown(self._current, limit)
        for lane in self._lanes:
            lane.reserve(limit, self._table.slot_limit)

    def _warm_up(self) -> None:
        self._move(np.zeros(1, np.int64), np.zeros(1, np.int64), 0)
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
    moved: I32
    movers: I32
    cuts: I64
    owners: I64
    made: I64


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
        """Move the window, and return the number of each version."""
        out = empty(len(step.owners), self._totals.dtype)
        self._kernels.move_sums(
            step.moved,
            step.movers,
            step.cuts,
            self._lane.array.values,
            self._totals,
            step.owners,
            step.made,
            out,
        )
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
        # By key: of the front, and of the back. By entry: of those after it.
        self._fronts, self._backs, self._after = (np.zeros(0, self._dtype) for _ in range(3))

    @property
    def nbytes(self) -> int:
        """Bytes of memory held."""
        return 2 * self._fronts.nbytes + self._after.nbytes

    def reserve(self, key_limit: int, slot_limit: int) -> None:
        """Make room for keys and entries below these."""
        self._fronts = grown(self._fronts, key_limit, self._identity)
        self._backs = grown(self._backs, key_limit, self._identity)
        self._after = grown(self._after, slot_limit)

    def reset(self) -> None:
        """The window holds nothing."""
        self._bound = _NOWHERE
        self._fronts[:] = self._backs[:] = self._identity

    def move(self, step: _Step) -> Numbers:
        """Move the window, and return the number of each version."""
        out = empty(len(step.owners), self._dtype)
        self._bound = self._kernels.move_folds(
            step.slices.numbers, step.slices.heads, step.high, step.begins, step.ends, step.table.following,
            step.table.key_of, step.moved, step.movers, step.cuts, self._bound, self._width,
            self._lane.operation, self._identity, self._lane.array.values.view(self._dtype), self._after,
            self._fronts, self._backs, step.shows, step.owners, step.made, out,
        )  # fmt: skip
        return out.view(self._lane.array.values.dtype)
