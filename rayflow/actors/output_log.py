"""What the subtasks of a job said, as the job manager keeps it: the last lines, numbered, bounded."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from itertools import islice

from rayflow.actors.output_capture import OutputLine

MAX_LINES = 100_000


class OutputLog:
    """Lines numbered from 0 in order of arrival; the oldest go when there are too many. Any thread."""

    def __init__(self, max_lines: int = MAX_LINES) -> None:
        self._lock = threading.Lock()
        self._lines: deque[OutputLine] = deque(maxlen=max_lines)
        self._next = 0

    def extend(self, lines: Sequence[OutputLine]) -> None:
        """Append lines."""
        with self._lock:
            self._lines.extend(lines)
            self._next += len(lines)

    def since(self, number: int, limit: int) -> tuple[int, list[OutputLine]]:
        """Return up to `limit` kept lines numbered `number` and up, and the number to ask for next."""
        with self._lock:
            first = self._next - len(self._lines)
            skipped = max(0, number - first)
            lines = list(islice(self._lines, skipped, skipped + limit))
            return max(first, number) + len(lines), lines

    def by_subtask(self) -> dict[str, str]:
        """Return each subtask's kept lines as one text."""
        with self._lock:
            kept = list(self._lines)
        texts: dict[str, list[str]] = {}
        for line in kept:
            texts.setdefault(line.subtask, []).append(line.text)
        return {subtask: "\n".join(lines) + "\n" for subtask, lines in texts.items()}
