"""Which process is the manager of a job: tenures, numbered, each claimed once on checkpoint storage.

Ray can bring up a job's manager again while the one before still runs, cut off or stopped, and neither can tell
by itself. So each claims a tenure before it touches the job: `<job id>/managers/<n>.json`, by conditional
create. Whoever has the highest is the manager. Workers obey the highest tenure they have heard of and tell
others that they are superseded; a manager also looks itself now and then; and one that is ends its process.

Nothing exact hangs on this (that is what attempts are for): it keeps two managers from killing each other's
workers and outbidding each other's attempts for ever.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable

from rayflow.model.errors import StorageError
from rayflow.state.claims import claim_next, newest_claim
from rayflow.state.storage import ObjectStore

_log = logging.getLogger(__name__)

_RETRY_S = 1.0


def claim_tenure(store: ObjectStore, job_id: str, pid: int) -> int:
    """Claim the next tenure and return its number, from 1. StorageError where that cannot be done."""
    claim = json.dumps({"pid": pid}).encode()
    return claim_next(store, _folder(job_id), 1, lambda path, _: store.create(path, claim))


def claim_patiently(open_store: Callable[[], ObjectStore], job_id: str, pid: int, limit_s: float) -> int:
    """`claim_tenure`, tried again while storage is out of reach; after `limit_s` its StorageError."""
    given_up_s = time.monotonic() + limit_s
    while True:
        try:
            return claim_tenure(open_store(), job_id, pid)
        except StorageError as e:
            if time.monotonic() > given_up_s:
                raise
            _log.warning("cannot claim the job, trying again: %s", e)
            time.sleep(_RETRY_S)


def is_superseded(store: ObjectStore, job_id: str, tenure: int) -> bool:
    """Whether a later tenure is claimed; False also where that cannot be told."""
    try:
        return newest_claim(store, _folder(job_id)) > tenure
    except StorageError:
        # Out of reach: then the workers will tell.
        return False


def watch_tenure(
    store: ObjectStore, job_id: str, tenure: int, interval_s: float, on_superseded: Callable[[], None]
) -> None:
    """Look every `interval_s`, on a thread of its own; call `on_superseded` there, once."""

    def run() -> None:
        while not is_superseded(store, job_id, tenure):
            time.sleep(interval_s)
        on_superseded()

    threading.Thread(target=run, name="tenure", daemon=True).start()


def _folder(job_id: str) -> str:
    return f"{job_id}/managers"
