"""Which errors may be gone next time: what the outside world has to do with, not what is asked of it."""

from __future__ import annotations

from rayflow.model.errors import TransientError

_LASTING = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError)


def may_pass(error: BaseException) -> bool:
    """Return whether the same may go well next time: a service that did not answer, a disk that was full."""
    if isinstance(error, TransientError):
        return True
    if not isinstance(error, OSError) or isinstance(error, _LASTING):
        return False
    # Arrow raises plain OSErrors without a number for files that are damaged, and for trouble with S3.
    return type(error) is not OSError or error.errno is not None or "AWS Error" in str(error)
