"""An HTTP proxy in front of a real server that fails as networks and servers do, by a script.

Each `Fault` fits requests by method and a part of the path; the first that fits and has `times` left happens.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import urlsplit

Kind = Literal["drop-reply", "refuse", "error-after", "hold", "truncate", "flip"]
"""What happens to a request: it is carried out and the connection closed without an answer; answered 503 and not
carried out; carried out and answered 500; held until `release`; its answer's body cut; one byte of that changed."""

_HOP = {"connection", "transfer-encoding", "keep-alive", "content-length"}


@dataclass
class Fault:
    """`times`: how often it happens."""

    kind: Kind
    method: str
    part: str
    times: int = 1_000_000
    happened: int = 0


@dataclass
class FaultyProxy:
    """`endpoint` is where clients go; `faults` and `delay_s`, which every request waits, may change at any time."""

    endpoint: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)
    delay_s: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fail(self, kind: Kind, method: str, part: str, times: int = 1_000_000) -> Fault:
        """From now on the next `times` fitting requests fail."""
        fault = Fault(kind, method, part, times)
        self.faults.append(fault)
        return fault

    def heal(self) -> None:
        """No more faults; what is held goes on."""
        self.faults.clear()
        self.delay_s = 0.0
        self.released.set()

    def fault_of(self, method: str, path: str) -> Kind | None:
        """Take note of a request; return what shall happen to it."""
        with self.lock:
            self.requests.append((method, path))
            for fault in self.faults:
                if fault.happened < fault.times and fault.method == method and fault.part in path:
                    fault.happened += 1
                    return fault.kind
            return None


@contextmanager
def faulty_proxy(target: str) -> Iterator[FaultyProxy]:
    """Run a proxy to the server at the URL `target`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    proxy = FaultyProxy(f"http://127.0.0.1:{server.server_address[1]}")
    server.proxy = proxy  # type: ignore[attr-defined]
    server.target = urlsplit(target).netloc  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.heal()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        proxy: FaultyProxy = self.server.proxy  # type: ignore[attr-defined]
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = proxy.fault_of(self.command, self.path)
        if proxy.delay_s:
            time.sleep(proxy.delay_s)
        if fault == "refuse":
            self._answer(503, [], b"")
            return
        if fault == "hold":
            proxy.released.wait()
        status, headers, body = self._forward(sent)
        if fault == "drop-reply":
            self.close_connection = True
        elif fault == "error-after":
            self._answer(500, [], b"")
        else:
            self._answer(status, headers, body, fault)

    do_PUT = do_POST = do_DELETE = do_HEAD = do_GET

    def _forward(self, sent: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = HTTPConnection(self.server.target, timeout=30)  # type: ignore[attr-defined]
        try:
            headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
            connection.request(self.command, self.path, body=sent, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
            return reply.status, [(k, v) for k, v in reply.getheaders() if k.lower() not in _HOP], body
        finally:
            connection.close()

    def _answer(
        self, status: int, headers: list[tuple[str, str]], body: bytes, fault: Kind | None = None
    ) -> None:
        self.send_response(status)
        for key, value in headers:
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if fault == "flip" and body:
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault == "truncate":
            body = body[: len(body) // 2]
            self.close_connection = True
        if self.command != "HEAD":
            self.wfile.write(body)
