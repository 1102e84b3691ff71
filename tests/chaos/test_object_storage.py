"""`rayobj://` on three real nodes: what is acknowledged survives the death of any one of them, and of who wrote it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pyarrow.dataset as ds
import pytest

from rayflow.client import local_cluster
from rayflow.client.processes import session_members

pytestmark = pytest.mark.ray

PRELUDE = """
import json, os, signal, sys, time
from contextlib import suppress
import rayflow as rf
from rayflow.client.ray_session import open_session

def until(condition, limit_s=120):
    given_up_s = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > given_up_s:
            raise TimeoutError(condition)
        time.sleep(0.05)
    return found

def holders(name):
    from rayflow.actors.holder_calls import Handles, wait_for
    from rayflow.actors.holder_group import HolderGroup
    handles, members = Handles(), HolderGroup(name).read().members
    return [wait_for(actor.status.remote(), actor) for actor in map(handles.get, members)]

def actors():
    from ray.util import list_named_actors
    return [actor["name"] for actor in list_named_actors(all_namespaces=True)]
"""

SUBMIT = """
env = rf.StreamEnvironment(name="kept", parallelism=2, config={
    "checkpoint.interval": "200ms", "checkpoint.storage": "rayobj://kept", "restart.delay": "50ms"})
def batch(start, count):
    import pyarrow as pa
    return pa.record_batch({"n": range(start, start + count), "k": [i % 7 for i in range(start, start + count)]})
keyed = env.generate(batch, rows=40_000, rate_limit=3000).key_by("k")
keyed.map_batches(lambda b: b, returns={"n": "int64", "k": "int64"}).write_parquet(OUT)
from rayflow.client import submit
print(submit(env.plan(), env.config, "kept", detach=True).id)
handle = rf.connect().job("kept")
until(lambda: handle.describe()["checkpoints"]["completed"])
print(json.dumps([h.pid for h in holders("kept")]))
"""

KILL_THE_JOB_MANAGER = """
handle = rf.connect().job("kept")
before = handle.describe()
with suppress(ProcessLookupError):
    os.kill(before["job_manager"]["pid"], signal.SIGKILL)
def recovered():
    try:
        now = handle.describe()
    except Exception:
        return False
    return now["state"] == "RUNNING" and now["job_manager"]["pid"] != before["job_manager"]["pid"] and now
now = until(recovered)
done = now["checkpoints"]["completed"]
until(lambda: handle.describe()["checkpoints"]["completed"] > done)
open_session()
def both():
    found = holders("kept")
    return len(found) == 2 and found
print(json.dumps([[h.pid, h.complete] for h in until(both)]))
"""

AWAIT = """
handle = rf.connect().job("kept")
print(handle.wait(timeout=180).state)
print(json.dumps([r["restored_from"] for r in handle.describe()["restarts"]]))
"""

LOOK_AND_REMOVE = """
from click.testing import CliRunner
from rayflow.cli.main import cli as commands
def cli(*args):
    done = CliRunner().invoke(commands, args)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.output
open_session()
# The manager stays a while for whoever waits; then only the storage tells.
until(lambda: not [name for name in actors() if name.startswith("rayflow:")])
print(rf.connect().job("kept").status())
found = json.loads(cli("state", "ls", "rayobj://kept", "--json"))
print(len(found))
print(json.loads(cli("state", "read", found[-1]["path"], "--json"))["job_id"])
cli("state", "rm", f"rayobj://kept/{found[-1]['job_id']}")
print(until(lambda: not actors()))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield tmp_path
    local_cluster.down()


def python(code: str) -> list[str]:
    """Run code as another command would, with this test's data folder; return the lines it printed."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + code],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_a_job_on_rayobj_survives_a_holders_node_and_its_job_manager_and_leaves_nothing_when_removed(
    home, tmp_path
):
    python("from rayflow.client import local_cluster; local_cluster.up(3)")
    out = tmp_path / "out"
    job_id, pids = python(SUBMIT.replace("OUT", repr(str(out))))
    primary, backup = json.loads(pids)
    (number,) = [
        node.number
        for node in local_cluster.recorded_cluster().nodes
        if primary in [pid for pid, _ in session_members(node.pid)]
    ]
    local_cluster.kill_node(number)
    (kept,) = python(KILL_THE_JOB_MANAGER)
    # A fresh holder, on the third node, has a whole copy.
    pids, complete = zip(*json.loads(kept), strict=True)
    assert pids[0] == backup
    assert complete == (True, True)
    state, restored = python(AWAIT)
    assert state == "FINISHED"
    # One or two: the manager may have died before it knew of the node.
    assert json.loads(restored)
    assert all(f"rayobj://kept/{job_id}/chk-" in path for path in json.loads(restored))
    numbers = ds.dataset(out, format="parquet").to_table()["n"].to_pylist()
    assert sorted(numbers) == list(range(40_000))
    assert python(LOOK_AND_REMOVE) == ["FINISHED", "3", job_id, "True"]
