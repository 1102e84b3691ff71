"""Writes whose outcome is known, on stores whose answers can get lost; and reads that are not fooled by one bad answer.

Theory of operation. A request to a store can fail after it was carried out: the answer was late, the connection
broke, a proxy said 503. An error therefore says nothing. What is there does: after an error the object is read
back. Equal contents: it was written, by us. Other contents: `create` lost to someone else, `write` tries again.
Nothing there: it was not written, and is tried once more. If reading fails too, nothing can be known, and the
first error is raised: a caller may then not assume either.

So contents that several may create at once (claims) must differ by creator, or each would take the other's
for its own.

Bytes can also be damaged on their way here while the store has them right. Whoever knows a checksum reads a second
time before calling an object corrupt.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from rayflow.model.errors import CorruptCheckpointError, StorageError
from rayflow.state.storage import MissingObject, ObjectStore

_TRIES = 2

T = TypeVar("T")


def create_surely(store: ObjectStore, path: str, data: bytes) -> bool:
    """Create the object; return whether the one that is there now holds `data`, i.e. is ours.

    Raises StorageError where it is not known to have been created, or who created it.
    """
    for left in reversed(range(_TRIES)):
        try:
            if store.create(path, data):
                return True
        except StorageError as error:
            found = _read_back(store, path, error)
            if found is None and left:
                continue
            if found is None:
                raise
        else:
            # A store client that repeats requests may find its own object, and say that one exists.
            found = store.read(path)
        return found == data
    raise AssertionError("unreachable")


def write_surely(store: ObjectStore, path: str, data: bytes) -> None:
    """Create or replace the object. StorageError where it is not known to have been written."""
    for left in reversed(range(_TRIES)):
        try:
            store.write(path, data)
            return
        except StorageError as error:
            if _read_back(store, path, error) == data:
                return
            if not left:
                raise


def read_checked(read: Callable[[], bytes], check: Callable[[bytes], T]) -> T:
    """Return `check(read())`. Where that finds the contents corrupt they are read once more: if both are equally bad,
    it is the object that is, and CorruptCheckpointError is raised."""
    try:
        return check(read())
    except CorruptCheckpointError:
        return check(read())


def _read_back(store: ObjectStore, path: str, error: StorageError) -> bytes | None:
    """Return what is there after `error`, None for nothing; raise `error` if that cannot be told."""
    try:
        return store.read(path)
    except MissingObject:
        return None
    except StorageError:
        raise error from None
