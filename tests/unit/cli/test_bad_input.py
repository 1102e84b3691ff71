"""What a person sees who gives rayflow something bad: what, where, no traceback, an exit code, and no rows."""

from __future__ import annotations

import signal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

JOB = """
def build(env, *, input: str = "in.csv", format: str = "csv", output: str = "out", rate: int = 1_000_000):
    rows = getattr(env, "read_" + format)(input, rate_limit=rate)
    rows.write_parquet(output)
"""

NO_SERVER = [
    *("--set", "s3.endpoint=http://127.0.0.1:1", "--set", "s3.allow_http=true"),
    *("--set", "s3.access_key=a", "--set", "s3.secret_key=never-shown", "--set", "s3.region=us-east-1"),
]


@pytest.fixture
def run(rayflow, tmp_path):
    """Run the job above; the answer is (exit code, what was said). No output may look complete after a failure."""
    (tmp_path / "job.py").write_text(JOB)
    (tmp_path / "in.csv").write_text("a,b\n1,2\n3,4\n")

    def run_job(*arguments):
        code, out, err = rayflow("run", "job.py", "--local", "--set", "restart.delay=1ms", *arguments)
        if code:
            assert not list(Path("out").rglob("*.parquet"))
        assert "never-shown" not in out + err
        return code, err

    return run_job


def test_good_input_is_written(run):
    assert run() == (0, "")
    assert pq.read_table("out").num_rows == 2


def test_a_missing_file(run):
    code, said = run("--input", "missing.csv")
    assert code == 2
    assert "no such file or directory: missing.csv" in said
    assert "job.py:3" in said


def test_an_unreadable_parquet_file(run):
    Path("bad.parquet").write_bytes(b"PAR1 and then nothing")
    code, said = run("--input", "bad.parquet", "--format", "parquet")
    assert code == 2
    assert "cannot read" in said
    assert "bad.parquet" in said
    assert "job.py:3" in said


