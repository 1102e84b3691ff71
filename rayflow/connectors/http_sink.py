"""`HttpSink`: batches of rows as POST requests.

The client is httpx: a plain blocking one, since a sink writes on threads of its own; of its kind it is the one with
time limits on each step of a request by default, connections that are kept, and types.

Delivery: at least once. Each request says who it is in `Idempotency-Key` (as the IETF's draft of that name has it): the
same at each try, so a service that keeps these keys takes a batch once, however often its answer got lost. After a
restart of the job rows come in other batches, under other keys.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from typing import Literal
from urllib.parse import urlsplit

import pyarrow as pa

from rayflow.batch.changelog import OP_COLUMN, is_changelog
from rayflow.connectors.extras import needed
from rayflow.connectors.json_lines import encode_lines
from rayflow.model.config import redact
from rayflow.model.errors import DataError, PlanError, RayflowError
from rayflow.operators.batched_sink import BatchedSink, Batching, RetryLater
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.batching_messages import Verdict

Format = Literal["jsonl", "json", "arrow"]

_CONTENT_TYPES: dict[str, str] = {
    "jsonl": "application/x-ndjson",
    "json": "application/json",
    "arrow": "application/vnd.apache.arrow.stream",
}
_PASSING = frozenset((408, 425, 429, 500, 502, 503, 504))
_LOGIN = frozenset((401, 403, 404, 405, 407, 410))
_SHOWN_CHARACTERS = 300


class RequestRefused(DataError):
    """The service answered that it will not have these rows."""


class CannotPost(RayflowError):
    """The service answered that it will not have anything of this job: no leave, or no such address."""


class HttpSink(BatchedSink):
    """POSTs each batch to `url`: as JSON lines (`format="jsonl"`), a JSON array (`"json"`) or an Arrow IPC stream
    (`"arrow"`).

    Any 2xx is success. 408, 425, 429, 5xx and trouble on the way are tried again, not before `Retry-After`;
    401, 403, 404, 405, 407, 410 and redirects fail the job; any other 4xx refuses the batch, which is sent in halves,
    to find the rows to blame, where there is an `on_error` policy. `headers` go with each request and are never shown.
    `keys`: rows equal in them are sent in order. Needs `pip install 'rayflow[http]'`. Raises PlanError.
    """

    def __init__(
        self,
        url: str,
        *,
        format: Format = "jsonl",
        headers: Mapping[str, str] | None = None,
        keys: str | Sequence[str] = (),
        batching: Batching | None = None,
    ) -> None:
        needed("rf.HttpSink", "http", "httpx")
        shown = redact({"": url})[""]
        if not isinstance(url, str) or urlsplit(url).scheme not in ("http", "https"):
            raise PlanError(f"rf.HttpSink: expected a URL of http or https; got {shown!r}")
        if format not in _CONTENT_TYPES:
            raise PlanError(f"rf.HttpSink: format={format!r}: expected 'jsonl', 'json' or 'arrow'")
        self.url = url
        self.format = format
        self.headers = dict(headers or {})
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.batching = batching or Batching(rows=1_000, bytes="1MiB", linger="200ms", in_flight=4)
        self.detail = f"{format} to {shown}"

    def validate(self, schema: pa.Schema | None) -> None:
        """See `Sink`."""
        if schema is not None and is_changelog(schema):
            raise PlanError("rf.HttpSink: it appends rows; make the stream an append stream, by a window")

    def open(self, ctx: SinkContext) -> None:
        """See `BatchedSink`."""
        import httpx

        # For each step of a request; together below the limit after which the attempt ends.
        self._client = httpx.Client(timeout=self.batching.timeout_ms / 4_000)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """See `BatchedSink`."""
        headers = {
            "Content-Type": _CONTENT_TYPES[self.format],
            "Idempotency-Key": self.request_id,
            **self.headers,
        }
        answer = self._client.post(self.url, content=encoded(batch, self.format), headers=headers)
        if answer.is_success:
            return
        said = " ".join(answer.text[:_SHOWN_CHARACTERS].split())
        what = f"{redact({'': self.url})['']} answered {answer.status_code} {answer.reason_phrase}: {said}"
        if answer.status_code in _PASSING or answer.status_code > 500:
            raise RetryLater(what, retry_after_ms(answer.headers.get("Retry-After"), time.time()))
        if answer.status_code in _LOGIN or not answer.is_client_error:
            raise CannotPost(what)
        raise RequestRefused(what)

    def classify(self, error: Exception) -> Verdict:
        """See `BatchedSink`."""
        import httpx

        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return "fatal"
        return "retry" if isinstance(error, httpx.TransportError) else super().classify(error)

    def close(self) -> None:
        """See `BatchedSink`."""
        client = self.__dict__.pop("_client", None)
        if client is not None:
            client.close()


def encoded(batch: pa.RecordBatch, format: Format) -> bytes:
    """Return the rows as the body of a request."""
    assert OP_COLUMN not in batch.schema.names, "an append stream"
    if format == "arrow":
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        body: bytes = sink.getvalue().to_pybytes()
        return body
    lines = encode_lines(batch)
    # No line has a line end in it: JSON escapes them.
    return lines if format == "jsonl" else b"[" + lines[:-1].replace(b"\n", b",") + b"]"


def retry_after_ms(value: str | None, now_s: float) -> int:
    """Return how long `Retry-After` (seconds, or a date: RFC 9110, 10.2.3) asks to wait; 0 where it says nothing."""
    if value is None:
        return 0
    if value.strip().isdecimal():
        return int(value) * 1_000
    try:
        then = parsedate_to_datetime(value)
    except ValueError:
        return 0
    if then.tzinfo is None:
        then = then.replace(tzinfo=dt.timezone.utc)
    return max(0, int((then.timestamp() - now_s) * 1_000))
