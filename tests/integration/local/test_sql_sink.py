"""`rf.SqlSink` into real PostgreSQL and MariaDB servers."""

from __future__ import annotations

import copy
import datetime as dt
import decimal
import random
import runpy
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.connectors import sql_servers
from rayflow.connectors.sql_servers import FENCES
from rayflow.runtime.local import LocalJob

KEYS = 200


class Database:
    """A server, and a fresh table of it."""

    def __init__(self, server: Any, table: str) -> None:
        self.server, self.url, self.table = server, server.url, table
        self.is_postgres = self.url.startswith("postgresql")

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        with self.server.connect() as connection, connection.cursor() as cursor:
            cursor.execute(sql)
            return [] if cursor.description is None else list(cursor.fetchall())

    def rows(self, columns: str = "*", order: str = "1") -> list[tuple[Any, ...]]:
        return self.ask(f"SELECT {columns} FROM {self.table} ORDER BY {order}")

    def fences(self, job_id: str = "") -> list[tuple[Any, ...]]:
        """Those of a job, or of all: a job that got SIGKILL, or whose database was away at its end, leaves its own."""
        return [row for row in self.ask(f"SELECT * FROM {FENCES}") if row[0].startswith(job_id)]


@pytest.fixture(params=["postgres", "mariadb"])
def database(request: pytest.FixtureRequest) -> Database:
    server = request.getfixturevalue(request.param)
    name = "".join(c if c.isalnum() else "_" for c in request.node.originalname.lower())[5:45]
    return Database(server, f"{name}_{random.randrange(1 << 30)}")


def environment(**config: Any) -> rf.StreamEnvironment:
    settings = {"restart.delay": "1ms", "restart.max_attempts": 50, "checkpoint.interval": "50ms"}
    return rf.StreamEnvironment(config={**settings, **config})


def load(lab: Any, rows: pa.Table, sink: rf.SqlSink, **config: Any) -> Any:
    env = environment(**config)
    env.from_arrow(rows).sink_to(sink)
    return lab.finish(env)


# ------------------------------------------------------------------------------------------- values


def every_kind() -> pa.Table:
    """A column of each type, with what is hard to write down: quotes, separators, nulls, extremes."""
    hard = [
        "tab\tnew\nline\r\\.\n\\N",
        "quote ' \" ` \\' % %s",
        "",
        "\U0001f986 naïve Ω",
        "x" * 200_000,
        None,
    ]
    at = dt.datetime(2024, 2, 29, 23, 59, 59, 999_999)
    winter = dt.datetime(2024, 12, 1, 12, tzinfo=dt.timezone.utc)
    n = len(hard)

    def column(values: list[Any], kind: pa.DataType) -> pa.Array:
        return pa.array((values + [None] * n)[:n], kind)

    return pa.table(
        {
            "id": pa.array(range(n), pa.int32()),
            "s": column(hard, pa.string()),
            "big": column([2**63 - 1, -(2**63), 0], pa.int64()),
            "u64": column([2**64 - 1, 0], pa.uint64()),
            "small": column([-128, 127], pa.int8()),
            "d": column([0.1, 1e300, -5e-324], pa.float64()),
            "f": column([0.5, -2.25], pa.float32()),
            "b": column([True, False], pa.bool_()),
            "money": column(
                [decimal.Decimal("12345678901234567890.1234"), decimal.Decimal("-0.0001")],
                pa.decimal128(30, 4),
            ),
            "day": column([dt.date(1999, 12, 31)], pa.date32()),
            "clock": column([dt.time(23, 59, 59, 999_999)], pa.time64("us")),
            "at": column([at, dt.datetime(1970, 1, 1)], pa.timestamp("us")),
            "at_ms": column([at.replace(microsecond=1_000)], pa.timestamp("ms")),
            "zoned": column([winter], pa.timestamp("us", "Europe/Berlin")),
            "raw": column([b"\x00\xff'\\", b""], pa.binary()),
            "list": column([[1, None], []], pa.list_(pa.int64())),
            "pair": column([{"x": "it's", "y": 1.5}], pa.struct([("x", pa.string()), ("y", pa.float64())])),
            "select": column(["a keyword"], pa.string()),
            "kind": pa.array(["red", "blue", "red", None, "red", "red"]).dictionary_encode(),
        }
    )


