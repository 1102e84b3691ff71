"""Key groups: the units in which keyed state and keyed rows are dealt out to subtasks.

Theory of operation. A key is hashed (stable, 64 bit), the hash taken modulo `max_parallelism` gives its key
group, and key groups belong to subtasks by contiguous ranges. `max_parallelism` never changes in a job's
life, so a key's group never does; changing the parallelism only moves the borders of the ranges, and a
restoring subtask reads the files whose ranges overlap its own. The formulas are Flink's
(`KeyGroupRangeAssignment`): subtask = group · parallelism ÷ max_parallelism, rounded down.

Invariants, for every parallelism ≤ max_parallelism:

1. The ranges of all subtasks are disjoint, in order, and cover [0, max_parallelism).
2. `subtask_of_key_group` names the subtask whose range holds the group.
3. No range is empty, and the sizes of two ranges differ by at most one.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayflow.model.errors import ProtocolViolation


@dataclass(frozen=True, slots=True, order=True)
class KeyGroupRange:
    """Key groups from `start` up to, but without, `stop`. `in` asks for a key group, `len` for how many."""

    start: int
    stop: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.stop:
            raise ProtocolViolation(
                f"key group range [{self.start}, {self.stop}): expected 0 <= start <= stop"
            )

    def __contains__(self, key_group: int) -> bool:
        return self.start <= key_group < self.stop

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"[{self.start}, {self.stop})"

    def overlaps(self, other: KeyGroupRange) -> bool:
        """Whether some key group is in both."""
        return max(self.start, other.start) < min(self.stop, other.stop)


def key_group_range(max_parallelism: int, parallelism: int, index: int) -> KeyGroupRange:
    """Return the key groups of subtask `index` (from 0) of `parallelism`."""
    _check(max_parallelism, parallelism)
    if not 0 <= index < parallelism:
        raise ProtocolViolation(f"subtask index {index}: expected 0 to {parallelism - 1}")
    start = (index * max_parallelism + parallelism - 1) // parallelism
    stop = ((index + 1) * max_parallelism + parallelism - 1) // parallelism
    return KeyGroupRange(start, stop)


def subtask_of_key_group(key_group: int, max_parallelism: int, parallelism: int) -> int:
    """Return the index of the subtask that owns `key_group`."""
    _check(max_parallelism, parallelism)
    if not 0 <= key_group < max_parallelism:
        raise ProtocolViolation(f"key group {key_group}: expected 0 to {max_parallelism - 1}")
    return key_group * parallelism // max_parallelism


def subtask_table(max_parallelism: int, parallelism: int) -> tuple[int, ...]:
    """Return the owner of every key group: `max_parallelism` subtask indices, never falling."""
    _check(max_parallelism, parallelism)
    return tuple(group * parallelism // max_parallelism for group in range(max_parallelism))


def _check(max_parallelism: int, parallelism: int) -> None:
    if not 1 <= parallelism <= max_parallelism:
        raise ProtocolViolation(
            f"parallelism {parallelism}: expected 1 to max_parallelism ({max_parallelism}); "
            "the planner must refuse such a job"
        )
