"""Uploads in parts to S3, and how none is left behind.

What is uploaded in parts is no object until the upload is completed, but takes space, and costs, until it is completed
or aborted; no listing of objects shows it. obstore, by which everything else goes, can neither abort an upload nor
find those that a killed process left, so this is done with boto3.

Checkpoints' state files are uploaded by obstore, the large ones in parts; what a process that died left of them is
ended here too. `Upload` is what a sink writes a staged file to: small ones are put at once when they are closed,
larger ones go out in parts of `PART_BYTES`, so that no more than that is held in memory. Closing it completes the
upload. `S3Uploads.abort_all` ends the uploads below a prefix that nobody will complete any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from rayflow.model.errors import StorageError
from rayflow.state.s3 import CONNECT_TIMEOUT, READ_TIMEOUT, RETRIES, S3Location

PART_BYTES = 8 << 20


class S3Uploads:
    """Uploads to one bucket below a path. Connects on first use; safe on several threads."""

    def __init__(self, at: S3Location) -> None:
        self._at = at

    def open(self, path: str, put: Callable[[bytes], None]) -> Upload:
        """Return a new upload of `path`; `put` uploads what is small enough at once."""
        return Upload(self, path, put)

    def begin(self, path: str) -> str:
        """Return the id of a new upload."""
        with self.errors("write", path):
            begun = self._client.create_multipart_upload(Bucket=self._at.bucket, Key=self._key(path))
            return str(begun["UploadId"])

    def send(self, path: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        """Upload part `number` (from 1); return what completing needs to know of it."""
        with self.errors("write", path):
            sent = self._client.upload_part(
                Bucket=self._at.bucket, Key=self._key(path), UploadId=upload, PartNumber=number, Body=data
            )
            return {"PartNumber": number, "ETag": sent["ETag"]}

    def complete(self, path: str, upload: str, parts: list[dict[str, Any]]) -> None:
        """Make the parts an object."""
        with self.errors("write", path):
            self._client.complete_multipart_upload(
                Bucket=self._at.bucket,
                Key=self._key(path),
                UploadId=upload,
                MultipartUpload={"Parts": parts},
            )

    def abort(self, path: str, upload: str) -> None:
        """Give an upload up; harmless where it is completed or aborted."""
        with self.errors("abort the upload of", path):
            try:
                self._client.abort_multipart_upload(
                    Bucket=self._at.bucket, Key=self._key(path), UploadId=upload
                )
            except self._client.exceptions.NoSuchUpload:
                return

    def abort_all(self, prefix: str, which: Callable[[str], bool] = lambda path: True) -> None:
        """Give up all unfinished uploads below `prefix`, whoever began them, of paths that are asked for."""
        for path, upload in self.unfinished(prefix):
            if which(path):
                self.abort(path, upload)

    def unfinished(self, prefix: str) -> list[tuple[str, str]]:
        """Return (path, upload id) of every upload below `prefix` that is neither completed nor aborted."""
        below = self._key(f"{prefix.rstrip('/')}/" if prefix else "")
        with self.errors("list the uploads below", prefix):
            pages = self._client.get_paginator("list_multipart_uploads")
            found = [
                (str(upload["Key"]), str(upload["UploadId"]))
                for page in pages.paginate(Bucket=self._at.bucket, Prefix=below)
                for upload in page.get("Uploads", ())
            ]
        cut = len(self._key(""))
        # Not every server minds the prefix.
        return [(key[cut:], upload) for key, upload in found if key.startswith(below)]

    @contextmanager
    def errors(self, verb: str, path: str) -> Iterator[None]:
        """Turn what boto3 raises into a StorageError that names the file."""
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (Boto3Error, BotoCoreError, ClientError, OSError) as error:
            at = f" (endpoint {self._at.endpoint})" if self._at.endpoint else ""
            raise StorageError(f"cannot {verb} {self._at.url}/{path}{at}: {error}") from None

    def _key(self, path: str) -> str:
        return f"{self._at.path}/{path}" if self._at.path else path

    @cached_property
    def _client(self) -> Any:
        # Takes half a second to import, which jobs without S3 need not spend.
        from boto3.session import Session
        from botocore.config import Config

        at = self._at
        return Session().client(
            "s3",
            region_name=at.region,
            endpoint_url=at.endpoint,
            aws_access_key_id=at.access_key,
            aws_secret_access_key=at.secret_key,
            aws_session_token=at.session_token,
            config=Config(
                connect_timeout=CONNECT_TIMEOUT.total_seconds(),
                read_timeout=READ_TIMEOUT.total_seconds(),
                retries={"total_max_attempts": RETRIES + 1, "mode": "standard"},
                s3={"addressing_style": "path" if at.endpoint else "auto"},
                # What S3-compatible servers know, and AWS does too.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )


class Upload:
    """A file for pyarrow to write to."""

    def __init__(self, uploads: S3Uploads, path: str, put: Callable[[bytes], None]) -> None:
        self._uploads = uploads
        self._path = path
        self._put = put
        self._buffer = bytearray()
        self._id: str | None = None
        self._parts: list[dict[str, Any]] = []
        self.closed = False

    def write(self, data: Any) -> int:
        """Take bytes; send those that make a part."""
        with memoryview(data) as view:
            self._buffer += view
            taken = view.nbytes
        while len(self._buffer) > PART_BYTES:
            self._send(PART_BYTES)
        return taken

    def flush(self) -> None:
        """Do nothing: parts are sent when they are full; S3 takes smaller ones only at the end."""

    def close(self) -> None:
        """Make it an object."""
        if self.closed:
            return
        if self._id is None:
            self._put(bytes(self._buffer))
        else:
            self._send(len(self._buffer))
            self._uploads.complete(self._path, self._id, self._parts)
        self.closed = True

    def abandon(self) -> None:
        """Leave nothing of it behind."""
        self.closed = True
        self._buffer.clear()
        if self._id is not None:
            self._uploads.abort(self._path, self._id)

    def _send(self, nbytes: int) -> None:
        if self._id is None:
            self._id = self._uploads.begin(self._path)
        piece = bytes(self._buffer[:nbytes])
        self._parts.append(self._uploads.send(self._path, self._id, len(self._parts) + 1, piece))
        del self._buffer[:nbytes]
