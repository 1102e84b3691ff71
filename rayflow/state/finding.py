"""Which checkpoints lie in a folder, and which of them somebody may go on from.

Not all that are complete may be gone on from. Storage carries out what a job manager had asked for when that is long
dead, and so checkpoints appear that nobody announced:

- after a successor went on from an earlier one, and its sinks committed other rows (`without_zombies`);
- after the job's end, when its sinks had dropped what none of the complete ones needs. How far they had looked is the
  last thing that `job.json` says (`dropped_after`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from rayflow.model.errors import CorruptCheckpointError
from rayflow.state.manifest import CHECKPOINT_DIRECTORY, MANIFEST, Manifest, read_manifest
from rayflow.state.storage import MissingObject, ObjectStore, join_url, open_store

DROPPED_AFTER = "dropped_after"
"""The field of job.json: the newest checkpoint whose pending rows the sinks of a job that was cut short have left; 0:
none. What later ones left pending is gone. Absent where nothing was dropped."""


def list_checkpoints(store: ObjectStore, job_id: str) -> list[int]:
    """Return the numbers of all complete checkpoints of the job, oldest first. Manifests are not read."""
    found = []
    for path in store.list(job_id):
        directory, _, name = path[len(job_id) + 1 :].partition("/")
        match = CHECKPOINT_DIRECTORY.fullmatch(directory)
        if match and name == MANIFEST:
            found.append(int(match[1]))
    return sorted(found)


@dataclass(frozen=True, slots=True)
class ResolvedCheckpoint:
    """A checkpoint that a user named: the URL of its directory, and its manifest."""

    url: str
    manifest: Manifest


def resolve_checkpoint(
    url: str,
    options: Mapping[str, str],
    opener: Callable[[str, Mapping[str, str]], ObjectStore] = open_store,
) -> ResolvedCheckpoint:
    """Return the checkpoint that `--from url` means: `url` is the directory of a checkpoint or savepoint, or
    a job's directory, which means its newest complete checkpoint.

    Raises CorruptCheckpointError, saying what was looked for, where there is no usable one.
    """
    newest = find_checkpoints(url, options, opener)[0]
    return ResolvedCheckpoint(newest, read_manifest(opener(newest, options), ""))


def without_zombies(
    store: ObjectStore, parent: str, numbers: Collection[int], last_attempt: int | None = None
) -> list[int]:
    """Return those of the complete checkpoints `numbers`, in the job's directory `parent`, that the job went on from or
    may go on from; ascending. `last_attempt`: the newest that may have published any, where that is known.

    Whoever claims an attempt goes on with numbers above all that is there. So what has a higher number than a
    checkpoint of a later attempt came after that was claimed: from a job manager that had been superseded, was cut off,
    and announced it to nobody. The rows since are its successor's. (Of a damaged one it cannot be told.)
    """
    attempts: dict[int, int] = {}
    for number in sorted(numbers, reverse=True):
        with suppress(CorruptCheckpointError):
            attempts[number] = _manifest(store, parent, number).attempt
        if last_attempt is not None and attempts.get(number, 0) >= last_attempt:
            break
    kept, newest = [], 0
    for number in sorted(numbers):
        if attempts.get(number, newest) >= newest:
            kept.append(number)
        newest = max(newest, attempts.get(number, 0))
    return kept


def restorable(
    store: ObjectStore, parent: str, numbers: Collection[int], job: Mapping[str, Any]
) -> list[int]:
    """Return those of the complete checkpoints `numbers`, in the job's directory `parent`, that another job may go on
    from; ascending. `job`: the job's job.json. A savepoint is its user's, and always one of them."""
    last = dropped_after(job)
    return [
        number
        for number in without_zombies(store, parent, numbers)
        if last is None or number <= last or _is_savepoint(store, parent, number)
    ]


def dropped_after(job: Mapping[str, Any]) -> int | None:
    """Return what the job.json `job` says about that: see `DROPPED_AFTER`."""
    last = job.get(DROPPED_AFTER)
    return last if isinstance(last, int) else None


def stored_job(store: ObjectStore, parent: str) -> Mapping[str, Any]:
    """Return the job.json in the job's directory `parent`, an empty one where there is none. CorruptCheckpointError
    where it is damaged: what it says of checkpoints cannot be known then."""
    path = f"{parent}/job.json".lstrip("/")
    try:
        job = json.loads(store.read(path))
    except MissingObject:
        return {}
    except ValueError as error:
        raise CorruptCheckpointError(
            f"{store.url}/{path} is not JSON (torn or overwritten?): {error}"
        ) from None
    if not isinstance(job, dict):
        raise CorruptCheckpointError(f"{store.url}/{path} is not the job.json of a job")
    return job


def find_checkpoints(
    url: str,
    options: Mapping[str, str],
    opener: Callable[[str, Mapping[str, str]], ObjectStore] = open_store,
) -> list[str]:
    """Return the URLs of the checkpoints that `--from url` may mean, the one it does mean first; several only
    for a job's directory, newest first. CorruptCheckpointError where there is none."""
    store = opener(url, options)
    paths = {path for path in store.list("") if path.count("/") <= 1}
    if MANIFEST in paths:
        return [url]
    folders = [path.removesuffix(f"/{MANIFEST}") for path in paths if MANIFEST in path]
    matches = map(CHECKPOINT_DIRECTORY.fullmatch, folders)
    numbers = sorted(int(match[1]) for match in matches if match)
    if not numbers:
        what = "there is nothing" if not paths else "what is there is not a checkpoint"
        raise CorruptCheckpointError(
            f"no checkpoint at {store.url}: {what}; expected {MANIFEST} in it (a checkpoint's directory) or "
            f"chk-<n>/{MANIFEST} (a job's directory)"
        )
    job: Mapping[str, Any] = {}
    # Checkpoints can be looked at without it. A job that would write rows twice asks for the newest, and is refused.
    with suppress(CorruptCheckpointError):
        job = stored_job(store, "")
    found = restorable(store, "", numbers, job)
    if not found:
        raise CorruptCheckpointError(
            f"no checkpoint at {store.url} to go on from: chk-{numbers[-1]} appeared when the job had ended and its "
            "sinks had dropped the rows that belong to it; start without --from"
        )
    return [join_url(url, f"chk-{number}") for number in reversed(found)]


def _is_savepoint(store: ObjectStore, parent: str, number: int) -> bool:
    with suppress(CorruptCheckpointError):
        return _manifest(store, parent, number).kind == "savepoint"
    return False


def _manifest(store: ObjectStore, parent: str, number: int) -> Manifest:
    return read_manifest(store, f"{parent}/chk-{number}".lstrip("/"))
