"""One connection to a database, and how rows get into a table by it: in bulk, a transaction per batch.

Theory of operation
-------------------
PostgreSQL gets rows by COPY, the fastest way in: straight into the table, or, to replace rows by key, into a temporary
table from which one `INSERT … ON CONFLICT DO UPDATE` takes them (few rows come with it). MariaDB and MySQL get
multi-row `INSERT`s, whose text Arrow's kernels make (`sql_text`); by key, with `ON DUPLICATE KEY UPDATE`. Rows go in by
the order of their keys, so that writers of other jobs lock them in the same order.

A batch is one transaction, committed by a statement of its own: what a client had under way when it died is rolled
back. A *fence* row says which attempt of the job may write. Each transaction holds it by a shared lock while it writes,
and a new attempt moves it on, which waits for these to end: after that no process of an older attempt, however late it
wakes up, can put an old row over a new one. So that it waits for no longer than a write may last, the server itself
ends the transaction of a client that has died or stands still: every connection asks it to.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayflow.batch.tables import slice_rows
from rayflow.connectors.sql_text import copy_lines, mysql_values, texts
from rayflow.model.errors import DataError, RayflowError
from rayflow.protocol.batching_messages import Verdict

FENCES = "rayflow_fences"
"""The table of fences: who (job and sink), and the attempt that may write."""


_FEW_VALUES = 1_000


class AttemptIsOver(RayflowError):
    """Another attempt of the job has begun to write: this one is a zombie."""


class Server(ABC):
    """A connection. `raw` is the driver's, whose statements begin transactions; `quote` quotes names; `timeout_ms` is
    what `connect_args` was given."""

    def __init__(self, raw: Any, table: str, quote: Any, timeout_ms: int) -> None:
        self.raw = raw
        self.quote = quote
        self.table = ".".join(quote(part) for part in table.rpartition(".") if part not in ("", "."))

    def write(self, rows: pa.RecordBatch, keys: Sequence[str], gone: pa.RecordBatch | None) -> None:
        """Put rows into the table, replacing those of equal `keys` (none: every row is new), and take out those whose
        keys are in `gone`. Part of a transaction."""
        if rows.num_rows:
            self.insert(rows, keys)
        if gone is not None and gone.num_rows:
            self.delete(gone)

    @staticmethod
    @abstractmethod
    def connect_args(timeout_ms: int) -> dict[str, Any]:
        """Return what the driver takes so that no wait for the server lasts longer."""

    @abstractmethod
    def insert(self, rows: pa.RecordBatch, keys: Sequence[str]) -> None:
        """See `write`."""

    @abstractmethod
    def delete(self, keys: pa.RecordBatch) -> None:
        """Take out the rows with these keys, the columns of `keys`."""

    @abstractmethod
    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a statement; return its rows."""

    # ---------------------------------------------------------------------------------- the fence

    MAKE_FENCES = (
        f"CREATE TABLE IF NOT EXISTS {FENCES} (sink VARCHAR(190) PRIMARY KEY, attempt BIGINT NOT NULL)"
    )
    MOVE_FENCE: str
    SHARED: str

    def move_fence(self, sink: str, attempt: int) -> None:
        """Let this attempt write, and no older one. Waits for transactions under way. Raises AttemptIsOver."""
        if self._fence(sink, "") != attempt:
            self.query(self.MOVE_FENCE, sink, attempt)
            self.raw.commit()
            self.hold_fence(sink, attempt)
        self.raw.commit()

    def hold_fence(self, sink: str, attempt: int) -> None:
        """Hold it, to the end of the transaction. Raises AttemptIsOver where it was moved."""
        newest = self._fence(sink, self.SHARED)
        if newest != attempt:
            whose = "the job is over" if newest is None else f"attempt {newest} writes"
            raise AttemptIsOver(
                f"attempt {attempt} of the job may not write to {self.table} any more: {whose}"
            )

    def drop_fence(self, sink: str, attempt: int) -> None:
        """Let nobody write, unless a later attempt does."""
        self.query(f"DELETE FROM {FENCES} WHERE sink = %s AND attempt <= %s", sink, attempt)
        self.raw.commit()

    def _fence(self, sink: str, lock: str) -> int | None:
        found = self.query(f"SELECT attempt FROM {FENCES} WHERE sink = %s {lock}", sink)
        return int(found[0][0]) if found else None

    def _names(self, columns: Sequence[str]) -> str:
        return ", ".join(map(self.quote, columns))


