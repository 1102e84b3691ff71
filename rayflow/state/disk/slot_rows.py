"""What `cached_keys` needs of the columns whose rows it keeps on disk."""

from __future__ import annotations

from typing import Protocol

import pyarrow as pa

from rayflow.state.key_codec import I64


class SlotRows(Protocol):
    """What an operator keeps for its keys, by slot."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of a row."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory held, at least about."""

    @property
    def kinds_of_due(self) -> int:
        """Into how many kinds of timers a row's timers fall; see `Due`."""

    def reserve(self, slot_limit: int) -> None:
        """Make room for slots below `slot_limit`."""

    def rows(self, slots: I64) -> pa.RecordBatch:
        """Return the rows of `slots`."""

    def restore(self, slots: I64, rows: pa.RecordBatch) -> None:
        """Take rows that `rows` gave. The slots are as if never used, and none is given twice."""

    def clear(self, slots: I64) -> None:
        """Forget `slots`, timers included (none given twice): they are as if never used."""

    def pinned(self) -> list[int]:
        """Return slots that must stay in memory for now."""

    def due(self, kind: int, slots: I64) -> dict[int, int]:
        """Return when the first timer of this kind is due, of those slots that have any."""
