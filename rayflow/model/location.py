"""Where in the user's code a call was made, so that errors can name the line."""

from __future__ import annotations

import linecache
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

_PACKAGE = str(Path(__file__).resolve().parent.parent) + "/"


@dataclass(frozen=True, slots=True)
class SourceLocation:
    """A line of the user's code: absolute file name, line from 1, and the line's text."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.text}" if self.text else f"{self.file}:{self.line}"


def caller_location() -> SourceLocation | None:
    """Return the innermost frame on the calling stack that is not rayflow's own, or None."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _is_own(frame):
        frame = frame.f_back
    if frame is None:
        return None
    file, line = frame.f_code.co_filename, frame.f_lineno
    return SourceLocation(file, line, linecache.getline(file, line).strip())


def _is_own(frame: FrameType) -> bool:
    file = frame.f_code.co_filename
    # The methods that dataclasses generate have no file, but their module's globals.
    generated = file == "<string>" and str(frame.f_globals.get("__name__")).startswith("rayflow.")
    return generated or file.startswith(_PACKAGE)
