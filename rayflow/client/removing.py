"""Removes what jobs left on checkpoint storage, on a user's word: a checkpoint, a job, or a whole `rayobj://` store."""

from __future__ import annotations

import json
from collections.abc import Mapping

from rayflow.client.stores import open_any_store
from rayflow.model.errors import ConfigError
from rayflow.protocol.lifecycle import JobState
from rayflow.state.manifest import MANIFEST
from rayflow.state.storage import RAY_SCHEME, MissingObject, ObjectStore

_JOB = "job.json"


def remove(url: str, options: Mapping[str, str], *, force: bool = False) -> int:
    """Remove everything at `url`; return how many objects that were.

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
    else:
        open_any_store(f"{parent}{mark}{query}" if parent else "/", options).delete_prefix(name)
    return len(paths)


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
