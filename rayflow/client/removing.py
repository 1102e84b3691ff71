"""Removes what jobs left on checkpoint storage, on a user's word: a checkpoint, a job, or a whole `rayobj://` store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress

from rayflow.client.stores import open_any_store
from rayflow.model.errors import ConfigError, CorruptCheckpointError
from rayflow.protocol.lifecycle import JobState
from rayflow.state.manifest import MANIFEST, read_manifest
from rayflow.state.storage import RAY_SCHEME, MissingObject, ObjectStore

_JOB = "job.json"


def remove(url: str, options: Mapping[str, str], *, force: bool = False) -> int:
    """Remove everything at `url`, but for files of a checkpoint that others of its job are built on; return how many
    objects that were.

    Raises ConfigError where that is neither a checkpoint nor a job's directory, and, without `force`, where its job has
    not ended.
    """
    base, mark, query = url.partition("?")
    parent, _, name = base.rstrip("/").rpartition("/")
    whole = parent.rstrip("/") == RAY_SCHEME.rstrip("/")
    store = open_any_store(url, options)
    if whole and _forgotten(store):
        return 0
    paths = store.list("")
    jobs = {path.rpartition("/")[0] for path in paths if path.rpartition("/")[2] == _JOB}
    if not paths or not (MANIFEST in paths or _JOB in paths or (whole and jobs)):
        what = "there is nothing" if not paths else "what is there is neither a checkpoint nor a job's folder"
        raise ConfigError(f"nothing to remove at {url}: {what}")
    if not force:
        for job in jobs:
            _check_ended(store, f"{job}/{_JOB}".lstrip("/"), url)
        if not jobs:
            _check_ended(open_any_store(f"{parent}{mark}{query}", options), _JOB, url)
    # From above, where there is an above: a directory of that name goes too.
    if whole:
        store.delete_prefix("")
        return len(paths)
    above = open_any_store(f"{parent}{mark}{query}" if parent else "/", options)
    needed = set() if jobs else _needed_by_others(above, name)
    if not needed:
        above.delete_prefix(name)
        return len(paths)
    # The manifest first: what is half removed is no checkpoint.
    going = sorted(set(paths) - needed, key=lambda path: path != MANIFEST)
    for path in going:
        store.delete(path)
    return len(going)


def _needed_by_others(job: ObjectStore, name: str) -> set[str]:
    """Return the files in the checkpoint's directory `name` that other checkpoints of the job are built on."""
    found: set[str] = set()
    for path in job.list(""):
        directory, _, last = path.rpartition("/")
        if last == MANIFEST and directory != name:
            with suppress(CorruptCheckpointError):
                shared = read_manifest(job, directory).shared()
                found |= {file for origin, file in shared if name == f"chk-{origin}"}
    return found


def _check_ended(store: ObjectStore, path: str, url: str) -> None:
    try:
        state = json.loads(store.read(path))["state"]
    except (MissingObject, ValueError, KeyError):
        return
    if not JobState(state).ended:
        raise ConfigError(
            f"{url} belongs to a job that is {state} by what it last stored; cancel it first, or, if it died with its "
            "cluster, give --force"
        )


def _forgotten(store: ObjectStore) -> bool:
    """Whether this is a store whose holders are all dead; it begins anew then."""
    forget = getattr(store, "forget_lost", None)
    return forget is not None and bool(forget())
