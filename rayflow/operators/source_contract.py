"""The contract of sources: what is read, by whom, and from where on after a restore.

A source runs at the head of a chain (see `contracts`). Readers are used on the task thread of a subtask, and should not
block for long; only the methods of `Source` that say so run elsewhere.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A part of a source that one subtask reads by itself: a file, a row group, a partition.

    `id` is unique within the source and stable over restarts; `payload` is JSON data that tells
    `open_split` what to read; `min_time` is the smallest event time in it (ns since the epoch) where
    known without reading; `order` sorts splits of unknown time (file name, then position).
    """

    id: str
    payload: dict[str, Any] = field(default_factory=dict)
    min_time: int | None = None
    order: str = ""

    def to_json(self) -> str:
        """Return the JSON text `from_json` reads."""
        return json.dumps(
            {"id": self.id, "payload": self.payload, "min_time": self.min_time, "order": self.order}
        )

    @staticmethod
    def from_json(text: str) -> Split:
        """Return the split that `to_json` wrote."""
        return Split(**json.loads(text))


class SplitReader(ABC):
    """Reads one split. Made by `Source.open_split`; used on the task thread only."""

    @abstractmethod
    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next rows: at most `max_rows`, an empty batch if there are none *now* (an
        unbounded source; called again after a short pause), None at the split's end. Should not
        block for long."""

    @abstractmethod
    def position(self) -> Any:
        """Return JSON data saying where the next `read` begins. Given to `open_split` on restore."""

    def skipped(self) -> Sequence[str]:
        """Return what was wrong with each record that `read` has left out since the last call, as it was asked
        to instead of raising (`on_error="skip"`)."""
        return ()

    def close(self) -> None:
        """Release resources. Called once, also after failures."""


class Source(ABC):
    """A public contract: where records come from.

    The object is pickled to the JobManager (`splits`) and to each source subtask (`open_split`), so it
    holds descriptions, not connections. A source in 30 lines: see `rayflow.connectors.rows`.
    """

    @property
    def schema(self) -> pa.Schema | None:
        """Schema of the records, None where only reading tells."""
        return None

    @property
    def bounded(self) -> bool:
        """Whether `splits` will never return new splits and every split ends."""
        return True

    @property
    def max_parallelism(self) -> int | None:
        """Most subtasks that can read at once; None for any number."""
        return None

    def discovery_interval_ms(self) -> int | None:
        """Milliseconds between calls of `splits` while the job runs; None: it is called once."""
        return None

    @abstractmethod
    def splits(self) -> Sequence[Split]:
        """Return all splits known now. Runs on an I/O thread of the JobManager and may block for
        seconds; called once per job, and again every `discovery_interval_ms`. Splits seen before
        (same id) are ignored."""

    def split_count(self, enough: int) -> int | None:
        """Return how many splits there are, which the plan sets beside the parallelism; counting may stop at `enough`.
        None: not known before the job runs, or of no account. Runs where the plan is built, and may block for
        seconds; by default the splits are listed, unless they are listed again while the job runs."""
        return None if self.discovery_interval_ms() is not None else len(self.splits())

    @abstractmethod
    def open_split(self, split: Split, position: Any | None) -> SplitReader:
        """Return a reader of `split` that starts at `position` (None: at its beginning)."""
