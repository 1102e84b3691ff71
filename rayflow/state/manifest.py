"""What a checkpoint consists of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """A state file of a checkpoint. `path` is relative to the checkpoint's directory; `sha256` in hex;
    `key_groups` is the half-open range [start, stop) of a keyed part, else None."""

    path: str
    uid: str
    part: str
    kind: str
    subtask_index: int
    nbytes: int
    sha256: str
    rows: int
    key_groups: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """A split as the manifest records it: its JSON, the JSON position (None: not begun), finished or not."""

    split: str
    position: str | None = None
    finished: bool = False
    max_time: int | None = None
