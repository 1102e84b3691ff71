"""Results of windows of many slices: a tree over the slices, per key, so that each window merges few states.

Theory of operation. Rows are added to the accumulators of (key, slice) only, one update a row. Merging all slices of
each window anew would cost size/slide times as much as a tumbling window: with 300 slices a window, 300 times.
So slices are merged once into nodes of `_RADIX` neighbours, those into nodes of as many again, and so on, as in
"General Incremental Sliding-Window Aggregation" (Tangwongsan, Hirzel, Schneider, Wu, VLDB 2015; there a binary
tree, the flat aggregator FlatFAT). A window is the merge of O(log n) nodes: at most 2·(_RADIX − 1) a level.
Nothing is ever subtracted, so it is exact for every aggregate that can merge: extremes, lists, distinct values.

A node holds only keys that have rows in its slices; one with a single child that has any *is* that child. Nodes
are built when a window first needs them, and dropped when a row comes into one of their slices (a row that is late
for some of its windows) or their first slice is closed. They are no part of snapshots: slices are enough.

All nodes keep their states in one set of accumulators under slots of its own, and a window's result is merged in
a third, of which a place is used for as long as it takes to read the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rayflow.state.accumulators.columns import AggregateColumns
from rayflow.state.key_table import grown
from rayflow.windows.panes import PaneTable

I64 = npt.NDArray[np.int64]

_RADIX = 4
_FEW_SLICES = 8
"""Up to so many slices a window are merged directly."""


@dataclass(frozen=True, slots=True)
class _Node:
    """States of `keys` (by number, none twice) under `slots`: of the tree's accumulators where `in_tree`, else of
    the slices'. `is_own`: no other node has these slots."""

    keys: I64
    slots: I64
    in_tree: bool
    is_own: bool


