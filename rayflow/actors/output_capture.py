"""What a subtask process says: lines the user prints, and log records, kept until they are sent to the job manager.

Printed lines are passed on to the process's own stdout and stderr as well, so Ray's log files have them too.
The buffer is bounded; lines that found no room are counted and reported in their place.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from dataclasses import dataclass
from typing import Literal, TextIO

Stream = Literal["out", "err", "log"]

MAX_BUFFERED_LINES = 50_000
MAX_LINE_CHARACTERS = 10_000


@dataclass(frozen=True, slots=True)
class OutputLine:
    """A line of a subtask's stdout (`out`), stderr (`err`) or of rayflow's logging in it (`log`)."""

    subtask: str
    stream: Stream
    text: str


class OutputBuffer:
    """Lines of one subtask on their way to the job manager. Any thread."""

    def __init__(self, subtask: str, max_lines: int = MAX_BUFFERED_LINES) -> None:
        self._subtask = subtask
        self._max_lines = max_lines
        self._lock = threading.Lock()
        self._lines: deque[OutputLine] = deque()
        self._dropped = 0

    def name(self, subtask: str) -> None:
        """The process is that subtask from now on."""
        self._subtask = subtask

    def add(self, stream: Stream, text: str) -> None:
        """Keep a line, or count it where there is no room."""
        # A lone surrogate is no text: nobody could print or store it.
        text = text[:MAX_LINE_CHARACTERS].encode(errors="backslashreplace").decode()
        line = OutputLine(self._subtask, stream, text)
        with self._lock:
            if len(self._lines) < self._max_lines:
                self._lines.append(line)
            else:
                self._dropped += 1

    def take(self) -> list[OutputLine]:
        """Return what is kept, and forget it."""
        with self._lock:
            lines, dropped = list(self._lines), self._dropped
            self._lines.clear()
            self._dropped = 0
        if dropped:
            note = f"[rayflow: {dropped} lines were printed faster than they could be sent, and dropped]"
            lines.append(OutputLine(self._subtask, "err", note))
        return lines


class _Tee:
    """A text stream that writes to another one and, whole lines only, to a buffer."""

    def __init__(self, original: TextIO, buffer: OutputBuffer, stream: Stream) -> None:
        self._original = original
        self._buffer = buffer
        self._stream: Stream = stream
        self._lock = threading.Lock()
        self._partial = ""

    def write(self, text: str) -> int:
        self._original.write(text)
        with self._lock:
            *lines, self._partial = (self._partial + text).split("\n")
            # A progress bar may go on and on in one line.
            self._partial = self._partial[:MAX_LINE_CHARACTERS]
            for line in lines:
                self._buffer.add(self._stream, line)
        return len(text)

    def flush(self) -> None:
        self._original.flush()

    def __getattr__(self, name: str) -> object:
        return getattr(self._original, name)


class _BufferHandler(logging.Handler):
    def __init__(self, buffer: OutputBuffer) -> None:
        super().__init__()
        self._buffer = buffer
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        for line in self.format(record).splitlines():
            self._buffer.add("log", line)


def capture_output(buffer: OutputBuffer) -> None:
    """From now on keep what this process prints, and what it logs from level INFO on under `rayflow`, for good."""
    sys.stdout = _Tee(sys.stdout, buffer, "out")
    sys.stderr = _Tee(sys.stderr, buffer, "err")
    logger = logging.getLogger("rayflow")
    logger.setLevel(logging.INFO)
    logger.addHandler(_BufferHandler(buffer))
    logger.propagate = False
