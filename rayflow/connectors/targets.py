"""Where file sinks write: an object store that can also stream a file out and publish it under another name.

Publishing is what makes a commit atomic per file and harmless when repeated. `publish(staged, final)` moves
the staged file to its final name and answers False if there is no staged file: then somebody has published
it before, which the caller checks. Since there is one staged file, it is published by whoever moves it, once,
even if an older attempt's process (a zombie) wakes up in the middle:

* local: `rename(2)`. Of two racing callers one finds the staged file gone.
* S3: a server-side copy, then a delete of the staged object. Racing callers copy the same bytes; one that comes
  after the delete finds nothing to copy. What was published later under the same name can be overwritten only
  by a copy that the server began before the delete and finished after the next checkpoint's commit.

On S3 a staged file is uploaded in parts (`state.s3_uploads`) and is complete before its checkpoint is: what could
fail about its contents has failed before. Completing it only at the commit would save the copy, but upserts read what
they staged.

Staged local files are fsynced when they are finished, and directories when something is published in them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import obstore
import pyarrow as pa

from rayflow.model.errors import ConfigError, StorageError
from rayflow.state.s3 import S3ObjectStore
from rayflow.state.s3_uploads import S3Uploads, Upload
from rayflow.state.storage import LocalStore, ObjectStore, checked_path, fsync, local_path


class Target(ObjectStore, Protocol):
    """A directory that sinks write files to. Failures are StorageErrors that name the file."""

    def make_directory(self, path: str) -> None:
        """Make the directory where directories exist by themselves (harmless if it is there)."""

    def open_output(self, path: str) -> Any:
        """Return a binary stream (pyarrow takes it as a file) that creates the file; it may be visible before
        it is closed. On a local disk its directory must exist."""

    def finish(self, path: str) -> None:
        """Make the closed file durable."""

    def abandon(self, stream: Any, path: str) -> None:
        """Give up a stream that `open_output` returned for `path`, as far as that is possible, and remove what there
        is of the file."""

    def remove_unfinished(self, prefix: str) -> None:
        """Remove what writers that are gone began below `prefix` and did not finish, where no listing shows it."""

    def exists(self, path: str) -> bool:
        """Return whether the file is there."""

    def is_empty(self, path: str) -> bool:
        """Return whether the file is there and has no bytes."""

    def publish(self, staged: str, final: str) -> bool:
        """Move `staged` to `final`, replacing it atomically; False if `staged` does not exist."""

    def remove_empty(self, path: str) -> None:
        """Remove the directory if it exists and is empty."""


def open_target(url: str, options: Mapping[str, str]) -> Target:
    """Return the target at `url` (a path, `file://` or `s3://`). Nothing is read or written yet."""
    scheme = urlsplit(url).scheme if "://" in url else "file"
    if scheme == "s3":
        return S3Target(url, options)
    if scheme != "file":
        raise ConfigError(f"{url!r}: cannot write files to {scheme}://; expected a path, file:// or s3://")
    return LocalTarget(local_path(url))


class LocalTarget(LocalStore):
    """Files below a directory."""

    def make_directory(self, path: str) -> None:
        """`mkdir -p`."""
        try:
            self._directory(path).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._failed("create directory", path, error) from None

    def open_output(self, path: str) -> Any:
        """Open the file for writing. Its directory is not made: a sink whose directory was cleaned away by
        a later attempt must fail, not go on."""
        try:
            return pa.OSFile(os.fspath(self._target(path)), "wb")
        except OSError as error:
            raise self._failed("write", path, error) from None

    def finish(self, path: str) -> None:
        """fsync."""
        try:
            fsync(self._target(path))
        except OSError as error:
            raise self._failed("write", path, error) from None

    def abandon(self, stream: Any, path: str) -> None:
        """Close the file, torn as it is, and remove it: on a full disk somebody needs the room."""
        with suppress(OSError):  # a full disk cannot take the rest, which nobody wants
            stream.close()
        with suppress(OSError):
            self._target(path).unlink()

    def remove_unfinished(self, prefix: str) -> None:
        """Nothing to do: a listing shows every file."""

    def exists(self, path: str) -> bool:
        """Look."""
        return self._target(path).exists()

    def is_empty(self, path: str) -> bool:
        """Look."""
        target = self._target(path)
        return target.exists() and target.stat().st_size == 0

    def publish(self, staged: str, final: str) -> bool:
        """Rename."""
        source, target = self._target(staged), self._target(final)
        try:
            if not source.exists():
                self._keep(target)
                return False
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.replace(source, target)
            except FileNotFoundError:
                return False  # another attempt was quicker
            fsync(target.parent)
        except OSError as error:
            raise self._failed("publish", final, error) from None
        return True

    @staticmethod
    def _keep(target: Path) -> None:
        # Whoever moved it may have failed right after.
        if target.exists():
            fsync(target.parent)

    def remove_empty(self, path: str) -> None:
        """`rmdir`, which refuses where there is something in it."""
        with suppress(OSError):
            self._directory(path).rmdir()


class S3Target(S3ObjectStore):
    """Objects below a prefix. There are no directories to make or remove."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        super().__init__(url, options)
        self._uploads = S3Uploads(self._location)
        self._unfinished: dict[str, Upload] = {}

    def make_directory(self, path: str) -> None:
        """Nothing to do."""

    def open_output(self, path: str) -> Any:
        """Upload in parts; the object appears when the stream is closed, and only then."""
        upload = self._unfinished[path] = self._uploads.open(path, lambda data: self._put(path, data))
        return pa.PythonFile(upload, mode="w")

    def _put(self, path: str, data: bytes) -> None:
        with self._errors("write", path):
            # One request, whatever the size: a second way to upload in parts would leave its own behind.
            obstore.put(self._store, checked_path(path), data, use_multipart=False)

    def finish(self, path: str) -> None:
        """A finished upload is durable."""
        self._unfinished.pop(path, None)

    def abandon(self, stream: Any, path: str) -> None:
        """Abort the upload. Where that fails `remove_unfinished` will do it."""
        upload = self._unfinished.pop(path, None)
        if upload is not None:
            with suppress(StorageError):
                upload.abandon()

    def remove_unfinished(self, prefix: str) -> None:
        """Abort uploads."""
        self._uploads.abort_all(prefix)

    def exists(self, path: str) -> bool:
        """HEAD."""
        with self._errors("look for", path):
            try:
                obstore.head(self._store, checked_path(path))
            except FileNotFoundError:
                return False
        return True

    def is_empty(self, path: str) -> bool:
        """HEAD."""
        with self._errors("look for", path):
            try:
                return bool(obstore.head(self._store, checked_path(path))["size"] == 0)
            except FileNotFoundError:
                return False

    def publish(self, staged: str, final: str) -> bool:
        """Copy on the server, then delete."""
        with self._errors("publish", final):
            try:
                obstore.copy(self._store, checked_path(staged), checked_path(final))
            except FileNotFoundError:
                return False
        self.delete(staged)
        return True

    def remove_empty(self, path: str) -> None:
        """Nothing to do."""


def absolute_url(path: str | os.PathLike[str]) -> str:
    """Return `path` such that it means the same in every process: local ones become absolute."""
    text = os.fspath(path)
    if "://" in text and not text.startswith("file://"):
        return text
    return str(Path(local_path(text)))
