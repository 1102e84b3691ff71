"""A local cluster of real nodes that outlives the command that started it."""

from __future__ import annotations

import os
import subprocess
import sys

import pyarrow.dataset as ds
import pytest

from rayflow.client import local_cluster
from rayflow.client.processes import end, is_alive, session_members, started_at
from rayflow.model.errors import ConfigError

pytestmark = pytest.mark.ray

IN_A_PROCESS_OF_ITS_OWN = """
import sys
from rayflow.client import local_cluster
from rayflow.client.ray_session import open_session
import rayflow as rf
{code}
"""

SUBMIT = """
env = rf.StreamEnvironment(name="detached", parallelism=2)
def batch(start, count):
    import pyarrow as pa
    return pa.record_batch({"n": range(start, start + count)})
env.generate(batch, rate_limit=100).discard()
from rayflow.client import submit
handle = submit(env.plan(), env.config, "detached", detach=True)
print(handle.id)
"""

FIND = """
handle = rf.connect().job("detached")
while handle.status() != "RUNNING":
    pass
described = handle.describe()
print(len({s["node_id"] for s in described["subtasks"]}))
handle.cancel()
print(handle.wait(timeout=60).state)
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield tmp_path
    local_cluster.down()


def python(code: str) -> list[str]:
    """Run code as another command would, with this test's data folder; return the lines it printed."""
    script = IN_A_PROCESS_OF_ITS_OWN.replace("{code}", code)
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=200, env={**os.environ}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_cluster_of_two_nodes_outlives_commands_runs_a_detached_job_and_ends_without_a_trace(home):
    python("local_cluster.up(2)")
    cluster = local_cluster.recorded_cluster()
    assert [node.alive for node in cluster.nodes] == [True, True]
    with pytest.raises(ConfigError, match="a cluster runs at"):
        local_cluster.up()
    (job_id,) = python(SUBMIT)
    assert python(FIND) == ["2", "CANCELLED"]
    (state,) = python(f"print(rf.connect().job({job_id!r}).status())")
    assert state == "CANCELLED"

    members = [m for node in cluster.nodes for m in session_members(node.pid)]
    assert len(members) > 2
    assert local_cluster.down()
    assert not [m for m in members if is_alive(*m)]
    assert local_cluster.recorded_cluster() is None
    assert not local_cluster.down()


KEEP_RUNNING = """
env = rf.StreamEnvironment(name="counted", parallelism=2, config={"checkpoint.interval": "200ms"})
def batch(start, count):
    import pyarrow as pa
    return pa.record_batch({"n": range(start, start + count)})
env.generate(batch, rows=60_000, rate_limit=4000).key_by("n").map_batches(
    lambda b: b, returns={"n": "int64"}).write_parquet(OUT)
from rayflow.client import submit
submit(env.plan(), env.config, "counted", detach=True)
handle = rf.connect().job("counted")
while not handle.describe()["checkpoints"]["completed"]:
    pass
print(len({s["node_id"] for s in handle.describe()["subtasks"]}))
"""

AWAIT = """
handle = rf.connect().job("counted")
print(handle.wait(timeout=120).state)
described = handle.describe()
print(len(described["restarts"]) > 0, all("/chk-" in r["restored_from"] for r in described["restarts"]))
"""


def test_a_killed_node_costs_no_row_and_a_new_one_may_come(home, tmp_path):
    out = tmp_path / "out"
    python("local_cluster.up(2)")
    assert python(KEEP_RUNNING.replace("OUT", repr(str(out)))) == ["2"]
    killed = local_cluster.kill_node(1)
    assert not killed.alive
    assert not session_members(killed.pid)
    with pytest.raises(ConfigError, match="no living node 1; alive are 0"):
        local_cluster.kill_node(1)
    assert local_cluster.add_node().number == 2
    state, restarts = python(AWAIT)
    assert state == "FINISHED"
    # Two, where the second process of the node was missed only when the first had been replaced.
    assert restarts == "True True"
    numbers = ds.dataset(out, format="parquet").to_table()["n"].to_pylist()
    assert sorted(numbers) == list(range(60_000))


def test_a_process_that_got_the_pid_of_a_dead_node_is_left_alone(home):
    stranger = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        local_cluster.ClusterNode(0, stranger.pid, (started_at(stranger.pid) or 0) - 1).end()
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_detaching_without_a_cluster_is_refused(home):
    code = SUBMIT.replace("handle = submit", "try: submit").replace(
        "print(handle.id)", "except rf.ConfigError as e: print(e)"
    )
    assert "start one with `rayflow cluster up`" in python(code)[-1]


def test_processes_that_do_not_end_when_asked_are_killed():
    stubborn = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, time; signal.signal(15, signal.SIG_IGN); print(flush=True); time.sleep(60)",
        ],
        stdout=subprocess.PIPE,
    )
    stubborn.stdout.readline()
    end([(stubborn.pid, started_at(stubborn.pid))], grace_s=0.2)
    assert stubborn.wait(10) == -9
