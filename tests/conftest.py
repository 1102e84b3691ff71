"""What every test folder may use, and what keeps tests to themselves: no user's data, cluster or credentials."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import settings

from tests.postgres import Postgres, running_postgres

# A busy machine is no failure: examples have no deadline. A failing one prints how to reproduce it.
settings.register_profile("rayflow", deadline=None, print_blob=True)
settings.load_profile("rayflow")


@pytest.fixture(scope="session", autouse=True)
def _hermetic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder for this run; no cluster, credentials or settings of whoever runs the tests."""
    foreign = ("RAY_ADDRESS", "RAYFLOW_DEBUG", *(name for name in os.environ if name.startswith("AWS_")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAYFLOW_HOME", str(tmp_path_factory.mktemp("home")))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        for name in foreign:
            patch.delenv(name, raising=False)
        yield


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


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """moto's server, started once per run on a free port and ended by its pid."""
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


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL server, started once per run; skips where it is not installed."""
    with running_postgres() as server:
        yield server


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
