"""What to say of an exception that a user's code raised."""

from __future__ import annotations

import sysconfig
import traceback
from pathlib import Path

_NOT_THE_USERS = (
    str(Path(__file__).resolve().parent.parent) + "/",
    *{sysconfig.get_path(name) + "/" for name in ("stdlib", "platstdlib", "purelib", "platlib")},
    "<frozen",
)


def describe_error(error: BaseException) -> str:
    """Return the error's type and text, and the innermost line of the user's code on its way."""
    text = f"{type(error).__name__}: {error}"
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if not f.filename.startswith(_NOT_THE_USERS)]
    if not users:
        return text
    frame = users[-1]
    line = f": {frame.line}" if frame.line else ""
    return f"{text}\n  in {frame.name}, {frame.filename}:{frame.lineno}{line}"