def test_a_parquet_file_that_is_torn_behind_the_first(run):
    table = pa.table({"n": list(range(10_000))})
    Path("in").mkdir()
    pq.write_table(table, "in/a.parquet")
    pq.write_table(table, "in/b.parquet")
    whole = Path("in/b.parquet").read_bytes()
    Path("in/b.parquet").write_bytes(whole[: len(whole) // 2])
    code, said = run("--input", "in", "--format", "parquet")
    assert code in (1, 2)
    assert "b.parquet" in said


def test_a_csv_row_that_does_not_parse(run):
    # The first MiB decides the columns' types, when the plan is built; this row lies behind it.
    Path("in.csv").write_text("a,b\n" + f"{'1' * 1000},2\n" * 1200 + "3,x\n")
    code, said = run()
    assert code == 1
    assert "in.csv, line 1202: column 'b' is 'x', expected int64" in said
    assert "job.py:3" in said


def test_a_json_line_that_does_not_parse(run):
    Path("in.jsonl").write_text('{"a": 1}\n' * 2000 + '{"a": \n')
    code, said = run("--input", "in.jsonl", "--format", "json")
    assert code == 2
    assert "in.jsonl: line 2001: not JSON" in said


@pytest.mark.parametrize("output", ["/proc/nowhere/out", "in.csv/out"])
def test_output_that_cannot_be_written(run, output):
    code, said = run("--output", output)
    assert code in (1, 2)
    assert output in said
    assert "cannot" in said


@pytest.mark.parametrize(
    ("what", "code"), [("--input", 2), ("--output", 1), ("--set=checkpoint.interval=1s", 1)]
)
def test_s3_that_is_out_of_reach(run, what, code):
    if what.startswith("--set"):
        got, said = run(what, "--set", "checkpoint.storage=s3://bucket/x", *NO_SERVER)
    else:
        got, said = run(what, "s3://bucket/x", *NO_SERVER)
    assert got == code
    assert "s3://bucket/x" in said
    assert "127.0.0.1:1" in said


def test_an_unknown_config_key(run):
    assert run("--set", "chekpoint.interval=1s")[0] == 2


def checkpoint_of(run) -> Path:
    """Run the job, and return its only checkpoint: the one at its end, which has all rows."""
    Path("many.csv").write_text("a,b\n" + "1,2\n" * 1000)
    code, said = run(
        *("--input", "many.csv", "--output", "before"),
        *("--set", "checkpoint.interval=60s", "--set", "checkpoint.storage=kept"),
    )
    assert code == 0, said
    with_state = {path.parent for path in Path("kept").glob("*/chk-*/*.arrow")}
    return max(with_state, key=lambda path: int(path.name.removeprefix("chk-")))


def test_a_checkpoint_with_a_flipped_bit_in_its_state(run):
    checkpoint = checkpoint_of(run)
    state = max(checkpoint.glob("*.arrow"), key=lambda file: file.stat().st_size)
    data = bytearray(state.read_bytes())
    data[len(data) // 2] ^= 1
    state.write_bytes(data)
    code, said = run("--input", "many.csv", "--from", checkpoint)
    assert code == 1
    assert state.name in said
    assert "SHA-256" in said or "checksum" in said


def test_a_checkpoint_with_a_torn_manifest(run):
    checkpoint = checkpoint_of(run)
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text()[:100])
    code, said = run("--input", "many.csv", "--from", checkpoint)
    assert code == 1
    assert "manifest.json" in said


def test_a_checkpoint_of_something_else(run):
    Path("foreign").mkdir()
    Path("foreign/manifest.json").write_text('{"hello": 1}')
    code, said = run("--from", "foreign")
    assert code == 1
    assert "not a manifest of rayflow" in said


def test_a_storage_of_an_unknown_kind_is_told_before_anything_starts(run):
    code, said = run("--set", "checkpoint.storage=gopher://x")
    assert code == 2
    assert "checkpoint.storage: unknown scheme 'gopher'; expected a path, file:///path, s3://" in said
    assert "rayobj://" in said


def test_checkpoint_storage_that_cannot_be_written(run):
    Path("a-file").write_text("not a folder")
    code, said = run("--set", "checkpoint.storage=a-file")
    assert code == 1
    assert "a-file" in said
    assert "set checkpoint.storage to a place that can be written" in said


def test_more_subtasks_than_key_groups(run):
    code, said = run("--parallelism", "1000")
    assert code == 2
    assert "--parallelism 1000: " in said
    assert "expected 1 to 128" in said
    assert "click" not in said


def test_a_folder_for_a_job_file(rayflow, tmp_path):
    code, _, said = rayflow("run", tmp_path, "--local")
    assert code == 2
    assert f"{tmp_path} is a folder; expected a job file" in said


def test_an_error_of_a_function_names_its_file_and_line(rayflow, tmp_path):
    path = tmp_path / "raises.py"
    path.write_text(
        "def boom(row):\n"
        "    raise ValueError('never 7')\n"
        "def build(env):\n"
        "    env.from_rows([{'a': 7}]).map(boom, returns={'a': int}).write_parquet('out')\n"
    )
    code, _, said = rayflow("run", "raises.py", "--local", "--set", "restart.delay=1ms")
    assert code == 1
    assert f"in boom, {path}:2: raise ValueError('never 7')" in said


@pytest.fixture
def listening_to_ctrl_c():
    """Whoever starts the tests in the background, as `nohup … &` does, has them ignore it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("listening_to_ctrl_c")
def test_ctrl_c_says_what_became_of_the_job(rayflow, tmp_path):
    path = tmp_path / "interrupted.py"
    path.write_text(
        "import _thread\n"
        "def ctrl_c(row):\n"
        "    _thread.interrupt_main()\n"
        "    return row\n"
        "def build(env):\n"
        "    rows = env.from_rows([{'a': n} for n in range(1000)], rate_limit=10)\n"
        "    rows.map(ctrl_c, returns={'a': int}).write_parquet('out')\n"
    )
    code, _, said = rayflow("run", "interrupted.py", "--local")
    assert code == 130
    assert "job interrupted is cancelled; what it has committed stays" in said
    assert not list(Path("out").rglob("*.parquet"))


def test_a_function_that_cannot_be_shipped_names_its_operator_and_line(rayflow, tmp_path):
    (tmp_path / "locked.py").write_text(
        "import threading\n"
        "def build(env):\n"
        "    lock = threading.Lock()\n"
        "    rows = env.from_rows([{'a': 1}]).map(lambda row: lock and row, returns={'a': int})\n"
        "    rows.write_parquet('out')\n"
    )
    code, _, said = rayflow("run", "locked.py", "--local")
    assert code == 2
    assert (
        "'map' cannot be shipped to the processes that run it: TypeError: cannot pickle '_thread.lock'"
        in said
    )
    assert "locked.py:4" in said


@pytest.mark.parametrize("wrong", ["rf.SqlSink('oracle://db', 'totals')", "rf.Skew(salt=-1)"])
def test_what_a_specification_refuses_names_the_line_too(rayflow, tmp_path, wrong):
    (tmp_path / "wrong.py").write_text(f"import rayflow as rf\n\ndef build(env):\n    made = {wrong}\n")
    code, _, said = rayflow("run", "wrong.py", "--local")
    assert code == 2
    assert f"wrong.py:4: made = {wrong}" in said


def test_a_database_that_is_not_there(rayflow, tmp_path):
    pytest.importorskip("psycopg")
    pytest.importorskip("sqlalchemy")
    (tmp_path / "into_sql.py").write_text(
        "import rayflow as rf\n"
        "def build(env):\n"
        "    sink = rf.SqlSink('postgresql://me:never-shown@127.0.0.1:1/db', 'totals', keys='a')\n"
        "    env.from_rows([{'a': 1}]).sink_to(sink)\n"
    )
    code, _, said = rayflow("run", "into_sql.py", "--local")
    assert code == 1
    assert "cannot begin: table 'totals' at postgresql://" in said
    assert "refused" in said
    assert "check that the server runs" in said
    assert "into_sql.py:4" in said
    assert "never-shown" not in said
