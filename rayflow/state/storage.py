"""Object stores: where checkpoints and job metadata live.

Theory of operation. A store maps paths to byte strings and knows two ways to write: `write` replaces,
`create` succeeds for exactly one of several racing callers. Both are atomic: a reader sees a whole object or
none. Everything a job must agree on (attempt claims, manifests) goes through `create`.

| URL | kept in | `create` |
|---|---|---|
| `file:///dir`, or a plain path | files | temporary file, then `link(2)`, which fails where the name exists |
| `s3://bucket/prefix` | an S3-compatible server, through obstore | conditional PUT (`If-None-Match: *`) |
| `memory://name` | this process; for tests and simulation | a lock |
| `rayobj://name` | holder actors of a Ray cluster (`rayflow.actors.object_store`) | their primary |

Durability. Objects survive the death of any process as soon as a call returns. On `file://` the contents are
also fsynced before they get their name, so after a crash of the node a name never points to a torn file, and
`create` fsyncs the directory as well: a manifest that was published, and all files it was published after on
a journalling file system, survive the node's crash. That costs well under a millisecond per file on an SSD,
off the task thread. A `file://` store is only as available as its disk.

Bounds. S3 requests are retried twice within 10 s, connecting may take 3 s: an unreachable endpoint is an
error after at most 13 s.

Paths are relative, `/`-separated, without empty, `.` or `..` parts. Stores may be used by any thread.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from rayflow.model.errors import ConfigError, CorruptCheckpointError, StorageError

RAY_SCHEME = "rayobj://"

_TEMPORARY = ".rayflow-tmp-"
"""Files whose name begins so are writes in progress, or what a crash left of them; never listed."""


class MissingObject(StorageError):
    """The object to be read does not exist."""


class LostObjects(StorageError, CorruptCheckpointError):
    """All that the store had is gone for good, and it cannot be told what that was: no retry can help."""


class ObjectStore(Protocol):
    """A flat name space of immutable-looking objects below `url`. Every failure is a StorageError that names
    the object's full URL, and never a secret."""

    @property
    def url(self) -> str:
        """Where paths begin, without a trailing slash, query or credentials."""

    def write(self, path: str, data: bytes) -> None:
        """Create or replace the object atomically."""

    def create(self, path: str, data: bytes) -> bool:
        """Create the object atomically; False, changing nothing, if it exists."""

    def read(self, path: str) -> bytes:
        """Return the whole object. Raises MissingObject where there is none."""

    def list(self, prefix: str) -> list[str]:
        """Return the paths of all objects below the directory `prefix` ("" for all), sorted."""

    def delete(self, path: str) -> None:
        """Delete the object; harmless where there is none."""

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """Delete these objects, which were seen below the directory `prefix`, and no other that has come to lie there
        since; harmless where they are gone."""

    def delete_prefix(self, prefix: str) -> None:
        """Delete everything below the directory `prefix`; harmless where there is nothing."""


def open_store(url: str, options: Mapping[str, str]) -> ObjectStore:
    """Return the store at `url`; `options` are the `s3.*` settings. Nothing is read or written yet.

    Raises ConfigError where the URL cannot be one of a store.
    """
    parts = urlsplit(url, allow_fragments=False)
    if parts.scheme == "s3":
        from rayflow.state.s3 import S3ObjectStore  # obstore takes 50 ms to import, and most jobs need none

        return S3ObjectStore(url, options)
    if parts.scheme == "memory":
        return MemoryStore(url)
    if url.startswith(RAY_SCHEME):
        raise ConfigError(
            f"{url!r} needs a Ray cluster, and this runs without one; expected a path, file:// or s3://"
        )
    return LocalStore(local_path(url))


def storage_warning(store: ObjectStore) -> str | None:
    """Return what to know before relying on `store`; None if nothing."""
    ask = getattr(store, "warning", None)
    return None if ask is None else str(ask() or "") or None


def clean_up_after_writers(store: ObjectStore, prefix: str) -> None:
    """Remove what writers that crashed left below the directory `prefix`, where the store has such things. For when
    nobody writes there any more; a writer that does all the same gets an error."""
    clean = getattr(store, "remove_temporaries", None)
    if clean is not None:
        clean(prefix)


