"""A real S3-compatible server for tests and chaos: moto's, in a process of its own on the loopback."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class S3Server:
    """A real S3-compatible server process on the loopback."""

    endpoint: str
    options: dict[str, str] = field(default_factory=dict)

    def new_bucket(self) -> str:
        """Create an empty bucket; return its name."""
        name = f"bucket-{secrets.token_hex(4)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10):
            return name


@contextmanager
def running_s3() -> Iterator[S3Server]:
    """Run moto's server on a free port; it is ended by its pid."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_for_port(port, process)
        endpoint = f"http://127.0.0.1:{port}"
        yield S3Server(
            endpoint,
            {
                "s3.endpoint": endpoint,
                "s3.access_key": "testing",
                "s3.secret_key": "testing",
                "s3.region": "us-east-1",
                "s3.allow_http": "true",
            },
        )
    finally:
        process.kill()
        process.wait(10)


def _wait_for_port(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(
                f"moto's server ended with code {process.returncode}; is moto[server] installed?"
            )
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"moto's server did not listen on port {port} within 60 s")
