"""What a subtask's process that takes too much memory tells its manager before it ends: the actor as it is, in a
process of its own, with a Ray and a manager that only listen."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys, time
from types import SimpleNamespace
import cloudpickle, numpy as np, pyarrow as pa, ray
from rayflow.actors.specs import WorkerSpec
from rayflow.actors.subtask_actor import SubtaskActor
from rayflow.connectors.memory_sources import RowsSource
from rayflow.graph.plan import JobGraph, JobVertex, OperatorSpec
from rayflow.model.ids import Attempt, JobId, SubtaskId, VertexId
from rayflow.operators.contracts import Operator
from rayflow.runtime.messages import AssignSplits, Deploy, Start, TaskFailed, Warned
from rayflow.state.manifest import SplitState

class Eats(Operator):
    "Fills memory in one call, as a user's function would."
    def process(self, batch, port):
        held = []
        while True:
            held.append(np.ones(1 << 18))
            time.sleep(0.005)

class Hoards(Operator):
    "Its state grows with every batch."
    def open(self, ctx, out, restored):
        super().open(ctx, out, restored)
        self.state = []
    def process(self, batch, port):
        self.state.append(np.ones(1 << 18))
        time.sleep(0.005)
    def snapshot(self, checkpoint_id):
        return ()

def hear(message, lines):
    if isinstance(message, TaskFailed):
        said = ["failed", message.cause, message.operator, message.fault, message.process_ends]
        print(json.dumps(said), file=sys.__stdout__, flush=True)
    elif isinstance(message, Warned):
        print(json.dumps([message.type, message.message]), file=sys.__stdout__, flush=True)

ray.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "node")
ray.util.get_node_ip_address = lambda: "127.0.0.1"
ray.get = lambda ref, timeout=None: ref
manager = SimpleNamespace(report=SimpleNamespace(remote=hear))
spec = WorkerSpec(
    job_id=JobId("job"), code_paths=(), token="t", lease_s=600.0, reset_timeout_s=60.0, heartbeat_interval_s=1.0,
    heartbeat_timeout_s=60.0,
)
source = RowsSource(pa.table({"v": range(1_000_000)}))
here = SubtaskId(VertexId("src"), 0)
graph = JobGraph(
    name="test", max_parallelism=16, edges=(),
    vertices=(JobVertex(id=here.vertex, parallelism=1, operators=(
        OperatorSpec(uid="src", name="source", kind="source", payload=source),
        OperatorSpec(uid="op", name="glutton", kind="operator", payload=globals()[sys.argv[1]], location="job.py:7"),
    )),),
)
actor = SubtaskActor(spec, manager, 1)
actor.become(1, here)
config = {"checkpoint.storage": "memory://x", "batch.rows": 10, "memory.process": "384MiB"}
attempt = Attempt(1)
actor.control(
    1, Deploy(job_id=spec.job_id, attempt=attempt, subtask=here, graph=None, config=config, peers={}),
    cloudpickle.dumps(graph),
)
actor.control(1, Start(attempt))
splits = tuple(SplitState(split=split.to_json()) for split in source.splits())
actor.control(1, AssignSplits(attempt=attempt, uid="src", splits=splits, cap=2**100, no_more=True))
time.sleep(300)
"""


@pytest.mark.parametrize(("operator", "state"), [("Eats", False), ("Hoards", True)])
def test_a_process_over_its_limit_says_who_how_much_and_what_to_do_and_ends(
    operator: str, state: bool
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, operator], capture_output=True, text=True, timeout=200, check=False
    )
    said = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("[")]
    assert ended.returncode == 70, ended.stderr[-2000:]
    *before, (kind, cause, blamed, fault, process_ends) = said
    assert (kind, blamed, process_ends) == ("failed", "glutton", True)
    assert "more than its memory.process of 384 MiB" in cause
    assert "raise memory.process" in cause
    # The same every time, so that the job ends when it is met again and again.
    assert fault == "glutton: memory.process"
    events = [event[0] for event in before]
    if state:
        assert events.index("state_nears_budget") >= 0
        assert "memory_pressure" in events
        assert "('glutton' " in cause
        assert "state.backend=disk" in cause
    else:
        # Its task thread never came back from the call: the watch has its turn all the same.
        assert "memory_pressure" not in events
        assert "have the function hold less" in cause
