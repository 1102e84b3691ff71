"""The job's directory on checkpoint storage. Everything here blocks and runs on the I/O pool.

| object | written |
|---|---|
| `graph.pkl` | once, by the first attempt |
| `job.json`, `events.jsonl` | again and again; only for inspection and recovery, nothing is decided by them alone |
| `attempts/<n>.json` | once, by conditional create: who creates it owns attempt n; old ones are deleted (`claims`) |
| `chk-<n>/manifest.json` | once, by conditional create: makes checkpoint n complete |

Checkpoints may be built on files of earlier ones, which lie in the directories of these. So of a checkpoint that goes
those files stay that the manifest of another one names (`_shared`), in a directory that is no checkpoint any more; they
go when it is swept and nobody names them. A manifest that rots, or is lost, takes none of them along: subtasks know
nothing of it, and build their next checkpoint on those files. So what an attempt has published or read is remembered.

Fencing of a master that was thought dead: it publishes a manifest, *then* looks whether a later attempt is claimed,
and announces only if none is. Its successor claims first and *then* lists the manifests. So either the old one sees the
claim and keeps silent, or the new one sees the manifest and restores from it; no effect is announced that
the successor does not know. What an old one, cut off, publishes later still is told by its attempt and number, and not
gone on from (`without_zombies`).

What such a master still deletes does no harm, however late it comes to it, since its successor needs none of it:

- Only what was there when it looked goes, by name, and of its own attempts: nothing that the successor has written.
- It keeps the newest complete checkpoints, and what these are built on. The successor restores one that is no older,
  and builds only on what that is built on. If it must pass over damaged ones, it may come to one that is being deleted,
  and builds on nothing (`RestoreInfo.goes_on`); if that is gone before it is read, that is one more damaged checkpoint.
- What is built on a checkpoint is learnt from manifests. One that was listed and is gone when it is read means that the
  successor has gone on, and discarded it: then nothing is deleted. (In one master this cannot be: discards and sweeps
  are done one after the other, `Checkpoints._tidy`.)
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rayflow.graph.plan import JobGraph
from rayflow.graph.shipping import ship_graph
from rayflow.model.errors import CorruptCheckpointError, StorageError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.runtime.clock import wall_clock_ms
from rayflow.runtime.snapshots import written_by
from rayflow.state.claims import claim_next, claim_path, newest_claim
from rayflow.state.finding import (
    ResolvedCheckpoint,
    find_checkpoints,
    restorable,
    stored_job,
    without_zombies,
)
from rayflow.state.manifest import (
    MANIFEST,
    Manifest,
    NoManifest,
    checkpoint_directory,
    publish_manifest,
    read_manifest,
)
from rayflow.state.pins import Pin, is_pinned
from rayflow.state.publishing import create_surely, write_surely
from rayflow.state.storage import (
    MissingObject,
    ObjectStore,
    abort_uploads,
    clean_up_after_writers,
    join_url,
    parent_url,
    storage_warning,
)

OpenStore = Callable[[str, Mapping[str, str]], ObjectStore]


@dataclass(frozen=True, slots=True)
class StoredJob:
    """What a dead master left, empty where nothing was written; and what to know of the storage."""

    job: dict[str, Any]
    events: list[dict[str, Any]]
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class CheckpointListing:
    """Numbers of the job's checkpoint directories, ascending: with a manifest, and without."""

    complete: tuple[CheckpointId, ...]
    incomplete: tuple[CheckpointId, ...]


@dataclass(frozen=True, slots=True)
class Sibling:
    """A checkpoint of another job, which says that it is complete; `lost` if its manifest is not there."""

    number: CheckpointId
    lost: bool


