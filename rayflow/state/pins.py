"""Pins on checkpoints: another job is about to start from one, so the job that owns it leaves it alone meanwhile.

Theory of operation. A job that starts from a foreign checkpoint puts `pins/<its id>.json` into that checkpoint's
directory, *then* reads the manifest, and takes the pin away when it has a checkpoint of its own: until then each of its
attempts may have to read the foreign one again, and pins it anew. The owner, which lists a checkpoint's files before it
deletes them, puts off what it finds pinned, and asks again whenever it next discards something. A job that died with a
pin must not keep files for ever, so a pin says until when it counts.

A pin that comes between the owner's look and its deletion is too late. Then the files are gone, and the restoring job
says so: a pin makes this rare, and the checksums and names of the manifest make it harmless.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable

from rayflow.model.errors import StorageError
from rayflow.state.publishing import write_surely
from rayflow.state.storage import ObjectStore

FOLDER = "pins/"
HELD_MS = 3_600_000
"""How long a pin counts unless it is renewed: longer than a restore and the first checkpoint after it take."""

_log = logging.getLogger(__name__)


class Pin:
    """One job's pin. `store` is the checkpoint's directory, `holder` the job that starts from it."""

    def __init__(self, store: ObjectStore, holder: str) -> None:
        self._store = store
        self._path = f"{FOLDER}{holder}.json"

    def put(self, now_ms: int) -> None:
        """Put it there, or renew it. Where that cannot be done (say for lack of rights), go on without."""
        try:
            write_surely(self._store, self._path, json.dumps({"until_ms": now_ms + HELD_MS}).encode())
        except (StorageError, OSError) as error:
            _log.warning("the checkpoint to start from could not be pinned: %s", error)

    def take_away(self) -> None:
        """Remove it; what cannot be removed now ends by itself."""
        try:
            self._store.delete(self._path)
        except (StorageError, OSError) as error:
            _log.warning("a pin stays for a while: %s", error)


def is_pinned(store: ObjectStore, directory: str, paths: Iterable[str], now_ms: int) -> bool:
    """Return whether a pin counts among `paths`, what there is below the checkpoint's `directory`."""
    pins = [path for path in paths if path.startswith(f"{directory}/{FOLDER}")]
    return any(_until_ms(store, path) > now_ms for path in pins)


def _until_ms(store: ObjectStore, path: str) -> int:
    try:
        return int(json.loads(store.read(path))["until_ms"])
    except (StorageError, ValueError, KeyError):
        # Taken away just now, or nothing that says until when.
        return 0
