"""S3-compatible storage: one reading of the settings for all who talk S3, and the object store on it.

Settings come from the URL's query (`endpoint_override`, `scheme`, `region`, as pyarrow spells them), else
from the options `s3.*`; what neither says (credentials of a role, say) the client library finds by its own
custom. Requests go to `endpoint/bucket/key` when an endpoint is given, and to AWS's host names when not.

A conditional PUT whose answer got lost may be repeated by the client and then report that the object exists,
although this caller made it: `create` may answer False for one's own object. Whoever must know compares the
contents.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import S3Store

from rayflow.model.errors import ConfigError, StorageError
from rayflow.state.storage import MissingObject, checked_path

if TYPE_CHECKING:
    from rayflow.state.s3_uploads import S3Uploads

CONNECT_TIMEOUT = timedelta(seconds=3)
READ_TIMEOUT = timedelta(seconds=20)
REQUEST_TIMEOUT = timedelta(seconds=120)
RETRIES = 2
ONE_REQUEST_BYTES = 64 << 20
RETRY_TIMEOUT = timedelta(seconds=10)

_QUERY_KEYS = ("endpoint_override", "scheme", "region")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Location:
    """A bucket, a path in it (no slash at either end), and how to get there. `repr` shows no secret."""

    bucket: str
    path: str
    endpoint: str | None
    region: str
    allow_http: bool
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """`s3://bucket/path`, fit for printing."""
        return f"s3://{self.bucket}/{self.path}".rstrip("/")


def parse_s3_url(url: str, options: Mapping[str, str]) -> S3Location:
    """Return what `url` and `options` together mean; ConfigError, showing no secret, where they cannot."""
    parts = urlsplit(url, allow_fragments=False)
    shown = f"s3://{parts.hostname or ''}{parts.path}"
    if parts.username or parts.password:
        raise ConfigError(f"{shown} has credentials in it; set s3.access_key and s3.secret_key instead")
    if not parts.netloc:
        raise ConfigError(f"{url!r} names no bucket; expected s3://BUCKET/PATH")
    query = dict(parse_qsl(parts.query))
    if unknown := sorted(query.keys() - set(_QUERY_KEYS)):
        raise ConfigError(f"{shown}: unknown query key {unknown[0]!r}; expected {', '.join(_QUERY_KEYS)}")
    endpoint = query.get("endpoint_override") or options.get("s3.endpoint") or None
    allow_http = str(options.get("s3.allow_http", "")).lower() in ("true", "1", "yes")
    if endpoint is not None:
        scheme = query.get("scheme", "http" if allow_http else "https")
        endpoint = (endpoint if "://" in endpoint else f"{scheme}://{endpoint}").rstrip("/")
        # Whoever writes http:// has decided; asking for a second option would only make it fail first.
        allow_http = allow_http or endpoint.startswith("http://")
    if bool(options.get("s3.access_key")) != bool(options.get("s3.secret_key")):
        raise ConfigError("s3.access_key and s3.secret_key belong together; only one of them is set")
    return S3Location(
        bucket=parts.netloc,
        path=unquote(parts.path).strip("/"),
        endpoint=endpoint,
        region=query.get("region") or options.get("s3.region") or "us-east-1",
        allow_http=allow_http,
        access_key=options.get("s3.access_key") or None,
        secret_key=options.get("s3.secret_key") or None,
        session_token=options.get("s3.session_token") or None,
    )


class S3ObjectStore:
    """Objects of a bucket below a prefix."""

    def __init__(self, url: str, options: Mapping[str, str]) -> None:
        self._location = parse_s3_url(url, options)
        try:
            self._store = s3_client(self._location)
        except BaseError as error:
            raise ConfigError(f"{self.url}: {_first_line(error)}") from None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`."""
        return self._location.url

    def write(self, path: str, data: bytes) -> None:
        """PUT."""
        with self._errors("write", path):
            # In one request where that can be: a writer that dies at parts of an object leaves them behind, unseen
            # by listings, until `abort_uploads`.
            obstore.put(self._store, checked_path(path), data, use_multipart=len(data) > ONE_REQUEST_BYTES)

    def create(self, path: str, data: bytes) -> bool:
        """Conditional PUT."""
        with self._errors("create", path):
            try:
                obstore.put(self._store, checked_path(path), data, mode="create", use_multipart=False)
            except (AlreadyExistsError, PreconditionError):
                return False
        return True

    def read(self, path: str) -> bytes:
        """GET."""
        with self._errors("read", path):
            try:
                return bytes(obstore.get(self._store, checked_path(path)).bytes())
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise
                raise MissingObject(f"{self.url}/{path} does not exist{self._at()}") from None

    def list(self, prefix: str) -> list[str]:
        """LIST, page by page."""
        stripped = prefix.rstrip("/")
        with self._errors("list", prefix):
            pages = obstore.list(self._store, prefix=checked_path(stripped) if stripped else None)
            return sorted(str(item["path"]) for page in pages for item in page)

    def delete(self, path: str) -> None:
        """DELETE."""
        self._delete([checked_path(path)], path)

    def delete_all(self, prefix: str, paths: Sequence[str]) -> None:
        """Bulk DELETE."""
        if paths:
            self._delete([checked_path(path) for path in paths], prefix)

    def delete_prefix(self, prefix: str) -> None:
        """LIST, then bulk DELETE."""
        if paths := self.list(prefix):
            self._delete(paths, prefix)

    def remove_temporaries(self, prefix: str) -> None:
        """Abort the uploads in parts below `prefix` that are not complete."""
        self._uploads.abort_all(prefix)

    def abort_uploads(self, prefix: str, which: Callable[[str], bool]) -> None:
        """See `abort_uploads` of `state.storage`."""
        self._uploads.abort_all(prefix, which)

    @cached_property
    def _uploads(self) -> S3Uploads:
        from rayflow.state.s3_uploads import S3Uploads

        return S3Uploads(self._location)

    def _delete(self, paths: Sequence[str], path: str) -> None:
        with self._errors("delete", path):
            try:
                obstore.delete(self._store, list(paths))
            except FileNotFoundError:
                return  # someone else was quicker

    @contextmanager
    def _errors(self, verb: str, path: str) -> Iterator[None]:
        try:
            yield
        except MissingObject:
            raise
        except (BaseError, OSError, ValueError) as error:
            raise StorageError(f"cannot {verb} {self.url}/{path}{self._at()}: {_first_line(error)}") from None

    def _at(self) -> str:
        return f" (endpoint {self._location.endpoint})" if self._location.endpoint else ""


def s3_client(at: S3Location) -> Any:
    """Return an obstore client of the bucket, its paths beginning below `at.path`."""
    config: dict[str, Any] = {"region": at.region, "virtual_hosted_style_request": at.endpoint is None}
    optional = {
        "endpoint": at.endpoint,
        "access_key_id": at.access_key,
        "secret_access_key": at.secret_key,
        "session_token": at.session_token,
    }
    return S3Store(
        at.bucket,
        prefix=at.path or None,
        config=config | {key: value for key, value in optional.items() if value is not None},
        client_options={
            "allow_http": at.allow_http,
            "connect_timeout": CONNECT_TIMEOUT,
            "read_timeout": READ_TIMEOUT,
            "timeout": REQUEST_TIMEOUT,
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": RETRY_TIMEOUT,
            "backoff": {
                "init_backoff": timedelta(milliseconds=200),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
        },
    )


def _first_line(error: BaseException) -> str:
    """The error without obstore's debugging dump."""
    return str(error).strip().split("\n", 1)[0].strip()
