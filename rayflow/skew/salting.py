"""Hot keys take another way: rows of the keys that are salted at present go to the side output `SALTED`.

Theory of operation
-------------------
Rows of salted keys go to the side output, whose exchange deals them out to all subtasks of a combiner, as many to
each, and come as partial aggregates to where all other rows go directly.

*Which keys.* A sender begins with those that were salted before, if its job goes on after a restart or from a
checkpoint, and those that its own first rows show to be hot: chosen before these rows go
anywhere, and looked at again as more come, until there are `FIRST_ROWS` or the job master has spoken. Meanwhile every
sender watches which keys its rows have (`batch.key_traffic`, a sample that forgets) and tells the job master with
each heartbeat; `protocol.salting` puts together there what all of them see, and tells them what to salt.

*When.* What the master says takes effect at the next barrier, or after `SWITCH_MS` where none comes (checkpoints may
be off, or minutes apart); a sender's own choice at once. Each is right: neither way holds anything of a key across a
barrier, since combiners flush before it, and what rows of a key become does not depend on the way each took, since
partial aggregates may be merged in any order and any number. So no update is lost or counted twice, wherever the
switch falls, even if senders do it at different times. (Results for which the order of rows counts are not salted
this way; see `api.skew`.) So a restarted sender may begin with any set, and that of the checkpoint, which the master
keeps (`protocol.salting`), is there for evenness only: the operator has no state, and jobs with another setting of
`rf.Skew` restore the checkpoint.

Keys are known by their 64-bit hash. Keys that share one are salted together, which is no harm.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.changelog import visible
from rayflow.batch.hashing import Hashes, groups_of_hashes, hash_columns
from rayflow.batch.key_traffic import KeyTraffic
from rayflow.batch.tables import take
from rayflow.operators.contracts import Operator, OperatorContext, Output
from rayflow.protocol.key_groups import subtask_table
from rayflow.protocol.salting import LEAST_ROWS, MOST_KEYS, KeyCount, SeenKeys, keys_to_salt
from rayflow.state.parts import RestoredPart, StatePart

SALTED = "salted"

SWITCH_MS = 1_000

FIRST_ROWS = 65_536
COUNTERS = 512
SAMPLES_PER_SPAN = 16_384
"""A key with a thousandth of the rows should be seen, as what levels consumers is of that size."""

_PLACES = [(bits, shift) for bits in (8, 10, 12, 14, 16) for shift in range(64 - bits, -1, -8)]
"""How many bits of a hash are looked at, and above which."""

I64 = npt.NDArray[np.int64]


class _Salted:
    """Keys that are salted, ascending. Most rows are looked up: a table holds the keys by some bits of their hash, as
    few bits as tell them all apart, so that it stays in the processor's first cache; where none do, a binary search."""

    def __init__(self, keys: Iterable[int] = ()) -> None:
        self.keys = np.array(sorted(keys), np.uint64)
        self._table: Hashes | None = None
        for bits, shift in _PLACES:
            self._shift, self._mask = np.uint64(shift), np.uint64((1 << bits) - 1)
            slots = self._slots(self.keys)
            if len(np.unique(slots)) == len(slots):
                # What no hash of the slot can be.
                self._table = ~np.arange(1 << bits, dtype=np.uint64) << self._shift
                self._table[slots] = self.keys
                break

    def __len__(self) -> int:
        return len(self.keys)

    def among(self, hashes: Hashes) -> npt.NDArray[np.bool_]:
        """Return which rows, known by their keys' hashes, are salted. There is a key."""
        if self._table is None:
            likely = self.keys.take(np.searchsorted(self.keys, hashes), mode="clip")
        else:
            # mode="wrap": slots are in range, and NumPy's default checks and buffers.
            likely = self._table.take(self._slots(hashes), mode="wrap")
        found: npt.NDArray[np.bool_] = likely == hashes
        return found

    def _slots(self, hashes: Hashes) -> I64:
        bits = hashes >> self._shift
        bits &= self._mask
        slots: I64 = bits.view(np.int64)
        return slots