def abort_uploads(store: ObjectStore, prefix: str, which: Callable[[str], bool]) -> None:
    """End what was begun to be written in parts below the directory `prefix` and is not complete, of the paths that are
    asked for, where the store has such things. For when nobody will complete them."""
    abort = getattr(store, "abort_uploads", None)
    if abort is not None:
        abort(prefix, which)


def local_path(url: str) -> Path:
    """Return the absolute path that a `file://` URL or a plain path means; ConfigError for other schemes."""
    if not url:
        raise ConfigError("a storage location is empty; expected a path, file:///path or s3://bucket/path")
    parts = urlsplit(url, allow_fragments=False)
    if "://" not in url:
        return Path(os.path.abspath(os.path.expanduser(url)))
    if parts.scheme != "file":
        raise ConfigError(f"{url!r}: unknown scheme {parts.scheme!r}; expected a path, file:// or s3://")
    if parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"{url!r} names host {parts.netloc!r}; did you mean file:///{parts.netloc}{parts.path}?"
        )
    return Path(os.path.abspath(unquote(parts.path)))


def join_url(url: str, path: str) -> str:
    """Return the URL of `path` below `url`, keeping a query where `url` is not a plain path."""
    base, mark, query = url.partition("?") if "://" in url else (url, "", "")
    return f"{base.rstrip('/')}/{path}{mark}{query}"


def parent_url(url: str) -> str:
    """Return the URL of what `url` is directly below, keeping a query where `url` is not a plain path."""
    base, mark, query = url.partition("?") if "://" in url else (url, "", "")
    return f"{base.rstrip('/').rpartition('/')[0]}{mark}{query}"


def checked_path(path: str) -> str:
    """Return `path`; ConfigError where it could leave the store."""
    if any(part in ("", ".", "..") for part in path.split("/")):
        raise ConfigError(
            f"object path {path!r}: expected parts joined by '/', none of them empty, '.' or '..'"
        )
    return path


# --------------------------------------------------------------------------------------------- local files


class LocalStore:
    """Objects as files below a directory, which is made by the first write."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @property
    def url(self) -> str:
        """The directory as a `file://` URL."""
        return f"file://{self._root}".rstrip("/")

    def write(self, path: str, data: bytes) -> None:
        """Write a temporary file and rename it."""
        target = self._target(path)
        try:
            os.replace(self._temporary(target, data), target)
        except OSError as error:
            raise self._failed("write", path, error) from None

    def create(self, path: str, data: bytes) -> bool:
        """Write a temporary file and link it to its name, which only one caller can."""
        target = self._target(path)
        try:
            temporary = self._temporary(target, data)
            try:
                os.link(temporary, target)
            except FileExistsError:
                return False
            finally:
                temporary.unlink(missing_ok=True)
            fsync(target.parent)
        except OSError as error:
            raise self._failed("create", path, error) from None
        return True

    def read(self, path: str) -> bytes:
        """Return the file's contents."""
        try:
            return self._target(path).read_bytes()
        except FileNotFoundError:
            raise MissingObject(f"{self.url}/{path} does not exist") from None
        except OSError as error:
            raise self._failed("read", path, error) from None

    def list(self, prefix: str) -> list[str]:
        """Walk the directory."""
        top = self._directory(prefix)
        paths: list[str] = []
        try:
            for folder, _, names in os.walk(top, onerror=_raise_unless_missing):
                relative = Path(folder).relative_to(self._root).as_posix()
                start = "" if relative == "." else relative + "/"
                paths += [start + name for name in names if not name.startswith(_TEMPORARY)]
        except OSError as error:
            raise self._failed("list", prefix, error) from None
        return sorted(paths)

    def delete(self, path: str) -> None:
        """Unlink the file."""
        try:
            self._target(path).unlink(missing_ok=True)
        except OSError as error:
            raise self._failed("delete", path, error) from None

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """Unlink the files, and what crashed writers left beside them. (One that is at work finds its temporary file
        gone, and writes it once more: see `state.publishing`.)"""
        for path in paths:
            self.delete(path)
        self.remove_temporaries(prefix)

    def delete_prefix(self, prefix: str) -> None:
        """Remove the directory with all that is in it."""
        directory = self._directory(prefix)
        try:
            # Twice: a writer that adds a file while the tree is removed makes the first try fail.
            with suppress(OSError):
                shutil.rmtree(directory)
            if directory.exists():
                shutil.rmtree(directory)
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed("delete", prefix, error) from None

    def remove_temporaries(self, prefix: str) -> None:
        """Remove the temporary files below the directory `prefix`, and folders that are empty then."""
        try:
            for folder, _, names in os.walk(
                self._directory(prefix), topdown=False, onerror=_raise_unless_missing
            ):
                for name in names:
                    if name.startswith(_TEMPORARY):
                        Path(folder, name).unlink(missing_ok=True)
                with suppress(OSError):
                    os.rmdir(folder)  # fails, as it should, where something is left
        except OSError as error:
            raise self._failed("clean", prefix, error) from None

    def _target(self, path: str) -> Path:
        return self._root / checked_path(path)

    def _directory(self, prefix: str) -> Path:
        stripped = prefix.rstrip("/")
        return self._root / checked_path(stripped) if stripped else self._root

    def _temporary(self, target: Path, data: bytes) -> Path:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f"{_TEMPORARY}{secrets.token_hex(8)}"
        try:
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            temporary.unlink(missing_ok=True)
            raise
        return temporary

    def _failed(self, verb: str, path: str, error: OSError) -> StorageError:
        reason = f"{error.strerror or error}"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            reason += "; free space there, or keep checkpoints elsewhere (checkpoint.storage)"
        return StorageError(f"cannot {verb} {self.url}/{path}: {reason}")