class JobStorage:
    """The directory of one job. `shares`: its checkpoints may be built on each other's files."""

    def __init__(
        self,
        open_store: OpenStore,
        url: str,
        options: Mapping[str, str],
        job_id: JobId,
        *,
        shares: bool = False,
        now_ms: Callable[[], int] = wall_clock_ms,
    ) -> None:
        self._open_store = open_store
        self._now_ms = now_ms
        self._url = url
        self._options = options
        self._job_id = job_id
        self._shares = shares
        self._opened: ObjectStore | None = None
        self._pin: Pin | None = None
        self._put_off: set[CheckpointId] = set()
        # What the attempt's own checkpoints, and those that it has read, consist of: number of the owner, path.
        self._known: dict[CheckpointId, set[tuple[int, str]]] = {}
        # Two masters' claims of one attempt must not look alike: each would think that it won.
        self._claimant = secrets.token_hex(8)

    def load(self) -> StoredJob:
        """Read what is there. StorageError where that cannot be told."""
        job, events = self._read("job.json"), self._read("events.jsonl")
        return StoredJob(
            {} if job is None else json.loads(job),
            [] if events is None else [json.loads(line) for line in events.splitlines()],
            storage_warning(self._store),
        )

    def save_graph(self, graph: JobGraph) -> None:
        """Store the graph unless it is stored."""
        create_surely(self._store, f"{self._job_id}/graph.pkl", ship_graph(graph))

    def save_job(self, document: dict[str, Any]) -> None:
        """Replace job.json."""
        write_surely(self._store, f"{self._job_id}/job.json", json.dumps(document).encode())

    def save_events(self, events: list[dict[str, Any]]) -> None:
        """Replace events.jsonl."""
        text = "".join(json.dumps(event) + "\n" for event in events)
        write_surely(self._store, f"{self._job_id}/events.jsonl", text.encode())

    def claim_attempt(self, first: Attempt, at: str) -> Attempt:
        """Claim the next attempt, `first` or a later one, and return it."""
        self._known.clear()

        def create(path: str, number: int) -> bool:
            claim = json.dumps({"attempt": number, "at": at, "by": self._claimant}).encode()
            return create_surely(self._store, path, claim)

        return Attempt(claim_next(self._store, self._attempts, first, create))

    def is_superseded(self, attempt: Attempt) -> bool:
        """Return whether an attempt after `attempt` is claimed."""
        return newest_claim(self._store, self._attempts) > attempt

    def is_another_in_charge(self) -> bool:
        """Return whether the newest claim is another master's. (This one may have claimed an attempt that never began:
        no checkpoint could be used.) StorageError, or False for a claim that is damaged, where it cannot be told."""
        newest = newest_claim(self._store, self._attempts)
        try:
            claim = json.loads(self._store.read(claim_path(self._attempts, newest))) if newest else None
        except MissingObject:
            return True  # deleted since, by who has claimed many later ones
        except ValueError:
            return False
        return isinstance(claim, dict) and claim.get("by", self._claimant) != self._claimant

    def list_checkpoints(self) -> CheckpointListing:
        """Return which checkpoints there are."""
        start = f"{self._job_id}/"
        return _listing(path.removeprefix(start) for path in self._store.list(self._job_id))

    def without_zombies(
        self, complete: Collection[CheckpointId], attempt: Attempt
    ) -> tuple[CheckpointId, ...]:
        """Return those that the job may go on from in `attempt`, ascending: see `state.finding`."""
        kept = without_zombies(self._store, str(self._job_id), complete, attempt - 1)
        return tuple(CheckpointId(number) for number in kept)

    def read_manifest(self, checkpoint_id: CheckpointId) -> Manifest:
        """Return the manifest of a checkpoint that may be restored. CorruptCheckpointError where it is missing, damaged
        or foreign."""
        manifest = self._manifest(checkpoint_id)
        self._remember(manifest)
        return manifest

    def publish(self, manifest: Manifest, attempt: Attempt) -> bool:
        """Make the checkpoint complete. Return False if this master has been superseded meanwhile: then
        nothing may be announced any more."""
        publish_manifest(self._store, self.directory(CheckpointId(manifest.checkpoint_id)), manifest)
        self._remember(manifest)
        self._unpin()
        return not self.is_superseded(attempt)

    def discard(self, checkpoint_id: CheckpointId, attempt: Attempt) -> None:
        """Delete a checkpoint, the manifest first: what is half deleted is no checkpoint. Files that other checkpoints
        are built on stay. One that another job has pinned goes with a later one.

        Nothing is touched where a later attempt than `attempt` has written: a master that was thought dead may still
        tidy up what it began, while its successor uses the same number.
        """
        old = {checkpoint_id, *self._put_off}
        self._put_off.clear()
        for number in sorted(old):
            self._known.pop(number, None)
            complete = self.list_checkpoints().complete if self._shares else ()
            self._discard(number, attempt, self._shared(c for c in complete if c != number))

    def _discard(
        self, checkpoint_id: CheckpointId, attempt: Attempt, shared: Collection[tuple[int, str]]
    ) -> None:
        directory = self.directory(checkpoint_id)
        manifest, paths = f"{directory}/{MANIFEST}", self._store.list(directory)
        if any(written_by(path) > attempt for path in paths):
            return
        if manifest in paths and self._published_by(checkpoint_id) > attempt:
            return
        if is_pinned(self._store, directory, paths, self._now_ms()):
            self._put_off.add(checkpoint_id)
            return
        if manifest in paths:
            self._store.delete(manifest)
        needed = {f"{directory}/{path}" for owner, path in shared if owner == checkpoint_id}
        # Nothing that came after the look: by now this master may be superseded, and its successor write here.
        self._store.delete_all(directory, [path for path in paths if path not in (manifest, *needed)])

    def _shared(self, checkpoints: Iterable[CheckpointId]) -> set[tuple[int, str]]:
        """Return the files of other checkpoints that these, which were listed just now, need: number, path. One whose
        manifest is damaged can never be restored, and needs nothing by itself, but others may be built on it, and on
        what it is built on. What is built on one that is gone by now nobody here can know: StorageError."""
        found: set[tuple[int, str]] = set()
        for checkpoint_id in checkpoints:
            try:
                found |= self._manifest(checkpoint_id).shared()
            except NoManifest as error:
                raise StorageError(f"another job manager tidies up here: {error}") from None
            except CorruptCheckpointError:
                continue
        return found.union(*list(self._known.values()))

    def _manifest(self, checkpoint_id: CheckpointId) -> Manifest:
        manifest = read_manifest(self._store, self.directory(checkpoint_id))
        if manifest.job_id != self._job_id:
            raise CorruptCheckpointError(f"{self.url(checkpoint_id)} belongs to job {manifest.job_id}")
        return manifest

    def _remember(self, manifest: Manifest) -> None:
        if self._shares:
            number = CheckpointId(manifest.checkpoint_id)
            own = {(number, file.path) for file in manifest.files if file.origin is None}
            self._known[number] = manifest.shared() | own

    def sweep(self, attempt: Attempt, below: CheckpointId, busy: Collection[CheckpointId] = ()) -> None:
        """Delete what lies in directories below `below` that are no checkpoints: what came in late, for a checkpoint
        that was aborted or an attempt that was dead. Not of those that are `busy`."""
        listing = self.list_checkpoints()
        shared = self._shared(listing.complete if self._shares else ())
        for checkpoint_id in listing.incomplete:
            if checkpoint_id < below and checkpoint_id not in busy:
                self._discard(checkpoint_id, attempt, shared)

        def given_up(path: str) -> bool:
            number = _number(path.removeprefix(f"{self._job_id}/"))
            return number is not None and number < below and number not in busy

        abort_uploads(self._store, str(self._job_id), given_up)

    def sweep_all(
        self,
        attempt: Attempt,
        kept: Collection[CheckpointId],
        known: CheckpointId | None,
        busy: Collection[CheckpointId] = (),
        dropped_after: CheckpointId | None = None,
    ) -> None:
        """The job has ended: leave its metadata, the checkpoints `kept`, savepoints, and whatever is newer than these
        (it may be needed to tell what happened), also `known`, which should be complete, if it is not. Manifests of
        the `busy` ones may still appear: their files stay, and those of others that they may be built on. What came
        after `dropped_after`, when the sinks had looked, goes: what it left pending they have dropped."""
        newest = max(kept, default=None)
        listing = self.list_checkpoints()
        old = [
            c
            for c in listing.complete
            if newest in listing.complete and c < newest and c not in kept and not self._is_savepoint(c)
        ]
        if busy and self._shares:
            old = []
        if dropped_after is not None:
            late = (c for c in listing.complete if c > dropped_after and c not in busy)
            old += [c for c in late if not self._is_savepoint(c)]
        # Nothing is built on anything any more.
        self._known.clear()
        shared = self._shared(set(listing.complete) - set(old) if self._shares else ())
        for checkpoint_id in (*listing.incomplete, *old):
            if checkpoint_id != known and checkpoint_id not in busy:
                self._discard(checkpoint_id, attempt, shared)
        for checkpoint_id in () if busy else sorted({*listing.complete} - {*old}):
            self._remove_strays(checkpoint_id, shared)
        clean_up_after_writers(self._store, str(self._job_id))
        self._unpin()

    def _remove_strays(self, checkpoint_id: CheckpointId, shared: Collection[tuple[int, str]]) -> None:
        """Delete what an attempt before a complete checkpoint's own had written under its number, and came in late."""
        try:
            manifest = self._manifest(checkpoint_id)
        except CorruptCheckpointError:
            return
        directory = self.directory(checkpoint_id)
        named = {file.path for file in manifest.files if file.origin is None}
        named |= {path for owner, path in shared if owner == checkpoint_id}
        paths = (path for path in self._store.list(directory) if 0 < written_by(path) < manifest.attempt)
        if strays := [path for path in paths if path.removeprefix(f"{directory}/") not in named]:
            self._store.delete_all(directory, strays)

    def _published_by(self, checkpoint_id: CheckpointId) -> int:
        try:
            return self._manifest(checkpoint_id).attempt
        except CorruptCheckpointError:
            return 0

    def _is_savepoint(self, checkpoint_id: CheckpointId) -> bool:
        try:
            return self._manifest(checkpoint_id).kind == "savepoint"
        except CorruptCheckpointError:
            return False

    def directory(self, checkpoint_id: CheckpointId) -> str:
        """Return the checkpoint's directory, relative to the storage."""
        return checkpoint_directory(self._job_id, checkpoint_id)

    def location(self, checkpoint_id: CheckpointId) -> str:
        """Return the checkpoint's directory as a URL to open."""
        return join_url(self._url, self.directory(checkpoint_id))

    def url(self, checkpoint_id: CheckpointId) -> str:
        """Return the checkpoint's directory as a URL for people: without parameters."""
        return self.location(checkpoint_id).partition("?")[0]

    def named(self, url: str) -> list[str]:
        """Return the checkpoints that the user may have meant, likeliest first."""
        return find_checkpoints(url, self._options, self._open_store)

    def read_named(self, url: str) -> ResolvedCheckpoint:
        """Read the manifest of a checkpoint that lies anywhere."""
        return ResolvedCheckpoint(url, read_manifest(self._open_store(url, self._options), ""))

    def pin_named(self, url: str) -> None:
        """Have the job that owns the checkpoint at `url` keep it until this one has a checkpoint of its own. The
        manifest has been read. Raises CorruptCheckpointError where it has gone since."""
        self._pin = Pin(self._open_store(url, self._options), str(self._job_id))
        self._pin.put(self._now_ms())
        try:
            self.read_named(url)
        except CorruptCheckpointError:
            self._unpin()
            raise

    def _unpin(self) -> None:
        pin, self._pin = self._pin, None
        if pin is not None:
            pin.take_away()

    def newest_sibling(self, url: str) -> Sibling | None:
        """Return the newest complete checkpoint of the job whose checkpoint lies at `url`: by what is there, and by
        what that job noted. None where the directory above is no job's."""
        store = self._open_store(parent_url(url), self._options)
        complete = set(_listing(store.list("")).complete)
        job = stored_job(store, "")
        reports = job.get("checkpoints", ())
        noted = {CheckpointId(r["id"]) for r in reports if r["status"] == "completed" and r["retained"]}
        complete = {CheckpointId(number) for number in restorable(store, "", complete, job)}
        newest = max(complete | noted, default=None)
        return None if newest is None else Sibling(newest, newest not in complete)

    @property
    def _store(self) -> ObjectStore:
        if self._opened is None:
            self._opened = self._open_store(self._url, self._options)
        return self._opened

    def _read(self, name: str) -> bytes | None:
        try:
            return self._store.read(f"{self._job_id}/{name}")
        except MissingObject:
            return None

    @property
    def _attempts(self) -> str:
        return f"{self._job_id}/attempts"


def _listing(paths: Iterable[str]) -> CheckpointListing:
    found: set[int] = set()
    complete: set[int] = set()
    for path in paths:
        number = _number(path)
        if number is not None:
            found.add(number)
            if path.partition("/")[2] == MANIFEST:
                complete.add(number)
    return CheckpointListing(
        tuple(CheckpointId(n) for n in sorted(complete)),
        tuple(CheckpointId(n) for n in sorted(found - complete)),
    )


def _number(path: str) -> int | None:
    """Return the number of the checkpoint whose directory `path`, which is relative to the job's, lies in."""
    folder = path.partition("/")[0]
    number = folder.removeprefix("chk-")
    return int(number) if folder.startswith("chk-") and number.isdigit() else None