class SaltOperator(Operator):
    """Passes rows, or partial aggregates, on: those of salted keys (by the columns `keys`) to `SALTED`."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._keys = list(keys)
        self._traffic: KeyTraffic | None = None
        # Replaced as a whole, since heartbeats read them on another thread.
        self._salted = self._told = _Salted()
        self._coming: tuple[_Salted, int] | None = None
        # None once the first rows have been looked at, or the master has spoken.
        self._first: list[Hashes] | None = []
        self._first_rows, self._look_at_rows = 0, LEAST_ROWS

    def open(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        """See `Operator`."""
        super().open(ctx, out, restored)
        self._subtasks = np.array(subtask_table(ctx.max_parallelism, ctx.consumers), np.int64)
        self._rows_salted = ctx.metrics.counter("rows_salted")
        self._salted = self._told = _Salted(ctx.salted)
        self._traffic = KeyTraffic(
            self._keys, ctx.max_parallelism, show_keys=False, counters=COUNTERS, samples=SAMPLES_PER_SPAN
        )

    def process(self, batch: pa.RecordBatch, port: int) -> None:
        """Send each row its way."""
        rows = visible(batch)
        hashes = hash_columns(rows, self._keys)
        assert self._traffic is not None, "rows come after open"
        self._traffic.tick(self.ctx.now_ms())
        self._traffic.observe(rows, hashes)
        if self._first is not None:
            self._look(self._first, hashes)
        if self._coming is not None and self.ctx.now_ms() >= self._coming[1]:
            self._switch()
        if len(self._salted) == 0:
            self.out.emit(rows)
            return
        hot = self._salted.among(hashes)
        count = int(np.count_nonzero(hot))
        self._rows_salted.inc(count)
        if count == 0:
            self.out.emit(rows)
        elif count == rows.num_rows:
            self.out.emit_side(SALTED, rows)
        else:
            # One copy of both parts costs less than two filters.
            both = take(rows, np.concatenate((np.flatnonzero(hot), np.flatnonzero(~hot))))
            self.out.emit_side(SALTED, both.slice(0, count))
            self.out.emit(both.slice(count))

    def _look(self, first: list[Hashes], hashes: Hashes) -> None:
        """Choose by the first rows, whenever there are twice as many as the last time."""
        first.append(hashes)
        self._first_rows += len(hashes)
        if self._first_rows < self._look_at_rows:
            return
        self._look_at_rows = 2 * self._first_rows
        keys, counts = np.unique(np.concatenate(first), return_counts=True)
        consumers = self._consumers_of(keys)
        belonging = np.bincount(consumers, weights=counts, minlength=self.ctx.consumers)
        most = np.argsort(-counts, kind="stable")[:MOST_KEYS]
        found = zip(keys[most].tolist(), consumers[most].tolist(), counts[most].tolist())
        seen = SeenKeys(tuple(belonging.tolist()), tuple(KeyCount(*count) for count in found))
        told = self._told.keys.tolist()
        chosen = keys_to_salt(seen, frozenset(self._salted.keys.tolist())).difference(told)
        self._salted = _Salted((told + sorted(chosen))[:MOST_KEYS])
        if self._first_rows >= FIRST_ROWS:
            self._first = None

    def _consumers_of(self, keys: Hashes) -> I64:
        # A copy, which is overwritten.
        return self._subtasks.take(groups_of_hashes(keys.copy(), self.ctx.max_parallelism))

    def hot_keys(self) -> dict[str, Any] | None:
        """See `Operator`."""
        if self._traffic is None:  # a heartbeat while it is opened
            return None
        found, group_rows = self._traffic.recent(MOST_KEYS)
        consumers = self._consumers_of(np.array([entry.hash for entry in found], np.uint64)).tolist()
        salted = self._salted if self._coming is None else self._coming[0]
        return {
            "consumers": np.bincount(self._subtasks, weights=group_rows).tolist(),
            "keys": [[entry.hash, to, entry.guaranteed] for entry, to in zip(found, consumers)],
            "salted": salted.keys.tolist(),
        }

    def salt(self, keys: Sequence[int]) -> None:
        """See `Operator`."""
        coming = _Salted(keys)
        if self._first_rows == 0:  # nothing has gone any way yet, and what comes will be looked at
            self._salted = self._told = coming
            return
        self._coming = (coming, self.ctx.now_ms() + SWITCH_MS)
        self._first = None

    def snapshot(self, checkpoint_id: int) -> Sequence[StatePart]:
        """The barrier: what is to be salted from now on takes effect."""
        self._switch()
        return ()

    def _switch(self) -> None:
        coming = self._coming
        if coming is not None:
            # In this order: whoever looks in between sees the set that is right.
            self._salted = coming[0]
            self._coming = None
