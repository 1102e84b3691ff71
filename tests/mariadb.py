"""A real MariaDB server for tests, on a private port of the loopback, run as a user of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.postgres import free_port

PASSWORD = "open-sesame"


@dataclass
class MariaDb:
    """A server. `url` is for `rf.SqlSink`; the database `rows` is empty at first, and tests share it."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def url(self) -> str:
        return f"mariadb://rayflow:{PASSWORD}@127.0.0.1:{self.port}/rows"

    def connect(self) -> Any:
        """Return a PyMySQL connection that commits by itself."""
        import pymysql

        return pymysql.connect(
            host="127.0.0.1",
            port=self.port,
            user="rayflow",
            password=PASSWORD,
            database="rows",
            autocommit=True,
        )

    def start(self, *options: str) -> None:
        """Start it; returns when it takes connections."""
        log = (self.folder / "log").open("ab")
        command = [
            str(_binary("mariadbd")),
            "--no-defaults",
            f"--datadir={self.folder}/data",
            f"--socket={self.folder}/socket",
            f"--pid-file={self.folder}/pid",
            f"--port={self.port}",
            "--bind-address=127.0.0.1",
            "--skip-name-resolve",
            "--innodb-buffer-pool-size=32M",
            "--innodb-log-file-size=16M",
            # What is written survives the process, not the machine: tests kill processes.
            "--innodb-flush-log-at-trx-commit=2",
            *options,
        ]
        user = ["--user=mysql"] if os.geteuid() == 0 else []
        self.process = subprocess.Popen([*command, *user], stdout=log, stderr=log, cwd="/")
        self._wait()

    def kill(self) -> None:
        """Kill it with SIGKILL; `start` brings it back, after its crash recovery."""
        assert self.process is not None, "it is not running"
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(30)
        self.process = None

    def as_root(self, *statements: str) -> None:
        """Run statements as the server's administrator."""
        import pymysql

        with pymysql.connect(unix_socket=f"{self.folder}/socket", user="root", autocommit=True) as root:
            with root.cursor() as cursor:
                for statement in statements:
                    cursor.execute(statement)

    def _wait(self) -> None:
        import pymysql

        for _ in range(600):
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(f"mariadbd ended: {(self.folder / 'log').read_text()[-2_000:]}")
            try:
                self.as_root("SELECT 1")
                return
            except pymysql.err.OperationalError:
                time.sleep(0.1)
        raise RuntimeError("mariadbd took no connections within 60 s")


@contextmanager
def running_mariadb() -> Iterator[MariaDb]:
    """Start a server, and end it. Skips where MariaDB is not installed."""
    if _binary("mariadbd") is None or _binary("mariadb-install-db") is None:
        pytest.skip("needs MariaDB: RUNLEVEL=1 apt-get install mariadb-server")
    pytest.importorskip("pymysql", reason="needs PyMySQL: pip install 'rayflow[sql]'")
    folder = Path(tempfile.mkdtemp(prefix="rayflow-mariadb-", dir="/tmp"))
    server = MariaDb(folder, free_port())
    try:
        (folder / "data").mkdir()
        user = []
        if os.geteuid() == 0:
            for path in (folder, folder / "data"):
                shutil.chown(path, "mysql", "mysql")
            user = ["--user=mysql"]
        made = subprocess.run(
            [
                str(_binary("mariadb-install-db")),
                "--no-defaults",
                f"--datadir={folder}/data",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                *user,
            ],
            capture_output=True,
            text=True,
            timeout=120,
        )
        if made.returncode:
            raise RuntimeError(f"mariadb-install-db failed: {made.stdout}{made.stderr}")
        server.start()
        server.as_root(
            "CREATE DATABASE `rows` CHARACTER SET utf8mb4",
            f"CREATE USER rayflow@'127.0.0.1' IDENTIFIED BY '{PASSWORD}'",
            "GRANT ALL ON `rows`.* TO rayflow@'127.0.0.1'",
        )
        yield server
    finally:
        if server.process is not None:
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def _binary(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