class Postgres(Server):
    """PostgreSQL by psycopg."""

    MOVE_FENCE = (
        f"INSERT INTO {FENCES} VALUES (%s, %s) ON CONFLICT (sink) DO UPDATE "
        f"SET attempt = GREATEST({FENCES}.attempt, EXCLUDED.attempt)"
    )
    SHARED = "FOR SHARE"

    def __init__(self, raw: Any, table: str, quote: Any, timeout_ms: int) -> None:
        super().__init__(raw, table, quote, timeout_ms)
        self._staging: set[str] = set()
        from psycopg import errors

        try:
            # Within a statement too, say one that waits for a lock, the server sees that its client has died.
            raw.execute("SET client_connection_check_interval = '1s'")
            raw.commit()
        except (errors.UndefinedObject, errors.InvalidParameterValue):
            # Not before PostgreSQL 14, nor on every system: there the statement's time limit has to do.
            raw.rollback()

    @staticmethod
    def connect_args(timeout_ms: int) -> dict[str, Any]:
        """See `Server`."""
        limits = f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout={timeout_ms}"
        return {
            "connect_timeout": max(2, timeout_ms // 1_000),
            "tcp_user_timeout": timeout_ms,
            "options": limits,
            "application_name": "rayflow",
        }

    def insert(self, rows: pa.RecordBatch, keys: Sequence[str]) -> None:
        """See `Server`."""
        if not keys:
            self._copy(self.table, rows)
            return
        names, by = self._names(rows.schema.names), self._names(keys)
        others = [name for name in rows.schema.names if name not in keys]
        changes = ", ".join(f"{self.quote(name)} = EXCLUDED.{self.quote(name)}" for name in others)
        insert = f"INSERT INTO {self.table} ({names})"
        then = f"ON CONFLICT ({by}) DO {f'UPDATE SET {changes}' if others else 'NOTHING'}"
        if rows.num_rows * rows.num_columns <= _FEW_VALUES:
            self._insert_few(insert, rows.sort_by([(key, "ascending") for key in keys]), then)
        else:
            staging = self._stage("rayflow_rows", rows, rows.schema.names)
            self.raw.execute(f"{insert} SELECT {names} FROM {staging} ORDER BY {by} {then}")

    def delete(self, keys: pa.RecordBatch) -> None:
        """See `Server`."""
        staging = self._stage("rayflow_keys", keys, keys.schema.names)
        equal = " AND ".join(
            f"{self.table}.{self.quote(name)} = {staging}.{self.quote(name)}" for name in keys.schema.names
        )
        self.raw.execute(f"DELETE FROM {self.table} USING {staging} WHERE {equal}")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """See `Server`."""
        cursor = self.raw.execute(sql, values)
        return [] if cursor.description is None else list(cursor.fetchall())

    def _insert_few(self, insert: str, rows: pa.RecordBatch, then: str) -> None:
        """Run `insert VALUES rows then`: for few rows a temporary table costs more than it saves."""
        columns = [texts(column, zones=True).to_pylist() for column in rows.columns]
        row = f"({', '.join(['%s'] * rows.num_columns)})"
        values = ", ".join([row] * rows.num_rows)
        # Names may have the character that marks a place.
        before, after = insert.replace("%", "%%"), then.replace("%", "%%")
        self.raw.execute(
            f"{before} VALUES {values} {after}", [value for row in zip(*columns) for value in row]
        )

    def _stage(self, staging: str, rows: pa.RecordBatch, columns: Sequence[str]) -> str:
        """Put rows into a temporary table like the table, which is empty in every transaction; return its name."""
        if staging not in self._staging:
            # Kept by the session once its transaction is committed.
            self.raw.execute(
                f"CREATE TEMPORARY TABLE IF NOT EXISTS {staging} ON COMMIT DELETE ROWS AS "
                f"SELECT {self._names(columns)} FROM {self.table} WITH NO DATA"
            )
        self._copy(staging, rows)
        return staging

    def _copy(self, table: str, rows: pa.RecordBatch) -> None:
        with self.raw.cursor() as cursor:
            with cursor.copy(f"COPY {table} ({self._names(rows.schema.names)}) FROM STDIN") as copy:
                copy.write(copy_lines(rows))


class MySql(Server):
    """MariaDB or MySQL by PyMySQL."""

    MOVE_FENCE = (
        f"INSERT INTO {FENCES} VALUES (%s, %s) ON DUPLICATE KEY "
        "UPDATE attempt = GREATEST(attempt, VALUES(attempt))"
    )
    SHARED = "LOCK IN SHARE MODE"
    # Bad values are errors, backslashes escapes; the rest is what both have by default.
    _MODE = "STRICT_ALL_TABLES,NO_ZERO_IN_DATE,NO_ZERO_DATE,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"
    _SPARE_BYTES = 1 << 16

    def __init__(self, raw: Any, table: str, quote: Any, timeout_ms: int) -> None:
        super().__init__(raw, table, quote, timeout_ms)
        seconds = max(1, timeout_ms // 1_000)
        # Waits for locks end before the driver takes the connection for lost, and leaves the server waiting.
        self.query(f"SET SESSION innodb_lock_wait_timeout = {seconds}, lock_wait_timeout = {seconds}")
        # MySQL has no limit for idle transactions, only one for connections: what finds its own closed makes another.
        idle = "idle_transaction_timeout"
        known = self.query("SHOW SESSION VARIABLES LIKE %s", idle)
        self.query(f"SET SESSION {idle if known else 'wait_timeout'} = {seconds}")
        self.query(f"SET SESSION sql_mode = '{self._MODE}', time_zone = '+00:00'")
        self.query("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        ((limit,),) = self.query("SELECT @@max_allowed_packet")
        self._most_bytes = max(1_024, int(limit) - self._SPARE_BYTES)

    @staticmethod
    def connect_args(timeout_ms: int) -> dict[str, Any]:
        """See `Server`."""
        seconds = max(1, timeout_ms // 1_000)
        limits = {"connect_timeout": seconds, "read_timeout": seconds, "write_timeout": seconds}
        return {**limits, "charset": "utf8mb4", "autocommit": False}

    def insert(self, rows: pa.RecordBatch, keys: Sequence[str]) -> None:
        """See `Server`."""
        if keys:
            rows = rows.sort_by([(key, "ascending") for key in keys])
        names = self._names(rows.schema.names)
        begin = f"INSERT INTO {self.table} ({names}) VALUES "
        end = ""
        if keys:
            # Where all columns are keys, one is set to itself: nothing.
            others = [name for name in rows.schema.names if name not in keys] or list(keys)[:1]
            end = " ON DUPLICATE KEY UPDATE " + ", ".join(
                f"{self.quote(name)} = VALUES({self.quote(name)})" for name in others
            )
        self._in_pieces(begin, rows, end)

    def delete(self, keys: pa.RecordBatch) -> None:
        """See `Server`."""
        self._in_pieces(f"DELETE FROM {self.table} WHERE ({self._names(keys.schema.names)}) IN (", keys, ")")

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """See `Server`."""
        with self.raw.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall())

    def _in_pieces(self, begin: str, rows: pa.RecordBatch, end: str) -> None:
        """Run `begin rows end`, in as many statements as the server's limit on their length asks for."""
        values = mysql_values(rows)
        if len(values) <= self._most_bytes:
            self.raw.query(b"".join((begin.encode(), values, end.encode())))
        elif rows.num_rows == 1:
            raise DataError(
                f"a row of {len(values)} bytes is more than the server takes (max_allowed_packet is "
                f"{self._most_bytes + self._SPARE_BYTES})"
            )
        else:
            for half in slice_rows(rows, max_rows=-(-rows.num_rows // 2)):
                self._in_pieces(begin, half, end)


# ------------------------------------------------------------------------------------------- errors

_REFUSED_LOGIN = re.compile(
    r"password authentication failed|no pg_hba\.conf entry|no password supplied|(role|database) .* does not exist"
    r"|authentication failed|permission denied"
)
# Connections, shutdowns and crashes, serialization and deadlocks, resources, locks, time limits, the system's own I/O.
_PG_PASSING = re.compile(r"08|57P0[1-5]|57014|40|53|55P03|25P0[34]|58")
_PG_ROWS = re.compile(r"22|23|44")
# Disk full, lock waits, deadlocks, connections, shutdowns, interrupted queries, time limits.
_MYSQL_PASSING = frozenset(
    (0, 3, 28, 1021, 1028, 1040, 1053, 1114, 1152, 1158, 1159, 1160, 1161, 1203, 1205, 1213, 1317, 1927, 1969, 2002,
     2003, 2006, 2013, 2014, 2055, 3024, 4031)
)  # fmt: skip
_MYSQL_ROWS = frozenset(
    (1048, 1062, 1136, 1153, 1216, 1217, 1264, 1265, 1292, 1364, 1366, 1367, 1406, 1411, 1416, 1451, 1452, 1690, 1748,
     3140, 3819, 4025)
)  # fmt: skip


def judged(error: Exception) -> Verdict | None:
    """Return what a driver's error is about, None where it is none."""
    import pymysql
    from psycopg import Error as PostgresError

    if isinstance(error, PostgresError):
        return _judged_postgres(error)
    if isinstance(error, pymysql.MySQLError):
        code = error.args[0] if error.args and isinstance(error.args[0], int) else -1
        if code in _MYSQL_PASSING:
            return "retry"
        rows = isinstance(error, pymysql.err.DataError | pymysql.err.IntegrityError) or code in _MYSQL_ROWS
        return "refused" if rows else "fatal"
    return None


def _judged_postgres(error: Any) -> Verdict:
    from psycopg import DataError as DriverRefuses
    from psycopg import OperationalError

    if error.sqlstate is None:
        if isinstance(error, DriverRefuses):
            return "refused"
        # libpq has no code for what goes wrong with a connection.
        if not isinstance(error, OperationalError) or _REFUSED_LOGIN.search(str(error)):
            return "fatal"
        return "retry"
    if _PG_PASSING.match(error.sqlstate):
        return "retry"
    return "refused" if _PG_ROWS.match(error.sqlstate) else "fatal"
