"""Partitioners: which rows of a producer's batch go to which consumer of an exchange.

Theory of operation
-------------------
A partitioner belongs to one producing subtask and one edge. `split` cuts a batch into at most one batch per
consumer and keeps the order of rows, so order holds per producer and consumer, hence per key.

The hash split is the hottest path of the system: hash the keys, look up each key group's subtask in a small
table, sort the row numbers by subtask (stably), gather the whole batch once in that order, and hand out
zero-copy slices. Measured (tests/benchmarks/bench_partition.py; 3 int64 columns, one core, M rows/s at 4k / 16k /
64k rows a batch): 33 / 72 / 109 for 2 consumers, 29 / 59 / 72 for 8, 16 / 40 / 59 for 128. What was tried:
NumPy's stable argsort of uint8 is a radix sort as fast as a counting sort compiled with Numba; for 2 and 3
consumers one `nonzero` each is faster still; gathering per consumer costs as much for 2 consumers, twice as much
for 8 and 10 times for 128; `filter` per consumer is slower at every size.

The slices of one batch share its buffers: a slice that waits in a queue keeps its siblings' rows in memory.
What is queued is bounded per channel in batches, so that is bounded too.

Invariants:

1. Every row goes to exactly one consumer (broadcast: to every one), in its order among that consumer's rows.
2. The hash target of a row is `subtask_of_key_group(hash % max_parallelism)`: it depends on the key's value
   only (unless the exchange is salted, see `SaltedPartitioner`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import groups_of_hashes, hash_columns
from rayflow.batch.key_traffic import KeyTraffic
from rayflow.batch.tables import take
from rayflow.model.errors import ProtocolViolation
from rayflow.protocol.key_groups import subtask_table

PartitionKind = Literal["forward", "hash", "rebalance", "rescale", "broadcast"]

_SLICE_ROWS = 4096
"""Rebalancing cuts no slices smaller than this."""

_FEW_CONSUMERS = 3


class Partitioner(ABC):
    """Splits batches of one producing subtask among the `consumers` subtasks it has channels to: all of
    them, one (`forward`) or its share (`rescale`). Not thread-safe."""

    keyed = False
    """Whether the key decides where a row goes."""

    def __init__(self, consumers: int) -> None:
        self.consumers = consumers
        self.traffic: KeyTraffic | None = None

    @abstractmethod
    def split(self, batch: pa.RecordBatch) -> list[pa.RecordBatch | None]:
        """Return one entry for each of this producer's consumers, in the order of their indices: its rows
        (at least one), or None where it gets none."""


def make_partitioner(
    kind: PartitionKind,
    keys: Sequence[str],
    max_parallelism: int,
    consumers: int,
    producer_index: int,
    producers: int,
    traffic: KeyTraffic | None = None,
    *,
    salts: int = 0,
    by_producer: bool = False,
) -> Partitioner:
    """Return the partitioner of producer `producer_index` (of `producers`) for an exchange of that kind.

    `keys`, `traffic`, which watches them, `salts` and `by_producer` (see `SaltedPartitioner`) matter to `hash` only.
    Raises ProtocolViolation where the numbers do not fit the kind.
    """
    if kind == "hash" and salts:
        salt = producer_index if by_producer else None
        return SaltedPartitioner(keys, max_parallelism, consumers, salts, salt)
    if kind == "hash":
        return HashPartitioner(keys, max_parallelism, consumers, traffic)
    if kind == "broadcast":
        return BroadcastPartitioner(consumers)
    if kind == "rebalance":
        return RoundRobinPartitioner(consumers, producer_index)
    if kind == "rescale":
        return RoundRobinPartitioner(_rescale_share(producers, consumers, producer_index), 0)
    if consumers != producers:
        raise ProtocolViolation(
            f"forward exchange from {producers} to {consumers} subtasks: expected equal parallelism; "
            "the planner must choose rebalance or rescale"
        )
    return RoundRobinPartitioner(1, 0)


def _rescale_share(producers: int, consumers: int, producer_index: int) -> int:
    """Return how many consumers a producer of a `rescale` exchange feeds. Must agree with the channels of
    the execution graph: contiguous, even groups; a single one where producers are not fewer."""
    if producers >= consumers:
        return 1
    return -(-(producer_index + 1) * consumers // producers) - -(-producer_index * consumers // producers)


class HashPartitioner(Partitioner):
    """Sends each row to the subtask that owns its key group. `traffic` watches what is sent."""

    keyed = True

    def __init__(
        self, keys: Sequence[str], max_parallelism: int, consumers: int, traffic: KeyTraffic | None = None
    ) -> None:
        super().__init__(consumers)
        self.traffic = traffic
        if not keys:
            raise ProtocolViolation("hash exchange without key columns: expected at least one")
        self._keys = tuple(keys)
        self._max_parallelism = max_parallelism
        # The narrower the targets, the fewer passes NumPy's radix sort makes over them.
        dtype: Any = np.uint8 if consumers <= 256 else np.uint16
        self._subtasks = np.array(subtask_table(max_parallelism, consumers), dtype)

    def split(self, batch: pa.RecordBatch) -> list[pa.RecordBatch | None]:
        """Split by key; see the module's theory."""
        result: list[pa.RecordBatch | None] = [None] * self.consumers
        if batch.num_rows == 0:
            return result
        if self.consumers == 1:
            if self.traffic is not None:
                self.traffic.observe(batch)
            return [batch]
        targets = self.targets(batch)
        order, bounds = _sort_by_target(targets, self.consumers)
        first_target = int(targets[0])
        if bounds[first_target + 1] - bounds[first_target] == batch.num_rows:
            result[first_target] = batch
            return result
        sorted_rows = take(batch, order)
        for consumer in range(self.consumers):
            first, last = bounds[consumer], bounds[consumer + 1]
            if last > first:
                result[consumer] = sorted_rows.slice(first, last - first)
        return result

    def targets(self, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        """Return the consumer index of each row (uint8 or uint16)."""
        hashes = hash_columns(batch, self._keys)
        if self.traffic is not None:
            self.traffic.observe(batch, hashes)
        groups = groups_of_hashes(hashes, self._max_parallelism)
        # mode="wrap": groups are in range, and NumPy's default checks and buffers.
        return self._subtasks.take(groups, mode="wrap")


class SaltedPartitioner(HashPartitioner):
    """Spreads the rows of each key over `salts` subtasks, from the one that owns the key's group on; over all of them
    where there are no more. Where every subtask is reached, a batch is cut into equal pieces, the rows that are over
    in turn: so these have as many rows, but for one, whatever the keys. Else the rows of each owner take the salts in
    turn. With a `salt` all rows take that one. Turns begin
    anew with each attempt. What comes so must be right at any of these subtasks: invariant 2 does not hold."""

    keyed = False

    def __init__(
        self, keys: Sequence[str], max_parallelism: int, consumers: int, salts: int, salt: int | None
    ) -> None:
        super().__init__(keys, max_parallelism, consumers)
        self._spread = min(salts, consumers)
        self._salt = salt
        self._next = 0
        # By owner.
        self._turns = np.zeros(consumers, np.int64)

    def split(self, batch: pa.RecordBatch) -> list[pa.RecordBatch | None]:
        """Cut the batch where every subtask is reached, without a copy; else split by key and turn."""
        if self._salt is not None or self._spread < self.consumers:
            return super().split(batch)
        each, more = divmod(batch.num_rows, self.consumers)
        pieces: list[pa.RecordBatch | None] = [None] * self.consumers
        begin = 0
        for turn in range(self.consumers):
            rows = each + (turn < more)
            if rows:
                pieces[(self._next + turn) % self.consumers] = batch.slice(begin, rows)
            begin += rows
        self._next = (self._next + more) % self.consumers
        return pieces

    def targets(self, batch: pa.RecordBatch) -> npt.NDArray[Any]:
        """See `HashPartitioner`."""
        owners = super().targets(batch)
        salts = self._in_turn(owners) if self._salt is None else self._salt % self._spread
        targets: npt.NDArray[Any] = ((owners.astype(np.int64) + salts) % self.consumers).astype(
            self._subtasks.dtype
        )
        return targets

    def _in_turn(self, owners: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        """Return the salt of each row: the rows of one owner count up."""
        order, bounds = _sort_by_target(owners, self.consumers)
        numbers = np.empty(len(owners), np.int64)
        for owner in range(self.consumers):
            rows = order[bounds[owner] : bounds[owner + 1]]
            numbers[rows] = np.arange(self._turns[owner], self._turns[owner] + len(rows))
            self._turns[owner] = (self._turns[owner] + len(rows)) % self._spread
        return numbers % self._spread


def _sort_by_target(targets: npt.NDArray[Any], consumers: int) -> tuple[npt.NDArray[np.int64], list[int]]:
    """Return row numbers ordered by target, stably, and where each target's run begins (and the end)."""
    if consumers <= _FEW_CONSUMERS:
        runs = [(targets == consumer).nonzero()[0] for consumer in range(consumers)]
        return np.concatenate(runs), [0, *accumulate(len(run) for run in runs)]
    order = np.argsort(targets, kind="stable")
    limits = np.arange(consumers, dtype=targets.dtype)
    bounds = np.searchsorted(targets.take(order, mode="wrap"), limits).tolist()
    return order, [*bounds, len(targets)]


class RoundRobinPartitioner(Partitioner):
    """Deals batches in turn, the first to consumer `start`; a large one as even, contiguous slices."""

    def __init__(self, consumers: int, start: int) -> None:
        super().__init__(consumers)
        self._next = start % consumers

    def split(self, batch: pa.RecordBatch) -> list[pa.RecordBatch | None]:
        """Return the batch, or its slices, at the next consumers in turn."""
        result: list[pa.RecordBatch | None] = [None] * self.consumers
        rows = batch.num_rows
        if rows == 0:
            return result
        pieces = min(self.consumers, max(1, rows // _SLICE_ROWS))
        for piece in range(pieces):
            first, last = piece * rows // pieces, (piece + 1) * rows // pieces
            target = (self._next + piece) % self.consumers
            result[target] = batch if pieces == 1 else batch.slice(first, last - first)
        self._next = (self._next + pieces) % self.consumers
        return result


class BroadcastPartitioner(Partitioner):
    """Sends every row to every consumer. The consumers share one batch."""

    def split(self, batch: pa.RecordBatch) -> list[pa.RecordBatch | None]:
        """Return the same batch for each consumer."""
        return [batch if batch.num_rows else None] * self.consumers
