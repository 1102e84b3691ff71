"""A real PostgreSQL server for tests, on a private port of the loopback, run as a user of its own."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_SETTINGS = "-c listen_addresses=127.0.0.1 -c max_prepared_transactions=40"


@dataclass(frozen=True)
class Postgres:
    """A running server. `url` is for libpq: the database is empty at first, and tests share it."""

    url: str
    folder: Path
    port: int
    durable: bool = False

    def connect(self) -> Any:
        """Return a psycopg connection that commits by itself."""
        import psycopg

        return psycopg.connect(self.url, autocommit=True)

    def start(self) -> None:
        """Start it again; returns when it takes connections."""
        self.control("start")

    def kill(self) -> None:
        """Have all its processes end at once, as in a crash; `start` brings it back, after its recovery."""
        self.control("stop", "-m", "immediate")

    def control(self, *command: str) -> None:
        """Run `pg_ctl`, such as `control("restart", "-m", "immediate")`."""
        fsync = "on" if self.durable else "off"
        options = f"-p {self.port} -k {self.folder} {_SETTINGS} -c fsync={fsync}"
        data, log = self.folder / "data", self.folder / "log"
        _run("pg_ctl", "-D", str(data), "-l", str(log), "-o", options, "-w", *command)


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Start a server, and end it. Skips where PostgreSQL is not installed. `durable`: what is committed survives the
    machine too, as by default in production; tests only kill processes."""
    if _binary("initdb") is None:
        pytest.skip("needs PostgreSQL: RUNLEVEL=1 apt-get install postgresql")
    folder = Path(tempfile.mkdtemp(prefix="rayflow-postgres-", dir="/tmp"))
    if os.geteuid() == 0:
        shutil.chown(folder, "postgres", "postgres")
    port = free_port()
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    server = Postgres(f"postgresql://{user}@127.0.0.1:{port}/postgres", folder, port, durable)
    try:
        _run("initdb", "-D", str(folder / "data"), "-A", "trust", "-N")
        server.control("start")
        yield server
    finally:
        if (folder / "data" / "postmaster.pid").exists():
            server.control("stop", "-m", "immediate")
        shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    """Return a port of the loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _run(program: str, *arguments: str) -> None:
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    # Not captured by a pipe, which the server would inherit and hold open.
    with tempfile.TemporaryFile() as output:
        command = [*as_user, str(_binary(program)), *arguments]
        code = subprocess.run(command, stdout=output, stderr=output, cwd="/", timeout=120).returncode
        if code:
            output.seek(0)
            raise RuntimeError(f"{' '.join(command)} failed: {output.read().decode()}")


def _binary(program: str) -> str | None:
    installed = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"))
    return str(installed[-1]) if installed else shutil.which(program)
