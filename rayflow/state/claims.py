"""Numbered claims on storage: who creates `<folder>/<n>.json` first owns n, and whoever has the highest is in charge.

Old claims are deleted, or a job that restarts for months would leave a file for each time. So that a number which was
deleted is never claimed again, a claim goes above all that are there, and counts only if it is still the highest after
it was made: whoever was held up between looking and creating finds those who came since.

Invariant: a number is returned by `claim_next` at most once, and is higher than all that were returned before it began.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from rayflow.model.errors import StorageError
from rayflow.state.storage import ObjectStore

KEPT = 16
"""How many claims stay, for people to look at."""

_MAX_TRIES = 1_000


def claim_next(store: ObjectStore, folder: str, first: int, create: Callable[[str, int], bool]) -> int:
    """Claim a number of at least `first`, and return it. `create(path, number)` makes the claim, False if it exists.

    StorageError where that cannot be done.
    """
    number = max(first, newest_claim(store, folder) + 1)
    for _ in range(_MAX_TRIES):
        if create(claim_path(folder, number), number) and (newest := newest_claim(store, folder)) <= number:
            _forget_old(store, folder, newest)
            return number
        number = max(number, newest_claim(store, folder)) + 1
    raise StorageError(f"{folder}: others claim every number up to {number}")


def newest_claim(store: ObjectStore, folder: str) -> int:
    """Return the highest number claimed, 0 if there is none."""
    return max(_numbers(store, folder), default=0)


def claim_path(folder: str, number: int) -> str:
    """Return where the claim of a number is."""
    return f"{folder}/{number}.json"


def _forget_old(store: ObjectStore, folder: str, newest: int) -> None:
    # What cannot be deleted now is by one of the next.
    with suppress(StorageError):
        for number in _numbers(store, folder):
            if number <= newest - KEPT:
                store.delete(claim_path(folder, number))


def _numbers(store: ObjectStore, folder: str) -> list[int]:
    stems = (path.rpartition("/")[2].removesuffix(".json") for path in store.list(folder))
    return [int(stem) for stem in stems if stem.isdigit()]
