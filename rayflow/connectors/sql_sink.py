"""`SqlSink`: rows into a table of PostgreSQL, MariaDB or MySQL.

Delivery. By key (`mode="upsert"`) it is exactly-once in effect: every row is written at least once, in order by key,
and writing it again changes nothing; whatever dies and comes back, the table ends as the input says. Appended rows are
written at least once: those since the last checkpoint may be there twice after a failure.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.changelog import OP_COLUMN, comes, ops, visible, visible_schema
from rayflow.batch.tables import take
from rayflow.connectors.extras import needed
from rayflow.connectors.sql_servers import MySql, Postgres, Server, judged
from rayflow.connectors.sql_tables import Table
from rayflow.model.config import redact
from rayflow.model.errors import DataError, PlanError, StorageError
from rayflow.operators.batched_sink import BatchedSink, Batching
from rayflow.operators.contracts import SinkContext
from rayflow.protocol.batching_messages import Verdict

_DRIVERS = {
    "postgresql": ("postgresql+psycopg", Postgres, "psycopg"),
    "postgres": ("postgresql+psycopg", Postgres, "psycopg"),
    "mysql": ("mysql+pymysql", MySql, "pymysql"),
    "mariadb": ("mariadb+pymysql", MySql, "pymysql"),
}


class SqlSink(BatchedSink):
    """Writes rows to `table` (`name` or `schema.name`) of the database at `url`: `postgresql://user:password@host/db`,
    `mysql://…` or `mariadb://…`.

    `mode="upsert"` (the default where there are keys): a row replaces the one with equal `keys`, which for an upsert
    stream are the stream's own unless given; what the stream deletes is deleted. Key values cannot be null.
    `mode="append"`: every row is inserted, at least once: those since the last checkpoint may be there twice after a
    failure. Where that must not be and rows have no key, `rf.TransactionalSink` is the way.

    A missing table is made (`create=False`: an error) when the job starts, and one that is there checked: columns by
    name, and for an upsert a primary key or unique constraint over exactly the keys. For upserts a small table
    `rayflow_fences` is kept beside it: see `connectors.sql_servers`. Rows that the database refuses are `on_error`'s.
    Needs `pip install 'rayflow[sql]'`. Raises PlanError.
    """

    accepts_upserts = True

    def __init__(
        self,
        url: str,
        table: str,
        *,
        keys: str | Sequence[str] = (),
        mode: Literal["upsert", "append"] | None = None,
        create: bool = True,
        batching: Batching | None = None,
    ) -> None:
        scheme = url.partition(":")[0].partition("+")[0] if isinstance(url, str) else ""
        if scheme not in _DRIVERS:
            shown = redact({"": url})[""]
            raise PlanError(
                f"rf.SqlSink: expected a URL like postgresql://user:password@host/database, mysql://… or mariadb://…; "
                f"got {shown!r}"
            )
        drivername, self._server_class, driver = _DRIVERS[scheme]
        needed("rf.SqlSink", "sql", "sqlalchemy", driver)
        if not isinstance(table, str) or not table.strip("."):
            raise PlanError(f"rf.SqlSink: expected the name of a table; got {table!r}")
        self.keys = [keys] if isinstance(keys, str) else list(keys)
        self.mode = mode or ("upsert" if self.keys else None)
        if self.mode not in ("upsert", "append", None):
            raise PlanError(f"rf.SqlSink: mode={mode!r}: expected 'upsert' or 'append'")
        if self.mode == "append" and self.keys:
            raise PlanError(
                "rf.SqlSink: mode='append' inserts every row; leave keys= out, or use mode='upsert'"
            )
        self.url = f"{drivername}:{url.partition(':')[2]}"
        self.table = table
        self.create = create
        # Wide enough that a round trip costs little, small enough that a lock is not held for long.
        self.batching = batching or Batching(rows=10_000, bytes="8MiB", linger="200ms", in_flight=2)
        self._shown_url = redact({"": url})[""]
        self._schema: pa.Schema | None = None
        self._engine: Any = None
        self._connection: Any = None
        self._server: Server | None = None

    # --------------------------------------------------------------------------------------- plan

    @property
    def detail(self) -> str:  # type: ignore[override]
        """See `BatchedSink`: what becomes of rows, also after a failure."""
        if self.mode == "upsert":
            how = f"upsert into {self.table} by {', '.join(self.keys) or 'key'}, exactly-once in effect"
        else:
            how = f"append to {self.table}, at least once: after a failure rows may be there twice"
        return f"{how}; {self._shown_url}"

    def behind(self, upsert_key: Sequence[str] | None) -> SqlSink:
        """See `BatchedSink`."""
        made = copy.copy(self)
        if upsert_key is None:
            if self.mode is None:
                made.mode = "append"
            if made.mode == "upsert" and not self.keys:
                raise PlanError(
                    "rf.SqlSink: mode='upsert' needs keys=: columns by which rows replace each other"
                )
            return made
        if self.mode == "append":
            raise PlanError(
                "rf.SqlSink(mode='append'): an upsert stream, whose rows replace earlier ones of the same key, cannot "
                "be appended; use mode='upsert'"
            )
        if self.keys and set(self.keys) != set(upsert_key):
            raise PlanError(
                f"rf.SqlSink: the rows of this stream replace each other by {', '.join(upsert_key)}, not by keys="
                f"{self.keys!r}; leave keys= out"
            )
        made.mode, made.keys = "upsert", list(upsert_key)
        return made

    def validate(self, schema: pa.Schema | None) -> None:
        """See `Sink`."""
        if schema is None:
            raise PlanError(
                "rf.SqlSink: the columns of this stream are not known, since a Python function made it without saying "
                "what it returns; give that function returns= (a pyarrow.schema, or {'column': type})"
            )
        self._schema = visible_schema(schema)
        self._target().check_types()

    def start_job(self, ctx: SinkContext) -> None:
        """See `Sink`: make the table, or check it."""
        import sqlalchemy as sa

        try:
            self._connect()
            self._prepare_table()
        except sa.exc.DBAPIError as error:
            raise StorageError(
                f"table {self.table!r} at {self._shown_url} cannot be used: {str(error.orig or error).strip()}; check "
                "that the server runs, and the URL's host, port, database, user and password"
            ) from error
        finally:
            self.close()

    def finish_job(self, ctx: SinkContext) -> None:
        """See `Sink`: the job's fence goes, and with it whoever still writes."""
        if not self.keys:
            return
        try:
            self._connect().drop_fence(_fence_name(ctx), ctx.attempt)
        finally:
            self.close()

    # -------------------------------------------------------------------------------------- write

    def open(self, ctx: SinkContext) -> None:
        """See `BatchedSink`."""
        self._attempt = ctx.attempt
        self._fence = _fence_name(ctx)
        server = self._connect()
        self._prepare_table()
        if self.keys:
            server.move_fence(self._fence, self._attempt)

    def write_batch(self, batch: pa.RecordBatch) -> None:
        """See `BatchedSink`."""
        server = self._server
        assert server is not None, "write_batch follows open"
        rows, gone = self._last_of_each_key(batch) if self.keys else (visible(batch), None)
        try:
            if self.keys:
                server.hold_fence(self._fence, self._attempt)
            server.write(rows, self.keys, gone)
            server.raw.commit()
        except BaseException:
            # Where that fails as well, the connection is gone, and its transaction with it.
            self._roll_back(server)
            raise

    def classify(self, error: Exception) -> Verdict:
        """See `BatchedSink`."""
        return judged(getattr(error, "orig", None) or error) or super().classify(error)

    def close(self) -> None:
        """See `BatchedSink`."""
        connection, engine = self._connection, self._engine
        self._connection = self._engine = self._server = None
        if connection is not None:
            # Whatever it is at: nobody waits for it.
            connection.invalidate()
        if engine is not None:
            engine.dispose()

    # ------------------------------------------------------------------------------------ details

    def _target(self) -> Table:
        assert self._schema is not None, "validate comes first"
        return Table(self.table, self._schema, self.keys, self.url.partition("+")[0])

    def _connect(self) -> Server:
        import sqlalchemy as sa

        # Below the limit after which the attempt ends, so that a server that hangs is tried again.
        timeout_ms = max(1_000, self.batching.timeout_ms * 4 // 5)
        limits = self._server_class.connect_args(timeout_ms)
        self._engine = sa.create_engine(self.url, poolclass=sa.pool.NullPool, connect_args=limits)
        self._connection = self._engine.connect()
        raw = self._connection.connection.driver_connection
        quote = self._engine.dialect.identifier_preparer.quote
        self._server = self._server_class(raw, self.table, quote, timeout_ms)
        return self._server

    def _prepare_table(self) -> None:
        import sqlalchemy as sa

        self._target().make(self._connection, create=self.create)
        if self.keys:
            self._connection.execute(sa.text(Server.MAKE_FENCES))
        self._connection.commit()

    def _last_of_each_key(self, batch: pa.RecordBatch) -> tuple[pa.RecordBatch, pa.RecordBatch | None]:
        """Return the last row of each key that is there after this batch, and the keys of those that are gone."""
        keys = batch.select(self.keys)
        for name, column in zip(self.keys, keys.columns):
            if column.null_count:
                raise DataError(f"key column {name!r} is null, and rows replace each other by it")
        numbered = pa.Table.from_batches([keys.append_column("__row", pa.array(np.arange(batch.num_rows)))])
        newest = numbered.group_by(self.keys).aggregate([("__row", "max")])["__row_max"].to_numpy()
        last = take(batch, np.sort(newest))
        if OP_COLUMN not in batch.schema.names:
            return last, None
        there = comes(ops(last))
        rows = visible(last)
        return rows.filter(pa.array(there)), rows.filter(pc.invert(pa.array(there))).select(self.keys)

    @staticmethod
    def _roll_back(server: Server) -> None:
        try:
            server.raw.rollback()
        except Exception:
            server.raw.close()


def _fence_name(ctx: SinkContext) -> str:
    return f"{ctx.job_id}/{hashlib.sha256(ctx.uid.encode()).hexdigest()[:16]}"