def _raise_unless_missing(error: OSError) -> None:
    # A directory that is gone holds nothing: a listing may race a deletion.
    if not isinstance(error, FileNotFoundError):
        raise error


def fsync(path: Path) -> None:
    """Make the contents of a file, or the names in a directory, survive a crash of the node."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------------- memory


class MemoryStore:
    """Objects in this process: all stores of one `memory://name` share them. Use a fresh name per test."""

    _named: dict[str, dict[str, bytes]] = {}  # noqa: RUF012  by design shared by all instances
    # Taken again by the thread that has it where the collector runs a finalizer that deletes another store's objects.
    _lock = threading.RLock()

    def __init__(self, url: str) -> None:
        parts = urlsplit(url, allow_fragments=False)
        if not parts.netloc:
            raise ConfigError(f"{url!r} has no name; expected memory://NAME")
        self._prefix = parts.path.strip("/")
        self._start = f"{self._prefix}/" if self._prefix else ""
        self._name = parts.netloc
        with self._lock:
            self._objects = self._named.setdefault(parts.netloc, {})

    @property
    def url(self) -> str:
        """`memory://name`, and the path below it."""
        return f"memory://{self._name}/{self._prefix}".rstrip("/")

    def write(self, path: str, data: bytes) -> None:
        """Store a copy."""
        with self._lock:
            self._objects[self._start + checked_path(path)] = bytes(data)

    def create(self, path: str, data: bytes) -> bool:
        """Store a copy unless there is an object of that path."""
        with self._lock:
            stored = bytes(data)
            return self._objects.setdefault(self._start + checked_path(path), stored) is stored

    def read(self, path: str) -> bytes:
        """Return what was stored."""
        with self._lock:
            try:
                return self._objects[self._start + checked_path(path)]
            except KeyError:
                raise MissingObject(f"{self.url}/{path} does not exist") from None

    def list(self, prefix: str) -> list[str]:
        """Return the paths below `prefix`."""
        return [key[len(self._start) :] for key in self._below(prefix)]

    def delete(self, path: str) -> None:
        """Forget the object."""
        with self._lock:
            self._objects.pop(self._start + checked_path(path), None)

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """Forget the objects."""
        for path in paths:
            self.delete(path)

    def delete_prefix(self, prefix: str) -> None:
        """Forget all objects below `prefix`."""
        for key in self._below(prefix):
            self.delete(key[len(self._start) :])

    def _below(self, prefix: str) -> Sequence[str]:
        stripped = prefix.rstrip("/")
        start = self._start + (checked_path(stripped) + "/" if stripped else "")
        with self._lock:
            return sorted(key for key in self._objects if key.startswith(start))
