"""Two-phase commit into real databases, written by `rf.TransactionalSink`s as users would write them."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.runtime.local import LocalJob

ROWS = 2_000


class SqliteSink(rf.TransactionalSink):
    """Rows wait in a staging table until a marker says that their transaction is committed."""

    def __init__(self, path: Path, lose_answers_of: int = 0) -> None:
        self.path, self.lose_answers_of = str(path), lose_answers_of

    def connect(self, ctx: rf.SinkContext) -> None:
        self.db = sqlite3.connect(self.path, timeout=60, isolation_level=None, check_same_thread=False)
        for table in (
            "staged (tx text, n int)",
            "committed (tx text primary key)",
            "rows (n int)",
            "lost (n int)",
        ):
            self.db.execute(f"create table if not exists {table}")

    def begin(self, transaction: str) -> None:
        """Staged rows name their transaction, which is all there is to it."""

    def write_rows(self, transaction: str, batch: pa.RecordBatch) -> None:
        rows = [(transaction, n) for n in batch.column("n").to_pylist()]
        with self.db:
            self.db.execute("begin immediate")
            self.db.executemany("insert into staged values (?, ?)", rows)

    def pre_commit(self, transaction: str) -> None:
        """Whatever is staged is durable."""

    def commit_transaction(self, transaction: rf.Transaction) -> None:
        with self.db:
            self.db.execute("begin immediate")
            if self.outcome(transaction) == "pending":
                self.db.execute("insert into rows select n from staged where tx = ?", (transaction.id,))
                self.db.execute("delete from staged where tx = ?", (transaction.id,))
                self.db.execute("insert into committed values (?)", (transaction.id,))
        (lost,) = self.db.execute("select count(*) from lost").fetchone()
        if lost < self.lose_answers_of:
            self.db.execute("insert into lost values (1)")
            raise TimeoutError("no answer")

    def abort_transaction(self, transaction: rf.Transaction) -> None:
        self.db.execute("delete from staged where tx = ?", (transaction.id,))

    def outcome(self, transaction: rf.Transaction) -> Any:
        for table, outcome in (("committed", "committed"), ("staged", "pending")):
            if self.db.execute(f"select 1 from {table} where tx = ? limit 1", (transaction.id,)).fetchone():
                return outcome
        return "unknown"

    def list_transactions(self, prefix: str) -> Iterable[str]:
        return [tx for (tx,) in self.db.execute("select distinct tx from staged") if tx.startswith(prefix)]

    def disconnect(self) -> None:
        self.db.close()


class PostgresSink(rf.TransactionalSink):
    """PREPARE TRANSACTION at the barrier; a row in `rayflow_committed`, of the same transaction, tells later that it
    was committed. A second connection commits while the first writes on."""

    commit_in_background = True

    def __init__(self, url: str, table: str) -> None:
        self.url, self.table = url, table

    def connect(self, ctx: rf.SinkContext) -> None:
        import psycopg

        self.data = psycopg.connect(self.url, autocommit=True)
        self.control = psycopg.connect(self.url, autocommit=True)

    def begin(self, transaction: str) -> None:
        self.data.execute("BEGIN")

    def write_rows(self, transaction: str, batch: pa.RecordBatch) -> None:
        with self.data.cursor() as cursor, cursor.copy(f"COPY {self.table} FROM STDIN") as copy:
            for row in zip(*(column.to_pylist() for column in batch.columns)):
                copy.write_row(row)

    def pre_commit(self, transaction: str) -> None:
        self.data.execute("INSERT INTO rayflow_committed VALUES (%s)", (transaction,))
        self.data.execute(f"PREPARE TRANSACTION '{transaction}'")

    def commit_transaction(self, transaction: rf.Transaction) -> None:
        from psycopg.errors import UndefinedObject

        try:
            self.control.execute(f"COMMIT PREPARED '{transaction.id}'")
        except UndefinedObject:
            if self.outcome(transaction) != "committed":
                raise

    def abort_transaction(self, transaction: rf.Transaction) -> None:
        if list(self.list_transactions(transaction.id)):
            self.control.execute(f"ROLLBACK PREPARED '{transaction.id}'")

    def outcome(self, transaction: rf.Transaction) -> Any:
        found = self.control.execute("SELECT 1 FROM rayflow_committed WHERE tx = %s", (transaction.id,))
        if found.fetchone():
            return "committed"
        return "pending" if list(self.list_transactions(transaction.id)) else "unknown"

    def list_transactions(self, prefix: str) -> Iterable[str]:
        found = self.control.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() AND starts_with(gid, %s)",
            (prefix,),
        )
        return [gid for (gid,) in found.fetchall()]

    def disconnect(self) -> None:
        for connection in (getattr(self, "data", None), getattr(self, "control", None)):
            if connection is not None:
                connection.close()


def job(parallelism: int, sink: rf.Sink) -> rf.StreamEnvironment:
    env = rf.StreamEnvironment(
        parallelism=parallelism,
        config={
            "batch.rows": 20,
            "restart.delay": "1ms",
            "restart.max_attempts": 50,
            "checkpoint.interval": "30ms",
        },
    )
    rows = env.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), ROWS, rate_limit=2_000
    )
    rows.rebalance().map(lambda n: n, returns={"n": int}).sink_to(sink)
    return env


def crashes(lab: Any, times: int, seed: int) -> tuple[list[int], Any]:
    """Crash a random subtask each time that another checkpoint has completed."""
    rng, crashed = random.Random(seed), list[int]()

    def look(running: LocalJob) -> None:
        done = lab.completed(running)
        if len(crashed) < times and done > (crashed[-1] if crashed else 0) and lab.crash(running, rng):
            crashed.append(done)

    return crashed, lab.watch(look)


@pytest.mark.parametrize("seed", [1, 2])
def test_sqlite_has_every_row_once_over_crashes(lab: Any, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "out.db"
    crashed, watcher = crashes(lab, 3, seed)
    result = lab.finish(job(2, SqliteSink(path)), on_start=watcher)
    assert len(crashed) == 3
    assert len(result.describe["restarts"]) >= 3
    check_sqlite(path)


def check_sqlite(path: Path) -> None:
    with sqlite3.connect(path) as db:
        assert [n for (n,) in db.execute("select n from rows order by n")] == list(range(ROWS))
        assert db.execute("select count(*) from staged").fetchone() == (0,)


def test_answers_that_get_lost_cost_no_restart_where_the_outcome_can_be_read(
    lab: Any, tmp_path: Path
) -> None:
    result = lab.finish(job(2, SqliteSink(tmp_path / "out.db", lose_answers_of=3)))
    assert result.describe["restarts"] == []
    check_sqlite(tmp_path / "out.db")


class Forgetful(SqliteSink):
    """Cannot say what became of a transaction."""

    def outcome(self, transaction: rf.Transaction) -> Any:
        return super().outcome(transaction) if self.db.in_transaction else "unknown"


def test_where_the_outcome_cannot_be_read_the_next_attempt_commits_again(lab: Any, tmp_path: Path) -> None:
    result = lab.finish(job(1, Forgetful(tmp_path / "out.db", lose_answers_of=1)))
    assert "TimeoutError: no answer" in result.describe["restarts"][0]["cause"]
    check_sqlite(tmp_path / "out.db")


def test_a_job_that_is_cancelled_leaves_no_transaction_that_nobody_can_commit(
    lab: Any, tmp_path: Path
) -> None:
    path = tmp_path / "out.db"
    env = rf.StreamEnvironment(config={"checkpoint.interval": "30ms", "batch.rows": 20})
    rows = env.generate(
        lambda start, count: pa.record_batch({"n": range(start, start + count)}), rate_limit=2_000
    )
    rows.sink_to(SqliteSink(path))

    def look(running: LocalJob) -> None:
        if lab.completed(running) >= 2:
            running.master.cancel()

    result = lab.run(env, on_start=lab.watch(look))
    assert result.state.value == "CANCELLED"
    with sqlite3.connect(path) as db:
        left = {tx for (tx,) in db.execute("select distinct tx from staged")}
        rows_there = [n for (n,) in db.execute("select n from rows")]
    newest = result.describe["checkpoints"]["latest"]
    assert all(int(tx.rsplit("-", 1)[1]) <= newest for tx in left)
    assert len(set(rows_there)) == len(rows_there) > 0


class Away(SqliteSink):
    """Takes everything but commits while the file `away` is there."""

    def commit_transaction(self, transaction: rf.Transaction) -> None:
        if Path(self.path).with_name("away").exists():
            raise ConnectionError("no commits today")
        super().commit_transaction(transaction)


def test_a_job_that_fails_tells_of_what_it_left_prepared_and_its_successor_commits_that(
    lab: Any, tmp_path: Path
) -> None:
    path, away = tmp_path / "out.db", tmp_path / "away"
    away.touch()
    result = lab.run(
        job(2, Away(path)), restart__strategy="none", checkpoint__storage=str(tmp_path / "checkpoints")
    )
    assert result.state.value == "FAILED"
    with sqlite3.connect(path) as db:
        left = {tx for (tx,) in db.execute("select distinct tx from staged")}
    (event,) = [e for e in result.events if e["type"] == "sink_left_pending"]
    assert left
    assert f"{len(left)} prepared and not committed" in event["message"]
    assert min(left) in event["message"]
    url = re.search(r"--from (\S+)\)", event["message"])
    assert url is not None, event["message"]
    away.unlink()
    lab.finish(job(2, Away(path)), restore_from=url[1])
    check_sqlite(path)


@pytest.mark.parametrize("seed", [1, 2])
def test_postgres_has_every_row_once_over_crashes(lab: Any, postgres: Any, seed: int) -> None:
    psycopg = pytest.importorskip("psycopg")
    table = f"out_{seed}"
    with psycopg.connect(postgres.url, autocommit=True) as db:
        db.execute("CREATE TABLE IF NOT EXISTS rayflow_committed (tx text PRIMARY KEY)")
        db.execute(f"CREATE TABLE {table} (n bigint)")
        crashed, watcher = crashes(lab, 3, seed)
        lab.finish(job(2, PostgresSink(postgres.url, table)), on_start=watcher)
        assert len(crashed) == 3
        assert [n for (n,) in db.execute(f"SELECT n FROM {table} ORDER BY n").fetchall()] == list(range(ROWS))
        assert db.execute("SELECT gid FROM pg_prepared_xacts").fetchall() == []


def test_a_restart_of_the_database_in_mid_run_loses_and_doubles_no_row(lab: Any, postgres: Any) -> None:
    pytest.importorskip("psycopg")
    with postgres.connect() as db:
        db.execute("CREATE TABLE IF NOT EXISTS rayflow_committed (tx text PRIMARY KEY)")
        db.execute("CREATE TABLE over_restarts (n bigint)")
    restarted: list[int] = []

    def look(running: LocalJob) -> None:
        done = lab.completed(running)
        # Some transactions are prepared then, others being written, and perhaps one being committed.
        if len(restarted) < 2 and done >= 2 + 4 * len(restarted):
            postgres.kill()
            postgres.start()
            restarted.append(done)

    result = lab.finish(job(2, PostgresSink(postgres.url, "over_restarts")), on_start=lab.watch(look))
    assert len(restarted) == 2
    assert result.describe["restarts"]
    with postgres.connect() as db:
        found = db.execute("SELECT n FROM over_restarts ORDER BY n").fetchall()
        assert [n for (n,) in found] == list(range(ROWS))
        assert db.execute("SELECT gid FROM pg_prepared_xacts").fetchall() == []
