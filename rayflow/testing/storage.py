"""Simulated storage: any object store, seen through requests that may fail, be lost, be late, or damage what they
write.

Theory of operation
-------------------
A `SimStore` is one process's way to a real store (in memory, as a rule). Each request is a line of the trace, may be a
point where other processes go on (`runtime` code may do several requests in one piece of work), and may go wrong: an
error before it was applied; *applied*, but the answer is lost; a torn write (half of the object), a flipped bit, an
object that is missing later: these are told as successes, and only checksums can find out.

`SimStorage` is the observer of all of them: it sees each request that was applied, and checks (by number):

  I5  when a manifest is published, every file that it names is there, as it says, those of earlier checkpoints
      included; no file of a published checkpoint is deleted while its manifest is there; the newest announced
      checkpoint is never discarded, nor a file that it needs.
  I6  attempts are claimed in order, each once.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rayflow.model.errors import StorageError
from rayflow.state.storage import MissingObject, ObjectStore, open_store
from rayflow.testing.faults import Injector
from rayflow.testing.world import Process, World

MANIFEST = "manifest.json"
_MANIFEST = re.compile(r"/chk-(\d+)/manifest\.json$")
Put = Callable[[str, bytes], Any]
_JOB_DEPTH = 3
"""Slashes in the path of a job's directory: `memory://name/job`."""


