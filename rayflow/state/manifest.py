"""What a checkpoint consists of.

Theory of operation. A checkpoint is the directory `<job id>/chk-<n>` of the job's store. Subtasks put their
state files there, in any order; when all have acknowledged, the JobManager creates `manifest.json`, which
names every file with its size and SHA-256. That one atomic create is what makes the directory a checkpoint:
one without a manifest is garbage, whatever else it holds. A manifest is never changed.

The parser trusts nothing: a manifest that is torn, foreign or of another format version is a
CorruptCheckpointError that names the file and what is wrong with it. `sha256`, over everything else in the
manifest, finds what still parses: a digit that changed in a source's position.

Invariants:

1. A published manifest names only files that were durable before it was published.
2. There is at most one manifest per directory, and it never changes.
3. `from_json(to_json(m)) == m`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from rayflow.model.errors import ConfigError, CorruptCheckpointError, StorageError
from rayflow.state.parts import PART_KINDS, PartKind
from rayflow.state.publishing import create_surely, read_checked
from rayflow.state.storage import MissingObject, ObjectStore, checked_path, parent_url

FORMAT_VERSION = 4
"""Version 1 has no chains, 2 no `committed`, 3 no `salted`. Manifests without them are still written as that."""
MANIFEST = "manifest.json"

CheckpointKind = Literal["checkpoint", "savepoint"]

CHECKPOINT_DIRECTORY = re.compile(r"(?:^|.*/)chk-(\d+)")
"""What the folder of a checkpoint is called."""


class NoManifest(CorruptCheckpointError):
    """There is no manifest where one should be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StateFile:
    """A state file of a checkpoint. `path` is relative to the checkpoint's directory, or to that of checkpoint
    `origin` of the same job, which wrote it; `sha256` in hex; `key_groups` is the half-open range [start, stop) of a
    keyed part, else None; `link`: see `state.chains`, None for a file that is all there is of its part."""

    path: str
    uid: str
    part: str
    kind: PartKind
    subtask_index: int
    nbytes: int
    sha256: str
    rows: int
    key_groups: tuple[int, int] | None = None
    link: int | None = None
    origin: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as the manifest has it."""
        document = asdict(self)
        return document if self.link is not None else {k: document[k] for k in _FILE_FIELDS}


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitState:
    """A split as the manifest records it: its JSON, the JSON position (None: not begun), finished or not."""

    split: str
    position: str | None = None
    finished: bool = False
    max_time: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The contents of `manifest.json`.

    `time_ms` is when the checkpoint was triggered (ms since the epoch); `operators` maps the uid of every
    operator to its parallelism; `sources` maps a source's uid to the state of its splits; `watermarks` maps
    a vertex to the lowest watermark (ns) of its subtasks, where one is known. `committed` is the newest checkpoint, up
    to this one, with transactions of a sink, which it had committed once it was complete; 0: none had any, None: it was
    written before this was kept. `salted`, by uid, are the hashes of the keys that an operator salts (see
    `protocol.salting`), ascending: where whoever restores begins.
    """

    job_id: str
    attempt: int
    checkpoint_id: int
    time_ms: int
    max_parallelism: int
    kind: CheckpointKind = "checkpoint"
    operators: dict[str, int] = field(default_factory=dict)
    files: tuple[StateFile, ...] = ()
    sources: dict[str, tuple[SplitState, ...]] = field(default_factory=dict)
    watermarks: dict[str, int] = field(default_factory=dict)
    committed: int | None = None
    salted: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all state files, those of earlier checkpoints included."""
        return sum(file.nbytes for file in self.files)

    def shared(self) -> set[tuple[int, str]]:
        """Return the files of earlier checkpoints that this one needs: number of the checkpoint, path."""
        return {(file.origin, file.path) for file in self.files if file.origin is not None}

    def to_json(self) -> bytes:
        """Return the contents of `manifest.json`."""
        chained = any(file.link is not None for file in self.files)
        version = 4 if self.salted else 3 if self.committed is not None else 2 if chained else 1
        document: dict[str, Any] = {"format_version": version}
        for item in fields(self):
            document[item.name] = getattr(self, item.name)
        if version < 3:
            del document["committed"]
        if version < 4:
            del document["salted"]
        document["operators"] = {uid: {"parallelism": n} for uid, n in self.operators.items()}
        document["files"] = [file.to_json() for file in self.files]
        document["sources"] = {
            uid: {"splits": [asdict(split) for split in splits]} for uid, splits in self.sources.items()
        }
        return json.dumps(document | {"sha256": _checksum(document)}, indent=1).encode()

    @staticmethod
    def from_json(data: bytes, origin: str = MANIFEST) -> Manifest:
        """Return the manifest in `data`; CorruptCheckpointError, naming `origin`, if it is not one."""
        try:
            document = json.loads(data)
        except ValueError as error:
            raise CorruptCheckpointError(f"{origin} is not JSON (torn or overwritten?): {error}") from None
        return _Parser(origin).manifest(document)


# ------------------------------------------------------------------------------------- publish and read


def checkpoint_directory(job_id: str, checkpoint_id: int) -> str:
    """Return the directory of a checkpoint, relative to the checkpoint storage."""
    return f"{job_id}/chk-{checkpoint_id}"


def publish_manifest(store: ObjectStore, directory: str, manifest: Manifest) -> None:
    """Make `directory` a checkpoint. Doing it again with an equal manifest is harmless.

    Raises StorageError if it cannot be written, or if another manifest is there already: then another
    JobManager has published this checkpoint, and this one has been superseded.
    """
    path = _manifest_path(directory)
    if create_surely(store, path, manifest.to_json()):
        return
    there = Manifest.from_json(store.read(path), f"{store.url}/{path}")
    if there != manifest:
        raise StorageError(
            f"{store.url}/{path} was already published by attempt {there.attempt} of job {there.job_id}, "
            f"with other contents; attempt {manifest.attempt} has been superseded"
        )


def read_manifest(store: ObjectStore, directory: str) -> Manifest:
    """Return the manifest in `directory` ("" where the store is the checkpoint's directory itself).

    Raises CorruptCheckpointError where there is no usable one, NoManifest where there is none; StorageError where it
    cannot be read.
    """
    path = _manifest_path(directory)
    origin = f"{store.url}/{path}"
    try:
        manifest = read_checked(lambda: store.read(path), lambda data: Manifest.from_json(data, origin))
    except MissingObject:
        raise NoManifest(f"{origin} does not exist: not a checkpoint, or one that never completed") from None
    named = CHECKPOINT_DIRECTORY.fullmatch(directory or store.url)
    if named and int(named[1]) != manifest.checkpoint_id:
        raise CorruptCheckpointError(
            f"{origin} is that of checkpoint {manifest.checkpoint_id}: it is foreign here"
        )
    return manifest


class CheckpointFiles:
    """Where the files of the checkpoint at `url` lie: its own there, whatever that is called, those of earlier
    checkpoints in the directories beside it."""

    def __init__(self, url: str, open_store: Callable[[str], ObjectStore]) -> None:
        self.url = url.partition("?")[0]
        self._url, self._open_store = url, open_store
        self._stores: dict[str, ObjectStore] = {}

    def locate(self, file: StateFile) -> tuple[ObjectStore, str]:
        """Return the store of a file, and its path there."""
        if file.origin is None:
            return self._store(self._url), file.path
        return self._store(parent_url(self._url)), f"chk-{file.origin}/{file.path}"

    def _store(self, url: str) -> ObjectStore:
        if url not in self._stores:
            self._stores[url] = self._open_store(url)
        return self._stores[url]


def _manifest_path(directory: str) -> str:
    return f"{directory}/{MANIFEST}" if directory else MANIFEST


def _checksum(document: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of a manifest's contents, its own checksum apart, whatever its spacing and order."""
    covered = {key: value for key, value in document.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(covered, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


# ------------------------------------------------------------------------------------------------ parser

_INT_OR_NONE = (int, type(None))
_SPLIT_FIELDS = {
    "split": str,
    "position": (str, type(None)),
    "finished": bool,
    "max_time": _INT_OR_NONE,
}
_FILE_FIELDS = {
    "path": str,
    "uid": str,
    "part": str,
    "kind": str,
    "subtask_index": int,
    "nbytes": int,
    "sha256": str,
    "rows": int,
    "key_groups": (list, type(None)),
}
_CHAIN_FIELDS = {"link": int, "origin": _INT_OR_NONE}
_MANIFEST_FIELDS = {
    "format_version": int,
    "job_id": str,
    "attempt": int,
    "checkpoint_id": int,
    "time_ms": int,
    "max_parallelism": int,
    "kind": str,
    "operators": dict,
    "files": list,
    "sources": dict,
    "watermarks": dict,
    "sha256": str,
}


class _Parser:
    """Turns parsed JSON into a manifest, or says where it is not one."""

    def __init__(self, origin: str) -> None:
        self._origin = origin

    def manifest(self, document: Any) -> Manifest:
        # The version first: a later version may well have other fields.
        version = document.get("format_version") if isinstance(document, dict) else None
        if version is None:
            raise self._wrong("it has no format_version, so it is not a manifest of rayflow")
        if version not in range(1, FORMAT_VERSION + 1):
            raise self._wrong(f"format_version is {version!r}; this rayflow reads 1 to {FORMAT_VERSION}")
        expected_fields: dict[str, Any] = dict(_MANIFEST_FIELDS)
        if version >= 3:
            expected_fields["committed"] = int if version == 3 else _INT_OR_NONE
        if version >= 4:
            expected_fields["salted"] = dict
        values = self._record(document, expected_fields, "the manifest")
        del values["format_version"]
        if values["kind"] not in ("checkpoint", "savepoint"):
            raise self._wrong(f"kind is {values['kind']!r}; expected 'checkpoint' or 'savepoint'")
        values["operators"] = {
            uid: self._record(item, {"parallelism": int}, f"operator {uid!r}")["parallelism"]
            for uid, item in values["operators"].items()
        }
        values["files"] = tuple(self._file(item, f"files[{i}]") for i, item in enumerate(values["files"]))
        values["sources"] = {uid: self._splits(item, uid) for uid, item in values["sources"].items()}
        for vertex, watermark in values["watermarks"].items():
            self._typed(watermark, int, f"watermark of {vertex!r}")
        values["salted"] = {uid: self._hashes(item, uid) for uid, item in values.get("salted", {}).items()}
        # Last: a defect with a name says more than a checksum.
        if (expected := values.pop("sha256")) != (actual := _checksum(document)):
            raise self._wrong(f"its contents have SHA-256 {actual}, but were written with {expected}")
        return Manifest(**values)

    def _splits(self, item: Any, uid: str) -> tuple[SplitState, ...]:
        splits = self._record(item, {"splits": list}, f"source {uid!r}")["splits"]
        where = f"a split of source {uid!r}"
        return tuple(SplitState(**self._record(split, _SPLIT_FIELDS, where)) for split in splits)

    def _hashes(self, item: Any, uid: str) -> tuple[int, ...]:
        where = f"what operator {uid!r} salts"
        self._typed(item, list, where)
        for key in item:
            self._typed(key, int, where)
            if not 0 <= key < 1 << 64:
                raise self._wrong(f"{where} has {key}, which is no hash of 64 bits")
        return tuple(item)

    def _file(self, item: Any, where: str) -> StateFile:
        chained = isinstance(item, dict) and "link" in item
        values = self._record(item, {**_FILE_FIELDS, **_CHAIN_FIELDS} if chained else _FILE_FIELDS, where)
        try:
            checked_path(values["path"])
        except ConfigError as error:
            raise self._wrong(f"{where}: {error}") from None
        if values["kind"] not in PART_KINDS:
            raise self._wrong(f"{where}.kind is {values['kind']!r}; expected one of {', '.join(PART_KINDS)}")
        groups = values["key_groups"]
        if groups is not None:
            if len(groups) != 2 or not all(isinstance(group, int) for group in groups):
                raise self._wrong(f"{where}.key_groups is {groups!r}; expected [start, stop]")
            values["key_groups"] = (groups[0], groups[1])
        return StateFile(**values)

    def _record(self, item: Any, expected: Mapping[str, Any], where: str) -> dict[str, Any]:
        self._typed(item, dict, where)
        if missing := sorted(expected.keys() - item.keys()):
            raise self._wrong(f"{where} lacks {missing[0]!r}")
        if extra := sorted(item.keys() - expected.keys()):
            raise self._wrong(f"{where} has an unknown field {extra[0]!r}")
        for name, types in expected.items():
            self._typed(item[name], types, f"{where}: {name!r}")
        return dict(item)

    def _typed(self, value: Any, types: Any, where: str) -> None:
        # bool is an int to Python, but not to JSON.
        if not isinstance(value, types) or (isinstance(value, bool) and types is not bool):
            raise self._wrong(f"{where} is {repr(value)[:80]}: not of the expected type")

    def _wrong(self, problem: str) -> CorruptCheckpointError:
        return CorruptCheckpointError(f"{self._origin} is not a usable manifest: {problem}")