def as_read(database: Database, name: str, value: Any) -> Any:
    """Return a value as the driver reads it back."""
    if value is None:
        return None
    if name in ("list", "pair") and not database.is_postgres:
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    if name == "zoned" and not database.is_postgres:
        return value.astimezone(dt.timezone.utc).replace(tzinfo=None)
    if name == "clock" and not database.is_postgres:
        return dt.datetime.combine(dt.date.min, value) - dt.datetime.min
    if name == "b" and not database.is_postgres:
        return int(value)
    return value


@pytest.mark.parametrize("mode", ["append", "upsert", "few"])
def test_values_of_every_type_come_back_as_they_were(
    lab: Any, database: Database, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = every_kind()
    keys = [] if mode == "append" else ["id"]
    monkeypatch.setattr(sql_servers, "_FEW_VALUES", 1_000 if mode == "few" else 0)
    load(lab, rows, rf.SqlSink(database.url, database.table, keys=keys))
    found = database.rows()
    for index, name in enumerate(rows.column_names):
        want = [as_read(database, name, value) for value in rows[name].to_pylist()]
        assert [row[index] for row in found] == want, name


def test_floats_that_are_no_numbers(lab: Any, database: Database) -> None:
    rows = pa.table({"id": [1, 2, 3], "x": [float("nan"), float("inf"), float("-inf")]})
    env = environment()
    stage = env.from_arrow(rows).sink_to(rf.SqlSink(database.url, database.table, keys="id"))
    refused = stage.on_error(rf.SideOutput("bad")).side_output("bad").execute_and_collect(local=True)
    if database.is_postgres:
        assert refused.num_rows == 0
        assert [str(x) for _, x in database.rows()] == ["nan", "inf", "-inf"]
    else:
        # It has none of them, and says so of each.
        assert sorted(refused["id"].to_pylist()) == [1, 2, 3]


# -------------------------------------------------------------------------------------- exactly once


def counts(env: rf.StreamEnvironment, rows: int, rate: float | None = None) -> Any:
    """A changelog: how many rows each key has had, and the last of them."""

    def numbers(start: int, count: int) -> pa.RecordBatch:
        return pa.record_batch(
            {
                "k": pa.array([n % KEYS for n in range(start, start + count)], pa.int64()),
                "n": pa.array(range(start, start + count), pa.int64()),
            }
        )

    stream = env.generate(numbers, rows, rate_limit=rate)
    return stream.key_by("k").aggregate(n=col("n").max(), rows=rf.count())


def expected(rows: int) -> list[tuple[int, int, int]]:
    return [(k, rows - KEYS + k, rows // KEYS) for k in range(KEYS)]


def test_kills_and_restarts_of_the_database_leave_the_table_equal_to_the_input(
    lab: Any, database: Database
) -> None:
    rows = 8_000
    env = environment(**{"batch.rows": 50})
    env.parallelism = 2
    batching = rf.Batching(rows=300, linger="10ms", in_flight=2)
    counts(env, rows, rate=4_000).sink_to(rf.SqlSink(database.url, database.table, batching=batching))
    rng, done = random.Random(7), list[str]()

    def look(running: LocalJob) -> str | None:
        completed = lab.completed(running)
        # In turn a subtask that dies, and the server, in mid-run.
        if (len(done) == 0 and completed >= 2) or (len(done) == 2 and completed >= 9):
            if lab.crash(running, rng):
                done.append("subtask")
        elif len(done) == 1 and completed >= 5:
            database.server.kill()
            database.server.start()
            done.append("server")
        return None

    result = lab.finish(env, on_start=lab.watch(look))
    assert done == ["subtask", "server", "subtask"]
    assert len(result.describe["restarts"]) >= 2
    assert database.rows() == expected(rows)
    assert database.fences(result.job_id) == []


JOB = """
import pyarrow as pa
import rayflow as rf
from rayflow import col

def numbers(start: int, count: int) -> pa.RecordBatch:
    n = range(start, start + count)
    return pa.record_batch({"k": [i % 200 for i in n], "n": list(n)})

def build(env: rf.StreamEnvironment, *, url: str, table: str) -> None:
    counts = env.generate(numbers, 6_000, rate_limit=3_000).key_by("k").aggregate(n=col("n").max(), rows=rf.count())
    counts.sink_to(rf.SqlSink(url, table, batching=rf.Batching(rows=50, linger="5ms", in_flight=2)))
"""


def test_a_process_that_gets_sigkill_is_continued_from_its_checkpoint(
    database: Database, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(JOB)
    storage = tmp_path / "checkpoints"
    command = [str(Path(sys.executable).parent / "rayflow"), "run", str(tmp_path / "job.py"), "--local"]
    command += ["--url", database.url, "--table", database.table]
    settings = {"checkpoint.interval": "50ms", "checkpoint.storage": f"file://{storage}", "batch.rows": "50"}
    command += [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]

    def checkpoints() -> list[Path]:
        found = [manifest.parent for manifest in storage.glob("*/chk-*/manifest.json")]
        return sorted(found, key=lambda path: int(path.name[4:]))

    with (tmp_path / "log").open("wb") as log:
        first = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while len(checkpoints()) < 3:
                assert first.poll() is None, (tmp_path / "log").read_text()
                time.sleep(0.01)
        finally:
            # In the middle of whatever it is at: no handler runs, no connection is closed.
            first.kill()
            first.wait(60)
    again = subprocess.run(
        [*command, "--from", str(checkpoints()[-1])], capture_output=True, text=True, timeout=200
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert database.rows() == [(k, 6_000 - KEYS + k, 6_000 // KEYS) for k in range(KEYS)]


def test_what_the_stream_deletes_is_deleted(lab: Any, database: Database) -> None:
    rows = pa.table({"k": [1, 2, 3, 1, 2], "v": [10, 20, 30, 60, 25]})
    env = environment()
    totals = env.from_arrow(rows).key_by("k").aggregate(v=col("v").sum())
    # A total that grows beyond the bound leaves the stream.
    totals.filter(col("v") < 50).sink_to(rf.SqlSink(database.url, database.table))
    lab.finish(env)
    assert database.rows() == [(2, 45), (3, 30)]


def test_of_rows_with_one_key_in_a_batch_the_last_is_kept(lab: Any, database: Database) -> None:
    rows = pa.table({"a": [1, 1, 2, 1], "b": ["x", "x", "x", "y"], "v": [1, 2, 3, None]})
    load(lab, rows, rf.SqlSink(database.url, database.table, keys=["a", "b"]))
    assert database.rows(order="a, b") == [(1, "x", 2), (1, "y", None), (2, "x", 3)]
    load(
        lab,
        rows.slice(2).set_column(2, "v", pa.array([9, 8])),
        rf.SqlSink(database.url, database.table, keys=["a", "b"]),
    )
    assert database.rows(order="a, b") == [(1, "x", 2), (1, "y", 8), (2, "x", 9)]


def test_rows_that_are_all_key(lab: Any, database: Database) -> None:
    rows = pa.table({"a": ["one", "two", "one", "ONE", "one "]})
    for _ in range(2):
        load(lab, rows, rf.SqlSink(database.url, database.table, keys="a"))
    assert sorted(a for (a,) in database.rows()) == ["ONE", "one", "one ", "two"]


def test_a_zombie_of_an_older_attempt_writes_nothing(database: Database) -> None:
    sink = rf.SqlSink(database.url, database.table, keys="k").behind(None)
    row = pa.record_batch({"k": [1], "v": ["old"]})
    sink.validate(row.schema)

    def opened(attempt: int) -> rf.SqlSink:
        made = copy.copy(sink)
        made.start_job(context(attempt))
        made.open(context(attempt))
        return made

    zombie = opened(1)
    zombie.write_batch(row)
    heir = opened(2)
    heir.write_batch(pa.record_batch({"k": [1], "v": ["new"]}))
    with pytest.raises(
        rf.RayflowError, match=r"attempt 1 of the job may not write.*attempt 2 writes"
    ) as over:
        zombie.write_batch(row)
    assert zombie.classify(over.value) == "fatal"
    with pytest.raises(rf.RayflowError, match="attempt 2 writes"):
        opened(1)
    assert database.rows() == [(1, "new")]
    heir.finish_job(context(2))
    for each in (zombie, heir):
        each.close()
    assert database.fences("job/") == []


def test_a_transaction_that_a_stopped_process_left_open_does_not_keep_its_heir_waiting(
    database: Database,
) -> None:
    # A connection that is there, and silent: nobody closed it, nobody will commit.
    sink = rf.SqlSink(database.url, database.table, keys="k", batching=rf.Batching(timeout="2s")).behind(None)
    row = pa.record_batch({"k": [1], "v": ["old"]})
    sink.validate(row.schema)
    zombie, heir = (copy.copy(sink) for _ in range(2))
    zombie.start_job(context(1))
    zombie.open(context(1))
    zombie._server.hold_fence(zombie._fence, 1)
    zombie._server.write(row, ["k"], None)
    refusals: list[Exception] = []
    while (error := raised(lambda: heir.open(context(2)))) is not None:
        heir.close()
        refusals.append(error)
        assert len(refusals) < 10, "the transaction of the zombie holds the fence for good"
    assert {heir.classify(error) for error in refusals} <= {"retry"}
    heir.write_batch(pa.record_batch({"k": [1], "v": ["new"]}))
    assert raised(zombie._server.raw.commit) is not None
    assert database.rows() == [(1, "new")]
    heir.finish_job(context(2))
    for each in (zombie, heir):
        each.close()


def raised(action: Callable[[], Any]) -> Exception | None:
    try:
        action()
    except Exception as error:
        return error
    return None


def context(attempt: int) -> rf.SinkContext:
    return rf.SinkContext(
        job_id="job", attempt=attempt, uid="sink", subtask_index=0, parallelism=1, max_parallelism=8
    )


def test_the_example_job_loads_the_weather_again_and_again(
    lab: Any, database: Database, root: Path, tmp_path: Path
) -> None:
    build = runpy.run_path(str(root / "jobs" / "etl.py"))["build"]
    source = str(root / "jobs" / "data" / "weather.csv")
    for url in ("", database.url, database.url):
        env = environment()
        env.parallelism = 2
        build(env, input=source, output=str(tmp_path / f"out{bool(url)}"), url=url, table=database.table)
        lab.finish(env)
    want = lab.read(tmp_path / "outFalse", partitioning="hive")
    ((rows, warmest),) = database.rows("count(*), max(celsius)")
    assert (rows, warmest) == (want.num_rows, max(want["celsius"].to_pylist()))


# ---------------------------------------------------------------------------------------- poison rows


def test_rows_that_the_database_refuses_go_to_the_side_and_all_others_are_written(
    lab: Any, database: Database, tmp_path: Path
) -> None:
    database.ask(
        f"CREATE TABLE {database.table} (id bigint primary key, name varchar(10) not null, age int check (age < 150))"
    )
    names = ["ann"] * 500
    ages = [30] * 500
    names[17], names[300], ages[411] = "far too long a name", None, 200  # type: ignore[call-overload]
    rows = pa.table({"id": range(500), "name": names, "age": pa.array(ages, pa.int32())})
    env = environment()
    stage = env.from_arrow(rows).sink_to(
        rf.SqlSink(database.url, database.table, keys="id", batching=rf.Batching(rows=100))
    )
    stage.on_error(rf.SideOutput("bad")).side_output("bad").write_parquet(tmp_path / "bad")
    result = lab.finish(env)
    assert result.describe["restarts"] == []
    bad = lab.read(tmp_path / "bad").sort_by("id").to_pylist()
    assert [row["id"] for row in bad] == [17, 300, 411]
    assert "too long" in bad[0]["error"]
    assert "null" in bad[1]["error"]
    assert [i for (i,) in database.rows("id")] == [n for n in range(500) if n not in (17, 300, 411)]


def test_without_a_policy_a_refused_row_fails_the_job_and_is_named(lab: Any, database: Database) -> None:
    database.ask(f"CREATE TABLE {database.table} (id bigint primary key, name varchar(3))")
    env = environment(**{"restart.strategy": "none"})
    env.from_rows([{"id": 1, "name": "bob"}, {"id": 2, "name": "robert"}]).sink_to(
        rf.SqlSink(database.url, database.table, keys="id")
    )
    error = lab.fail(env)
    assert "too long" in str(error)
    assert "test_sql_sink.py" in (error.location or "")
    assert database.rows() == []


# ------------------------------------------------------------------------------- tables, plans, errors


ROWS = pa.table({"id": pa.array([1], pa.int64()), "name": ["a"]})


@pytest.mark.parametrize(
    ("ddl", "options", "said"),
    [
        (
            "(id bigint primary key)",
            {"keys": "id"},
            r"has no column 'name'.*\n.*ALTER TABLE .* ADD COLUMN .*name",
        ),
        ("(id bigint, name varchar(9))", {"keys": "id"}, r"not unique by id.*\n.*ADD UNIQUE \(.*id.*\)"),
        ("(id bigint, name varchar(9), x int not null)", {}, "column 'x' of table .* takes neither NULL"),
        (None, {"create": False}, r"there is no table .*\n.*CREATE TABLE"),
    ],
)
def test_a_table_that_does_not_fit_fails_the_job_before_any_row_with_what_mends_it(
    lab: Any, database: Database, ddl: str | None, options: dict[str, Any], said: str
) -> None:
    if ddl is not None:
        database.ask(f"CREATE TABLE {database.table} {ddl}")
    env = environment()
    env.from_arrow(ROWS).sink_to(rf.SqlSink(database.url, database.table, **options))
    error = lab.fail(env)
    import re

    assert re.search(said, str(error)), error
    assert ddl is None or database.rows() == []


def test_a_login_that_is_refused_fails_the_job_at_once_and_no_secret_is_shown(
    lab: Any, database: Database, tmp_path: Path
) -> None:
    wrong = f"{database.url.partition('://')[0]}://nobody:s3cr3t-word@127.0.0.1:{database.server.port}/rows"
    env = environment()
    sink = rf.SqlSink(wrong, database.table)
    env.from_arrow(ROWS).sink_to(sink)
    assert "s3cr3t-word" not in sink.detail
    result = lab.run(env)
    assert result.state.value == "FAILED"
    said = f"{result.failure} {result.describe}"
    assert "s3cr3t-word" not in said
    assert "nobody" in said


def test_a_database_that_stays_away_ends_in_an_error_that_says_so(lab: Any, database: Database) -> None:
    server = database.server
    env = environment(**{"restart.max_attempts": 1})
    batching = rf.Batching(rows=10, linger="1ms", retry_for="300ms")
    counts(env, 100_000, rate=2_000).sink_to(rf.SqlSink(database.url, database.table, batching=batching))

    def look(running: LocalJob) -> None:
        if lab.completed(running) >= 1 and not stopped:
            stopped.append(True)
            server.kill()

    stopped: list[bool] = []
    try:
        error = lab.fail(env, on_start=lab.watch(look))
    finally:
        if stopped:
            server.start()
    assert "rows could not be written in" in str(error)
    assert "onnect" in str(error)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda url: rf.SqlSink("sqlite:///x", "t"), "expected a URL like postgresql://"),
        (lambda url: rf.SqlSink(url, "t", mode="append", keys="id"), "inserts every row"),
        (lambda url: rf.SqlSink(url, "t", mode="replace"), "mode='replace'"),  # type: ignore[arg-type]
        (lambda url: rf.SqlSink(url, ""), "name of a table"),
    ],
)
def test_what_makes_no_sense_is_refused_when_it_is_written(make: Callable[[str], Any], said: str) -> None:
    with pytest.raises(rf.PlanError, match=said):
        make("postgresql://u:p@h/d")


@pytest.mark.parametrize(
    ("column", "said"),
    [
        (pa.array([1], pa.duration("s")), "column 'x' is duration.*cast it"),
        (pa.array([decimal.Decimal(1)], pa.decimal256(76, 2)), "column 'x' is decimal256.*up to 65 digits"),
    ],
)
def test_a_type_that_no_column_can_take_is_a_plan_error_at_the_users_line(
    column: pa.Array, said: str
) -> None:
    env = environment()
    rows = env.from_arrow(pa.table({"x": column}))
    with pytest.raises(rf.PlanError, match=said) as wrong:
        rows.sink_to(rf.SqlSink("mysql://u:p@h/d", "t"))
    assert "test_sql_sink.py" in str(wrong.value)


def test_the_plan_says_what_becomes_of_rows_after_a_failure() -> None:
    env = environment()
    rows = env.from_arrow(pa.table({"k": [1], "v": [1]}))
    url = "postgresql://u:p@h/d"
    # The same sink, where the stream decides.
    sink = rf.SqlSink(url, "t")
    rows.sink_to(sink)
    rows.key_by("k").aggregate(v=col("v").sum()).sink_to(sink)
    rows.sink_to(rf.SqlSink(url, "t", keys="k"))
    details = [node.spec.detail for node in env._nodes if node.spec.name == "SqlSink"]
    assert ["append to t, at least once" in shown for shown in details] == [True, False, False], details
    assert ["upsert into t by k, exactly-once in effect" in shown for shown in details] == [False, True, True]


def test_streams_that_the_mode_cannot_take_are_plan_errors() -> None:
    env = environment()
    rows = env.from_arrow(pa.table({"k": [1], "v": [1]}))
    url = "postgresql://u:p@h/d"
    with pytest.raises(rf.PlanError, match="mode='upsert' needs keys="):
        rows.sink_to(rf.SqlSink(url, "t", mode="upsert"))
    with pytest.raises(rf.PlanError, match="unknown column 'w'"):
        rows.sink_to(rf.SqlSink(url, "t", keys="w"))
    with pytest.raises(rf.PlanError, match=r"leave \.rebalance\(\) out"):
        rows.rebalance().sink_to(rf.SqlSink(url, "t", keys="k"))
    totals = rows.key_by("k").aggregate(v=col("v").sum())
    with pytest.raises(rf.PlanError, match="cannot be appended"):
        totals.sink_to(rf.SqlSink(url, "t", mode="append"))
    with pytest.raises(rf.PlanError, match="replace each other by k, not by keys"):
        totals.sink_to(rf.SqlSink(url, "t", keys="v"))
    with pytest.raises(rf.PlanError, match="this operator cannot leave rows out"):
        totals.sink_to(rf.SqlSink(url, "t")).on_error("skip")
    (edge,) = env._nodes[rows.sink_to(rf.SqlSink(url, "t", keys="k"))._node.id].inputs
    assert (edge.exchange.kind, edge.exchange.keys) == ("hash", ("k",))
