"""`rayflow run --local` and `plan`, in this process: what people see, and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

JOB = '''
import rayflow as rf
from rayflow import col

def build(env, *, numbers: int = 3, factor: int = 2, output: str = "out"):
    """Multiply numbers."""
    rows = [{"n": n} for n in range(numbers)]
    env.from_rows(rows).with_columns(m=col("n") * factor).write_parquet(output)

if __name__ == "__main__":
    rf.run(build)
'''


@pytest.fixture
def job(tmp_path):
    def write(text=JOB, name="multiply.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_finished_job_shows_progress_and_first_rows_and_ends_with_0(rayflow, job):
    code, out, err = rayflow("run", job(), "--local", "--factor", "10", "--output", "x")
    assert code == 0, err
    assert "FINISHED" in out
    assert "x: 3 rows in 1 file" in out
    assert out.splitlines()[-1].split() == ["2", "20"]
    assert pq.read_table("x").column("m").to_pylist() == [0, 10, 20]


def test_options_may_stand_before_the_job_file(rayflow, job):
    job()
    code, _, err = rayflow("run", "--local", "--output", "x", "--set", "batch.rows=10", "multiply.py")
    assert code == 0, err


def test_the_file_as_a_script_takes_the_same_options(job):
    ran = subprocess.run(
        [sys.executable, str(job()), "--local", "--numbers", "2", "--output", "x"],
        cwd=job().parent,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    assert "x: 2 rows" in ran.stdout


def test_a_function_that_raises_names_operator_line_and_cause_and_ends_with_1(rayflow, job):
    text = JOB.replace(
        '.with_columns(m=col("n") * factor)', '.map(lambda n: {"n": 1 // n}, returns={"n": int})'
    )
    code, _, err = rayflow("run", job(text), "--local", "--output", "x", "--set", "restart.strategy=none")
    assert code == 1
    assert "ZeroDivisionError" in err
    assert "map" in err
    assert f"multiply.py:{text[: text.index('.map')].count(chr(10)) + 1}" in err
    assert not list(Path("x").glob("*.parquet"))


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_mistake_in_the_plan_ends_with_2_and_the_users_line(rayflow, job, command):
    code, _, err = rayflow(command, job(JOB.replace('col("n")', 'col("m")')), "--local")
    assert code == 2
    assert "unknown column 'm'" in err
    assert "multiply.py:8" in err


def test_build_that_raises_something_else_ends_with_2_and_the_users_line(rayflow, job):
    code, _, err = rayflow("run", job(JOB.replace("rows = ", "rows = undefined or ")), "--local")
    assert code == 2
    assert "NameError: name 'undefined' is not defined" in err
    assert "multiply.py:7" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--nubmers", "3"], "--numbers"),
        (["--numbers", "three"], "'three' is not a valid integer"),
        (["--parallelism", "0"], "--parallelism"),
        (["--set", "checkpoint.intervall=1s"], "did you mean 'checkpoint.interval'?"),
        (["--set", "checkpoint.interval=soon"], "checkpoint.interval"),
        (["--set", "checkpoint.interval"], "KEY=VALUE"),
        (["--config", "nope.toml"], "nope.toml"),
        (["--local", "--detach"], "--local"),
        (["--local", "--address", "x:1"], "--local"),
    ],
)
def test_bad_usage_ends_with_2_and_says_what_was_wrong(rayflow, job, arguments, message):
    code, out, err = rayflow("run", job(), *arguments)
    assert code == 2
    assert message in err
    assert not out


def test_missing_job_file_is_bad_usage(rayflow):
    code, _, err = rayflow("run", "nope.py", "--output", "x")
    assert code == 2
    assert "nope.py does not exist" in err


def test_clash_with_an_own_option_is_a_plan_error(rayflow, job):
    code, _, err = rayflow("run", job(JOB.replace("factor", "parallelism")), "--local")
    assert code == 2
    assert "--parallelism is an option of rayflow itself" in err


def test_help_shows_the_jobs_options_with_their_defaults(rayflow, job):
    code, out, _ = rayflow("run", job(), "--help")
    assert code == 0
    assert "Options of multiply (Multiply numbers.)" in out
    assert "[default: 3]" in out
    assert "--set KEY=VALUE" in out


def test_set_wins_over_the_config_file(rayflow, job, tmp_path):
    (tmp_path / "c.toml").write_text('[checkpoint]\nstorage = "from-file"\ninterval = "50ms"\n')
    code, _, err = rayflow(
        "run", job(), "--local", "--config", "c.toml", "--set", "checkpoint.storage=from-set", "--output", "x"
    )
    assert code == 0, err
    assert Path("from-set").is_dir()
    assert not Path("from-file").exists()


def test_plan_runs_nothing(rayflow, job):
    code, out, _ = rayflow("plan", job(), "--parallelism", "2", "--output", "x")
    assert code == 0
    assert "write_parquet" in out
    assert not Path("x").exists()


def test_plan_as_json(rayflow, job):
    code, out, _ = rayflow("plan", job(), "--parallelism", "2", "--json")
    assert code == 0
    plan = json.loads(out)
    assert {"operators", "edges", "warnings"} <= plan.keys()
    assert {"uid", "name", "parallelism", "chained"} <= plan["operators"][0].keys()
    assert {edge["exchange"] for edge in plan["edges"]} <= {
        "forward",
        "hash",
        "rebalance",
        "rescale",
        "broadcast",
    }


def test_restore_from_what_is_no_checkpoint_says_so(rayflow, job, tmp_path):
    code, _, err = rayflow("run", job(), "--local", "--from", tmp_path / "empty", "--output", "x")
    assert code == 2
    assert f"--from {tmp_path / 'empty'}: no checkpoint at" in err
    assert not (tmp_path / "x").exists()


def test_storage_in_a_clusters_memory_needs_a_cluster(rayflow, job):
    for option in (("--set", "checkpoint.storage=rayobj://main"), ("--from", "rayobj://main/job-1")):
        code, _, err = rayflow("run", job(), "--local", *option)
        assert code == 2
        assert "needs a Ray cluster, and this runs without one" in err
        assert ("checkpoint.storage: " if "--set" in option else "--from rayobj://main/job-1: ") in err


def test_missing_input_names_the_path(rayflow, job):
    code, _, err = rayflow(
        "run", job("def build(env):\n    env.read_parquet('nope.parquet').write_parquet('x')\n"), "--local"
    )
    assert code in (1, 2)
    assert "nope.parquet" in err


def test_help_of_rayflow_is_instant_since_commands_load_when_used():
    code = "import sys; from rayflow.cli.main import cli; cli(['--help'], standalone_mode=False); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.splitlines()[-1].split())
    assert loaded.isdisjoint({"pyarrow", "numpy", "ray", "rich"})