class SimStorage:
    """All storage of one run, and what was seen there. `pause` lets others go on within a piece of work."""

    def __init__(self, world: World, injector: Injector) -> None:
        self.world = world
        self.injector = injector
        self.pause: Callable[[], None] = lambda: None
        self.is_current: Callable[[Process], bool] = lambda process: True
        self.published: dict[str, int] = {}
        """Attempt of each checkpoint directory that ever had a manifest."""
        self.announced: dict[str, int] = {}
        """Newest announced checkpoint of each job."""
        self.manifests: dict[str, bytes] = {}
        """What was last published, by directory."""
        self.damaged: set[str] = set()
        """Paths that do not hold what was written there, or for which something was published though they are gone."""
        self.read_damaged: dict[str, set[str]] = {}
        """Which of these each process has read."""
        self.by_outsiders: set[str] = set()
        """Paths last written by a process that had been given up, or for a checkpoint that was discarded before."""
        self.sweep_failed = False
        """A request to look at checkpoints, or to delete one, failed since all were listed: not all can be swept."""
        self.tidying_failed = False
        """A request of that kind failed once."""
        self.written_ms: dict[str, int] = {}
        """When something was last written to each checkpoint directory."""
        self.claimed: Callable[[Process], None] = lambda process: None
        """Told who has claimed an attempt."""
        self.closing = False
        """The job has ended; what it had under way comes to its end."""
        self.forgotten = False
        """Rows were committed of a checkpoint of which nothing on storage told any more: they may be there twice."""
        self.late: set[str] = set()
        """Checkpoint directories whose manifests appeared then: nobody is left to discard them."""
        self.undeleted: set[str] = set()
        """Checkpoint directories whose deletion failed; they are swept when the next attempt begins."""
        self._discarded: set[str] = set()
        self._claimed: dict[str, int] = {}
        self._begins: dict[str, int] = {}
        """The attempt that each process has claimed, and not yet looked for what it may begin from."""
        self._begun: dict[str, dict[int, set[int]]] = {}
        """By job, the checkpoints that each attempt could see when it looked."""

    def opener(self, process: Process) -> Callable[[str, Mapping[str, str]], ObjectStore]:
        """Return the `open_store` of one process."""
        return lambda url, options: SimStore(self, process, open_store(url, options))

    def announce(self, job_id: str, checkpoint_id: int, attempt: int) -> None:
        """The checkpoint is announced to a subtask of `attempt`: sinks may commit. What has begun after that has seen
        its manifest, or rows are written twice."""
        self.announced[job_id] = max(self.announced.get(job_id, 0), checkpoint_id)
        if not self.was_published(job_id, checkpoint_id):
            self.world.violated(f"I5: checkpoint {checkpoint_id} is announced, but has no manifest")
        for later, seen in self._begun.get(job_id, {}).items():
            if later > attempt and checkpoint_id not in seen:
                self.world.violated(
                    f"I6: attempt {attempt} announces checkpoint {checkpoint_id}, and {later} has begun without it"
                )

    def was_published(self, job_id: str, checkpoint_id: int) -> bool:
        """Whether the checkpoint has, or once had, a manifest."""
        return any(directory.endswith(f"/{job_id}/chk-{checkpoint_id}") for directory in self.published)

    def newest_published(self, job_id: str) -> int:
        """Return the newest of the job's checkpoints that ever had a manifest, 0 where none had."""
        found = [d.rpartition("/chk-")[2] for d in self.published if f"/{job_id}/chk-" in d]
        return max(map(int, found), default=0)

    def rot(self, url: str, job_id: str) -> str | None:
        """Damage a file of the job's newest announced checkpoint, whatever is done about it; return its path, None
        where there is none."""
        newest = self.announced.get(job_id)
        manifest = self.manifests.get(f"{url}/{job_id}/chk-{newest}")
        if manifest is None:
            return None
        store, directory = open_store(url, {}), f"{job_id}/chk-{newest}"
        there = set(store.list(job_id)) - {path.removeprefix(f"{url}/") for path in self.damaged}
        paths = sorted({file_path(directory, file) for file in json.loads(manifest)["files"]} & there)
        if not paths:
            return None
        path = paths[self.world.draw(len(paths))]
        # Most often a bit, which only a checksum notices.
        kind = self.injector.kind_of_damage()
        if self.world.happens(0.6):
            kind = "flip"
        data = store.read(path)
        self.spoiled(store, path, data, kind, store.write, at=self.world.draw(len(data)))
        self.injector.corrupted += 1
        self.injector.met["storage: latest checkpoint corrupt"] += 1
        return path

    def spoiled(
        self, store: ObjectStore, path: str, data: bytes, fault: str, put: Put, *, at: int | None = None
    ) -> Any:
        """Have `put` write what is left of `data`; return what it does. `at`: where a bit flips, else in the middle."""
        self.damaged.add(_full(store, path))
        at = len(data) // 2 if at is None else at
        left = (
            b"" if fault == "missing" else data[: len(data) // 2] if fault == "torn" else _flipped(data, at)
        )
        done = put(path, left)
        if fault == "missing" and done is not False:
            store.delete(path)
        return done

    # ------------------------------------------------------------------ what was applied

    def wrote(self, process: Process, store: ObjectStore, path: str, data: bytes) -> None:
        """An object was written."""
        full = _full(store, path)
        directory, _, name = full.rpartition("/")
        if process.alive and process.machine in self.world.healed and not self.is_current(process):
            self.injector.met["zombie writes after healing"] += not self.world.is_cut(process.machine)
        if self.is_current(process) and directory not in self._discarded:
            self.by_outsiders.discard(full)
        else:
            self.by_outsiders.add(full)
        if name == MANIFEST and full not in self.damaged:
            self._published(process, store, path, directory, data)
        elif directory.endswith("/attempts"):
            self._claim(directory, attempt := int(name.partition(".")[0]))
            self._begins[process.name] = attempt
            self.claimed(process)
        elif "/chk-" in directory:
            self.written_ms[directory] = self.world.now

    def looked(self, process: Process, verb: str, full: str, *, failed: bool) -> None:
        """Something was read or listed, or could not be."""
        if full in self.damaged:
            self.read_damaged.setdefault(process.name, set()).add(full)
        if failed:
            failed = verb == "list" or "/chk-" in full
            self.sweep_failed |= failed
            self.tidying_failed |= failed
            return
        if verb == "list" and full.count("/") == _JOB_DEPTH and process.name in self._begins:
            job_id = full.rpartition("/")[2]
            seen = {int(d.rpartition("/chk-")[2]) for d in self.published if f"/{job_id}/chk-" in d}
            self._begun.setdefault(job_id, {})[self._begins.pop(process.name)] = seen
        if verb == "list" and full.count("/") == _JOB_DEPTH and self.is_current(process):
            self.sweep_failed = False

    def deleting(self, store: ObjectStore, path: str) -> None:
        """Something is about to be deleted: an object, or all below a path."""
        full = _full(store, path).rstrip("/")
        directory, _, name = full.rpartition("/")
        if needed := self._needed_below(store, path.rstrip("/")):
            self.world.violated(f"I5: {needed}, which the newest checkpoint needs, is deleted with {full}")
        if name == MANIFEST:
            self._discarding(store, path, directory)
        elif "/chk-" in full:
            manifest = full if name.startswith("chk-") else directory
            there = _exists(store, path if name.startswith("chk-") else path.rpartition("/")[0])
            named = manifest == full or self._names(manifest, name)
            if there and named and f"{manifest}/{MANIFEST}" not in self.damaged:
                self.world.violated(f"I5: {full} is deleted while the manifest of its checkpoint is there")

    def _names(self, directory: str, name: str) -> bool:
        """Whether the manifest in `directory` names the file, which lies beside it."""
        manifest = self.manifests.get(directory)
        return manifest is None or any(
            file_path(directory, file) == f"{directory}/{name}" for file in json.loads(manifest)["files"]
        )

    def emptied(self, store: ObjectStore, directory: str) -> None:
        """All of a checkpoint has been deleted."""
        self._discarded.add(_full(store, directory))

    def _needed_below(self, store: ObjectStore, path: str) -> str | None:
        """Return a file at or below `path` of an earlier checkpoint that the newest announced one needs."""
        job, found, _ = path.partition("/chk-")
        newest = self.announced.get(job.rpartition("/")[2])
        if not found or newest is None or self.injector.corrupted:
            return None
        below = f"{job}/chk-{newest}"
        try:
            files = json.loads(store.read(f"{below}/{MANIFEST}"))["files"]
        except MissingObject:
            return None
        shared = [file_path(below, file) for file in files if file.get("origin") is not None]
        return next((name for name in shared if name == path or name.startswith(f"{path}/")), None)

    def _published(
        self, process: Process, store: ObjectStore, path: str, directory: str, data: bytes
    ) -> None:
        manifest = json.loads(data)
        self.published[directory] = manifest["attempt"]
        self.manifests[directory] = data
        below = path.rpartition("/")[0]
        if self.closing:
            self.late.add(_full(store, below))
        for file in manifest["files"]:
            name = file_path(below, file)
            if _full(store, name) in self.damaged:
                continue
            try:
                found = store.read(name)
            except MissingObject:
                if self.closing:
                    # The request to publish was under way for longer than the job's end waits, and its files were
                    # swept: whoever restores it must find out.
                    self.injector.corrupted += 1
                    self.damaged.add(_full(store, name))
                    return
                if not self.is_current(process):
                    # By a manager that was given up, after its successor had swept up: it may not announce it.
                    self.damaged.add(_full(store, name))
                    continue
                self.world.violated(f"I5: {path} names {file['path']}, which is not there")
                continue
            if hashlib.sha256(found).hexdigest() != file["sha256"]:
                self.world.violated(f"I5: {path} names {file['path']} with another checksum than it has")

    def _discarding(self, store: ObjectStore, path: str, directory: str) -> None:
        """What was announced goes only when something newer is complete. (A damaged one may go.)"""
        job, _, number = directory.rpartition("/chk-")
        if self.injector.corrupted or int(number) != self.announced.get(job.rpartition("/")[2]):
            return
        prefix = path.rpartition("/chk-")[0]
        newer = [int(found[1]) for p in store.list(prefix) if (found := _MANIFEST.search(p))]
        if not any(n > int(number) for n in newer):
            self.world.violated(f"I5: {directory}, the newest complete one, is discarded")

    def is_discarded(self, directory: str) -> bool:
        """Whether all of a checkpoint was deleted."""
        return directory in self._discarded

    def is_superseded(self, job_directory: str, attempt: int) -> bool:
        """Whether a later attempt of the job is claimed: what this one still asks for has no effect (I6)."""
        return attempt < self._claimed.get(f"{job_directory}/attempts", attempt)

    def _claim(self, directory: str, attempt: int) -> None:
        newest = self._claimed.get(directory, 0)
        if attempt <= newest:
            self.world.violated(f"I6: attempt {attempt} is claimed after {newest}")
        self._claimed[directory] = max(attempt, newest)


class SimStore:
    """`ObjectStore` of one process. What it does not know it leaves to the real store."""

    def __init__(self, storage: SimStorage, process: Process, inner: ObjectStore) -> None:
        self._storage = storage
        self._process = process
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def url(self) -> str:
        """Where paths begin."""
        return self._inner.url

    def write(self, path: str, data: bytes) -> None:
        """See `ObjectStore`."""
        self._request("write", path, lambda: self._put(path, data, self._inner.write), data)

    def create(self, path: str, data: bytes) -> bool:
        """See `ObjectStore`."""
        return bool(self._request("create", path, lambda: self._put(path, data, self._inner.create), data))

    def read(self, path: str) -> bytes:
        """See `ObjectStore`."""
        found: bytes = self._request("read", path, lambda: self._inner.read(path))
        return found

    def list(self, prefix: str) -> list[str]:
        """See `ObjectStore`."""
        found: list[str] = self._request("list", prefix, lambda: self._inner.list(prefix))
        return found

    def delete(self, path: str) -> None:
        """See `ObjectStore`."""
        self._request("delete", path, lambda: self._remove(path, self._inner.delete))

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """See `ObjectStore`."""
        self._request("delete_all", prefix, lambda: self._remove_all(prefix, paths))

    def delete_prefix(self, prefix: str) -> None:
        """See `ObjectStore`."""
        self._request("delete_prefix", prefix, lambda: self._remove(prefix, self._inner.delete_prefix))

    # ------------------------------------------------------------------ requests

    def _request(self, verb: str, path: str, apply: Callable[[], Any], data: bytes | None = None) -> Any:
        storage, world = self._storage, self._storage.world
        storage.pause()
        full = _full(self._inner, path)
        fault = storage.injector.storage(verb, full)
        said = f"store {verb} {path.partition('/')[2] or path} by {self._process.name}"
        world.note(said if fault is None else f"{said}: {fault}")
        if verb in ("list", "read"):
            storage.looked(self._process, verb, full, failed=fault is not None)
        if fault is not None and verb.startswith("delete"):
            storage.undeleted.add(re.sub(r"(/chk-\d+).*", r"\1", full))
            storage.sweep_failed = storage.tidying_failed = (
                True  # it ends there: what was to go next stays too
            )
        if fault == "error":
            raise StorageError(f"simulated: {verb} {full} failed")
        if fault in ("torn", "flip", "missing"):
            assert data is not None
            if full.endswith(f"/{MANIFEST}"):
                storage.published[full.rpartition("/")[0]] = 0
            put = self._inner.create if verb == "create" else self._inner.write
            return storage.spoiled(self._inner, path, data, fault, put)
        result = apply()
        if fault == "applied":
            raise StorageError(f"simulated: {verb} {full} got no answer")
        return result

    def _put(self, path: str, data: bytes, put: Callable[[str, bytes], Any]) -> Any:
        done = put(path, data)
        if done is not False:
            self._storage.damaged.discard(_full(self._inner, path))
            self._storage.wrote(self._process, self._inner, path, data)
        return done

    def _remove(self, path: str, remove: Callable[[str], None]) -> None:
        self._storage.deleting(self._inner, path)
        remove(path)

    def _remove_all(self, prefix: str, paths: Sequence[str]) -> None:
        for path in paths:
            self._remove(path, self._inner.delete)
        if not self._inner.list(prefix):
            self._storage.emptied(self._inner, prefix)


def file_path(directory: str, file: Mapping[str, Any]) -> str:
    """Return where a file lies that the manifest in `directory` names."""
    origin = file.get("origin")
    own = directory if origin is None else re.sub(r"chk-\d+$", f"chk-{origin}", directory)
    return f"{own}/{file['path']}"


def _full(store: ObjectStore, path: str) -> str:
    return f"{store.url}/{path}"


def _exists(store: ObjectStore, directory: str) -> bool:
    try:
        store.read(f"{directory}/{MANIFEST}")
    except MissingObject:
        return False
    return True


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] if data else data