class SliceTree:
    """Merges the states in `slices`, one per slot of `panes`, over ranges of panes.

    `make` makes an empty set of the same accumulators."""

    def __init__(
        self,
        panes: PaneTable,
        slices: AggregateColumns,
        make: Callable[[], AggregateColumns],
        per_window: int,
    ) -> None:
        from rayflow.windows import slice_kernels

        self._kernels = slice_kernels
        self._panes, self._slices = panes, slices
        self._merged, self._results = make(), make()
        self._slots = _SlotPool()
        self._levels = 0
        while per_window > _FEW_SLICES and _RADIX ** (self._levels + 1) <= per_window:
            self._levels += 1
        # None: no slice of the node has rows.
        self._nodes: dict[tuple[int, int], _Node | None] = {}
        self._leaves: dict[int, _Node] = {}
        # No node has slices from here on.
        self._built_end = np.iinfo(np.int64).min
        self._where: npt.NDArray[np.int32] = np.full(16, -1, np.int32)
        nothing = np.zeros(0, np.int64)
        self._kernels.number(nothing, self._where, nothing, nothing)

    @property
    def nbytes(self) -> int:
        """Bytes of memory held beside the slices."""
        nodes = sum(n.keys.nbytes + n.slots.nbytes for n in self._nodes.values() if n is not None)
        return self._merged.nbytes + self._results.nbytes + nodes + self._where.nbytes

    def touched(self, panes: I64) -> None:
        """Rows came into these panes: forget what was merged of them."""
        if not self._nodes:
            return
        # Most rows are in slices that nothing was merged of yet.
        for pane in np.unique(panes[panes < self._built_end]).tolist():
            for level in range(1, self._levels + 1):
                self._forget((level, pane // _RADIX**level))

    def drop_before(self, end: int) -> None:
        """Forget what was merged of panes before `end`. To be called before they are dropped."""
        for level, index in [at for at in self._nodes if at[1] * _RADIX ** at[0] < end]:
            self._forget((level, index))
        for pane in [pane for pane in self._leaves if pane < end]:
            del self._leaves[pane]

    def merge(
        self, ranges: Sequence[tuple[int, int]], only: Sequence[I64] | None = None
    ) -> tuple[I64, I64, AggregateColumns]:
        """Merge each range of panes per key that has rows in it, or per such key among `only` (by number, one
        array a range).

        Returns for every result the number of its range and of its key, and accumulators with the results under
        slots 0, 1, …, which the caller clears before the next call."""
        which: list[I64] = []
        numbers: list[I64] = []
        merges = _Merges()
        total = 0
        for i, (begin, end) in enumerate(ranges):
            nodes = self._cover(begin, end)
            if only is not None:
                nodes = [self._selected(node, only[i]) for node in nodes]
            if not nodes:
                continue
            keys = self._merge_nodes(nodes, total, merges)
            which.append(np.full(len(keys), i))
            numbers.append(keys)
            total += len(keys)
        merges.into(self._results, total, self._slices, self._merged)
        nothing = np.zeros(0, np.int64)
        return (
            np.concatenate(which) if which else nothing,
            np.concatenate(numbers) if numbers else nothing,
            self._results,
        )

    def _merge_nodes(self, nodes: Sequence[_Node], base: int, merges: _Merges) -> I64:
        """Plan to merge `nodes` into slots from `base` on, one per key; return the keys."""
        keys = nodes[0].keys if len(nodes) == 1 else np.concatenate([node.keys for node in nodes])
        self._where = grown(self._where, self._panes.key_limit, -1)
        places, distinct = np.empty(len(keys), np.int64), np.empty(len(keys), np.int64)
        count = self._kernels.number(keys, self._where, places, distinct)
        places += base
        at = 0
        for node in nodes:
            merges.add(places[at : at + len(node.keys)], node)
            at += len(node.keys)
        return distinct[:count]

    def _cover(self, begin: int, end: int) -> list[_Node]:
        """Return the fewest nodes that are, together, the panes from `begin` to before `end`."""
        nodes = []
        while begin < end:
            level, width = 0, 1
            while level < self._levels and begin % (width * _RADIX) == 0 and begin + width * _RADIX <= end:
                level, width = level + 1, width * _RADIX
            node = self._node(level, begin // width)
            if node is not None:
                nodes.append(node)
            begin += width
        return nodes

    def _node(self, level: int, index: int) -> _Node | None:
        if level == 0:
            return self._leaf(index)
        at = (level, index)
        if at not in self._nodes:
            children = [self._node(level - 1, index * _RADIX + i) for i in range(_RADIX)]
            self._nodes[at] = self._built([child for child in children if child is not None])
            self._built_end = max(self._built_end, (index + 1) * _RADIX**level)
        return self._nodes[at]

    def _leaf(self, pane: int) -> _Node | None:
        slots = self._panes.members(pane)
        if len(slots) == 0:
            return None
        leaf = self._leaves.get(pane)
        if leaf is None or leaf.slots is not slots:
            leaf = _Node(self._panes.key_numbers(slots), slots, in_tree=False, is_own=False)
            self._leaves[pane] = leaf
        return leaf

    def _built(self, children: Sequence[_Node]) -> _Node | None:
        if not children:
            return None
        if len(children) == 1:
            only = children[0]
            return _Node(only.keys, only.slots, only.in_tree, is_own=False)
        merges = _Merges()
        keys = self._merge_nodes(children, 0, merges).copy()
        slots = self._slots.take(len(keys))
        merges.into(self._merged, self._slots.limit, self._slices, self._merged, slots)
        return _Node(keys, slots, in_tree=True, is_own=True)

    def _selected(self, node: _Node, keys: I64) -> _Node:
        mine = np.isin(node.keys, keys)
        return _Node(node.keys[mine], node.slots[mine], node.in_tree, is_own=False)

    def _forget(self, at: tuple[int, int]) -> None:
        node = self._nodes.pop(at, None)
        if node is not None and node.is_own:
            self._merged.clear(node.slots)
            self._slots.give(node.slots)


class _Merges:
    """Which slots are to be merged into which: gathered, so that there is one call for all."""

    def __init__(self) -> None:
        self._targets: dict[bool, list[I64]] = {False: [], True: []}
        self._sources: dict[bool, list[I64]] = {False: [], True: []}

    def add(self, targets: I64, node: _Node) -> None:
        """The states of `node` go to `targets`."""
        self._targets[node.in_tree].append(targets)
        self._sources[node.in_tree].append(node.slots)

    def into(
        self,
        columns: AggregateColumns,
        slot_limit: int,
        slices: AggregateColumns,
        merged: AggregateColumns,
        slots: I64 | None = None,
    ) -> None:
        """Do it: targets are slots of `columns`, or places in `slots`."""
        for in_tree, source in ((False, slices), (True, merged)):
            if self._targets[in_tree]:
                targets = np.concatenate(self._targets[in_tree])
                into = targets if slots is None else slots[targets]
                columns.merge_slots(into, np.concatenate(self._sources[in_tree]), slot_limit, source)


class _SlotPool:
    """Hands out slots, those given back first."""

    def __init__(self) -> None:
        self.limit = 0
        """All slots ever given out are below this."""
        self._free: list[I64] = []

    def take(self, count: int) -> I64:
        """Return so many slots."""
        pieces = []
        while count and self._free:
            piece = self._free.pop()
            if len(piece) > count:
                self._free.append(piece[count:])
                piece = piece[:count]
            pieces.append(piece)
            count -= len(piece)
        pieces.append(np.arange(self.limit, self.limit + count))
        self.limit += count
        return np.concatenate(pieces)

    def give(self, slots: I64) -> None:
        """Take slots back."""
        self._free.append(slots)
