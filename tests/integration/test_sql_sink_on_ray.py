"""`rf.SqlSink` on real Ray: whatever gets SIGKILL or SIGSTOP in the middle of a write, the table equals the input."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.client.processes import is_alive, started_at
from tests.chaos.victim import NOTHING_WRONG, SPLIT, Victim

pytestmark = [
    pytest.mark.ray,
    pytest.mark.chaos,  # out of CI for its length
    pytest.mark.usefixtures("local_ray"),
    pytest.mark.timeout(2_400),
]

TABLE = "loaded_on_ray"
# Shorter than the default: what a stopped process left open is waited for that long. Not shorter than a write may take
# on a machine with thirty runnable processes; nor are heartbeats.
BATCHING = rf.Batching(rows=300, linger="10ms", in_flight=2, timeout="15s")
PATIENT = {"heartbeat.interval": "500ms", "heartbeat.timeout": "8s"}


class Target:
    """The table in the server."""

    def __init__(self, server: Any) -> None:
        self.server = server
        self.is_postgres = server.url.startswith("postgresql")

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with self.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())

    def newest(self) -> list[int]:
        """The last row that is there of each split of the source, −1 where there is none."""
        found = self.ask(f"SELECT n >= {SPLIT}, max(n) FROM {TABLE} GROUP BY 1")
        return [{bool(split): int(n) for split, n in found}.get(split, -1) for split in (False, True)]

    def grows_beyond(self, newest: list[int]) -> bool:
        """Whether each split has come further: an attempt that reads again has passed what others wrote."""
        return all(now > before for now, before in zip(self.newest(), newest, strict=True))

    def rows(self) -> pa.Table:
        found = self.ask(f"SELECT n, k, number FROM {TABLE}")
        return pa.table({name: [row[i] for row in found] for i, name in enumerate(("n", "k", "number"))})

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes to the table meanwhile; who tries waits."""
        with self.server.connect() as connection, connection.cursor() as cursor:
            if self.is_postgres:
                cursor.execute("BEGIN")
                cursor.execute(f"LOCK TABLE {TABLE} IN SHARE MODE")
            else:
                cursor.execute(f"LOCK TABLES {TABLE} READ")
            yield

    def writing(self) -> int:
        """How many sessions of the sink wait for the lock: each in the middle of a transaction."""
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'rayflow' AND wait_event_type = 'Lock'"
            if self.is_postgres
            else "SELECT count(*) FROM information_schema.processlist WHERE state LIKE 'Waiting for%lock%'"
        )
        ((count,),) = self.ask(waiting)
        return int(count)


@pytest.fixture(params=["postgres", "mariadb"])
def target(request: pytest.FixtureRequest) -> Target:
    return Target(request.getfixturevalue(request.param))


def sink_pid(victim: Victim, index: int) -> int:
    """Process of that subtask of the sink."""
    found = [s for s in victim.job.describe()["subtasks"] if s["operator"] == "table" and s["index"] == index]
    assert len(found) == 1, victim.job.describe()
    return int(found[0]["pid"])


def goes_on(victim: Victim, target: Target) -> None:
    """Wait until more is written than has been by now."""
    newest = target.newest()
    victim.until(lambda: target.grows_beyond(newest))


def test_sinks_that_are_killed_or_stopped_and_a_database_that_restarts_leave_the_table_equal_to_the_input(
    tmp_path, target
):
    sink = rf.SqlSink(target.server.url, TABLE, keys="n", batching=BATCHING)
    victim = Victim(
        tmp_path, "loads", sink=lambda rows: rows.sink_to(sink).name("table").uid("table"), **PATIENT
    )
    try:
        victim.until(lambda: victim.settled(0) and target.grows_beyond([0, 0]))

        # In the middle of a transaction, which the server may or may not go on with.
        attempt = victim.attempt
        with target.locked():
            victim.until(lambda: target.writing() >= 2)
            doomed = sink_pid(victim, 0)
            began = started_at(doomed) or 0
            victim.kill(doomed)
            victim.until(lambda: not is_alive(doomed, began))
        victim.until(lambda: victim.settled(attempt))
        goes_on(victim, target)

        # The database, with more to come.
        target.server.kill()
        target.server.start()
        goes_on(victim, target)

        # Stopped within a transaction, and let go on when another attempt writes.
        with target.locked():
            victim.until(lambda: target.writing() >= 2)
            stopped = sink_pid(victim, 1)
            os.kill(stopped, signal.SIGSTOP)
        victim.stop_until_replaced(stopped)
        goes_on(victim, target)
        victim.end()
    finally:
        with suppress(Exception):
            victim.job.cancel()
        with suppress(Exception):
            (tmp_path / "events").write_text("\n".join(map(str, victim.job.events())))
    rows = target.rows()
    assert victim.verdict(rows) == NOTHING_WRONG
    assert rows.num_rows > 1_000
    assert len(victim.job.describe()["restarts"]) >= 2
