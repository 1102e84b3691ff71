"""Reading files wherever they are, through pyarrow: the same URLs and settings as everywhere else.

A location is a path, `file://…` or `s3://bucket/path?endpoint_override=…&scheme=…&region=…`; the `s3.*`
options fill in what the URL does not say (see `rayflow.state.s3`). Connecting to S3 is given up after 1 s and
tried three times: an unreachable endpoint is an OSError after some 4 s.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyarrow import fs

from rayflow.state.s3 import READ_TIMEOUT, RETRIES, S3Location, parse_s3_url
from rayflow.state.storage import local_path

CONNECT_TIMEOUT_S = 1.0
"""The AWS library's own default. It waits longer and longer between tries: 3 s here make 26 s in all."""


def open_filesystem(url: str, options: Mapping[str, str]) -> tuple[fs.FileSystem, str]:
    """Return a pyarrow file system and the path in it that `url` means (absolute, no trailing slash; glob
    characters are left alone). Nothing is read yet. Raises ConfigError where the URL cannot be one."""
    if url.startswith("s3://"):
        at = parse_s3_url(url, options)
        return _s3(at), f"{at.bucket}/{at.path}".rstrip("/")
    return fs.LocalFileSystem(), str(local_path(url))


def at_server(url: str, options: Mapping[str, str]) -> str:
    """Return " at ENDPOINT" for messages, empty where none is set: not all of the AWS library's own errors name it."""
    endpoint = parse_s3_url(url, options).endpoint if url.startswith("s3://") else None
    return f" at {endpoint}" if endpoint else ""


def _s3(at: S3Location) -> fs.FileSystem:
    scheme, _, host = (at.endpoint or "").rpartition("://")
    return fs.S3FileSystem(
        access_key=at.access_key,
        secret_key=at.secret_key,
        session_token=at.session_token,
        region=at.region,
        endpoint_override=host or None,
        scheme=scheme or "https",
        connect_timeout=CONNECT_TIMEOUT_S,
        request_timeout=READ_TIMEOUT.total_seconds(),
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=RETRIES + 1),
    )
