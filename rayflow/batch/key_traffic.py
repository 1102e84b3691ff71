"""Which keys and key groups a sender's rows go to: watched on a sample, so that it costs next to nothing.

Theory of operation
-------------------
A hash exchange sends 10 M rows a second; to count each of them by key would cost more than to send it. Of every
`stride` consecutive rows one is looked at, and stands for all of them. Which one is drawn from a fixed table of
random numbers, so that data with a period of its own does not meet the sample's (a plain "every 64th row" of keys that
repeat after 64 rows sees a single one). The stride follows the rate: it doubles as soon as a *span* of
`SPAN_MS` has brought its `samples`, and the next span begins with what the last one should have had. So
a slow stream is counted exactly, and a fast one costs the same as any other.

Sampled hashes gather until there is a quarter of a span's, then go into a `HeavyHitters` sketch and into rows per key
group. The sketch is halved at the end of every span, and so is a second count of rows per key group: they show the
keys and groups of the last seconds. An entry with a share worth telling gets its readable text from the next sampled
row that has it.

Measured (tests/benchmarks/bench_key_traffic.py, one run on a busy machine): 4 to 6 µs of CPU a batch, which is 1.0, 0.7
and 0.3 % of what an exchange of 4k, 16k and 64k rows a batch costs in one process, without a network.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import Hashes, groups_of_hashes, hash_arrays, hash_columns
from rayflow.batch.heavy_hitters import DEFAULT_CAPACITY, HeavyHitter, HeavyHitters
from rayflow.batch.tables import short_text

SPAN_MS = 2_000
SAMPLES_PER_SPAN = 8_192
KEYS_TOLD = 32
KEY_GROUPS_TOLD = 128
NAMED_KEYS = 10
NAMED_SHARE = 0.002

_SPAN_BATCHES = 8
"""The samples of a span are of so many batches at least."""
_SPAN_DIGESTS = 4
_NONE = np.empty(0, np.int64)
_DRAWS: npt.NDArray[np.int64] = (hash_arrays([pa.array(range(4_096))]) >> np.uint64(1)).view(np.int64)


class KeyTraffic:
    """Watches the rows of one hash exchange at one sender, by the columns `keys`.

    `observe` and `tick` on the task thread, `statistics` and `recent` on any. Without `show_keys` no value of a key is
    kept: keys are called by their hash. `counters` and `samples` (a span) say how closely it looks.
    """

    def __init__(
        self,
        keys: Sequence[str],
        max_parallelism: int,
        *,
        show_keys: bool = True,
        counters: int = DEFAULT_CAPACITY,
        samples: int = SAMPLES_PER_SPAN,
    ) -> None:
        self._keys = tuple(keys)
        self._max_parallelism = max_parallelism
        self._show_keys = show_keys
        self._lock = threading.Lock()
        self._samples = samples
        self._sketch = HeavyHitters(counters)
        self._group_rows = np.zeros(max_parallelism)
        self._recent_group_rows = np.zeros(max_parallelism)
        self._stride = 1
        # Of the next row, and of the sampled ones from `_drawn[0]` on; both count since the stride last changed.
        self._position = 0
        self._drawn = _NONE
        self._strata = 0
        self._gathered: list[Hashes] = []
        self._gathered_rows = 0
        self._nameless: Hashes = np.empty(0, np.uint64)
        self._span_ends_ms: int | None = None
        self._span_rows = self._span_samples = 0

    def observe(self, batch: pa.RecordBatch, hashes: Hashes | None = None) -> None:
        """Count rows that are about to be sent; `hashes` are those of all their keys, where they are known."""
        with self._lock:
            while batch.num_rows * _SPAN_BATCHES > self._samples * self._stride:
                self._coarsen()
            rows = self._sampled_rows(batch.num_rows)
            self._span_rows += batch.num_rows
            if len(rows) == 0:
                return
            if hashes is None:
                sampled = hash_columns(batch.select(self._keys).take(pa.array(rows)), self._keys)
            else:
                sampled = hashes.take(rows)
            self._gathered.append(sampled)
            self._gathered_rows += len(sampled)
            self._span_samples += len(sampled)
            # The first at once, so that a short stream gets names too.
            if self._gathered_rows * _SPAN_DIGESTS >= self._samples or not len(self._sketch):
                self._digest()
            if len(self._nameless):
                self._name(batch, rows, sampled)
            if self._span_samples >= self._samples:
                self._coarsen()
                self._span_samples = 0

    def tick(self, now_ms: int) -> None:
        """Time passes: halve what was counted for every span that is over."""
        if self._span_ends_ms is None:
            self._span_ends_ms = now_ms + SPAN_MS
        elif now_ms >= self._span_ends_ms:
            spans = 1 + (now_ms - self._span_ends_ms) // SPAN_MS
            with self._lock:
                self._end_span(spans)
            self._span_ends_ms += spans * SPAN_MS

    def statistics(self) -> dict[str, Any]:
        """Return, as plain data: `key_groups`, the busiest as [key group, rows] with the rows estimated; `hot_keys`,
        the sketch of the last seconds as `HeavyHitters.to_data` gives it."""
        with self._lock:
            self._digest()
            busiest = np.argsort(-self._group_rows, kind="stable")[:KEY_GROUPS_TOLD]
            return {
                "key_groups": [[int(g), float(self._group_rows[g])] for g in busiest if self._group_rows[g]],
                "hot_keys": self._sketch.to_data(KEYS_TOLD),
            }

    def recent(self, keys: int) -> tuple[list[HeavyHitter], npt.NDArray[np.float64]]:
        """Return the `keys` most frequent keys of the last seconds, largest first, and the rows of each key group in
        the same time."""
        with self._lock:
            self._digest()
            return self._sketch.top(keys), self._recent_group_rows.copy()

    def _sampled_rows(self, count: int) -> npt.NDArray[np.int64]:
        """Return the numbers of the sampled ones among the next `count` rows."""
        if self._stride == 1:
            return np.arange(count)
        start = self._position
        self._position += count
        while self._strata * self._stride < self._position:
            # One row of each stratum of `stride` rows.
            more = (np.arange(len(_DRAWS)) + self._strata) * self._stride + (_DRAWS & (self._stride - 1))
            self._drawn = np.concatenate((self._drawn, more))
            self._strata += len(_DRAWS)
        last = self._drawn.searchsorted(self._position)
        rows = self._drawn[:last] - start
        self._drawn = self._drawn[last:]
        return rows

    def _name(self, batch: pa.RecordBatch, rows: npt.NDArray[np.int64], sampled: Hashes) -> None:
        for key_hash in self._nameless:
            found = np.flatnonzero(sampled == key_hash)
            if len(found):
                self._sketch.name(int(key_hash), key_text(batch, self._keys, int(rows[found[0]])))
                self._nameless = self._nameless[self._nameless != key_hash]

    def _digest(self) -> None:
        if not self._gathered:
            return
        hashes = np.concatenate(self._gathered)
        self._gathered, self._gathered_rows = [], 0
        self._sketch.update(hashes, self._stride)
        groups = groups_of_hashes(hashes, self._max_parallelism)
        rows = np.bincount(groups, minlength=self._max_parallelism) * float(self._stride)
        self._group_rows += rows
        self._recent_group_rows += rows
        if self._show_keys:
            least = NAMED_SHARE * self._sketch.total
            worth = [entry for entry in self._sketch.top(NAMED_KEYS) if entry.guaranteed >= least]
            self._nameless = np.array([entry.hash for entry in worth if entry.key is None], np.uint64)

    def _coarsen(self) -> None:
        # What is gathered counts with the stride it was sampled by.
        self._digest()
        self._set_stride(self._stride * 2)

    def _set_stride(self, stride: int) -> None:
        self._stride = stride
        self._position = self._strata = 0
        self._drawn = _NONE

    def _end_span(self, spans: int) -> None:
        self._digest()
        self._sketch.scale(0.5 ** min(spans, 64))
        self._recent_group_rows *= 0.5 ** min(spans, 64)
        wanted = 1
        while wanted * self._samples < self._span_rows // spans:
            wanted *= 2
        if wanted != self._stride:
            self._set_stride(wanted)
        self._span_rows = self._span_samples = 0


def key_text(batch: pa.RecordBatch, keys: Sequence[str], row: int) -> str:
    """Return the key of a row as short text: the value, or (value, value) where there are several columns."""
    texts = [short_text(batch.column(name)[row]) for name in keys]
    return texts[0] if len(texts) == 1 else f"({', '.join(texts)})"
