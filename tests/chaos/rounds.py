"""Rounds of the long run: a job of `soak_job` under a seeded schedule of faults, to its end, and its output judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

import rayflow as rf
from rayflow.client.chaos.effects import Effects, RayEffects
from rayflow.client.chaos.injecting import Injector
from rayflow.client.chaos.schedule import FaultKind, draw
from rayflow.client.chaos.victims import subtask_targets
from rayflow.client.handle import ENDED
from rayflow.model.errors import TransientError
from tests.chaos import soak_job
from tests.chaos.exactness import check_counts, check_rows
from tests.chaos.namespace_effects import ROOT, NamespaceEffects, StoredView
from tests.chaos.soak import recoveries
from tests.chaos.storage_effects import StorageEffects
from tests.faulty_proxy import faulty_proxy
from tests.s3 import running_s3

RATE = 200
END_WITHIN_S = 400
"""A job that was told its end is given up after so long without a checkpoint, or …"""
AT_MOST_S = 1_500
"""… so long in all. On a busy machine it has rows to catch up with."""
CONFIG = {
    "checkpoint.interval": "2s",
    "restart.strategy": "exponential",
    "restart.max_attempts": 1_000_000,
    "source.rate_limit": RATE,
    "batch.linger": "100ms",
}
LEASE_MS = 15_000


@dataclass
class Round:
    """One job. `kinds` from its subtasks' targets; `every_ms`, `times` and `seed` as in `draw`."""

    name: str
    kinds: Callable[[tuple[str, ...]], list[FaultKind]]
    every_ms: int
    times: int
    seed: int
    report: dict[str, Any] = field(default_factory=dict)


def processes(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """Kills of processes: mostly subtasks, sometimes the job manager, seldom all at once."""
    kill = FaultKind(action="kill", targets=subtasks)
    return [*[kill] * 7, *[FaultKind(action="kill", targets=("jobmanager",))] * 2, _kill("all")]


def nodes(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """Kills of nodes."""
    return [FaultKind(action="kill")]


def stalls(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """Processes that are stopped: for a moment, as a sink that stalls, or beyond their lease; writes that fail."""
    return [
        FaultKind(action="stop", targets=subtasks, for_ms=3_000),
        FaultKind(action="stop", targets=subtasks, for_ms=LEASE_MS + 8_000),
        FaultKind(action="stop", targets=("jobmanager",), for_ms=LEASE_MS + 8_000),
        FaultKind(action="storage_errors", targets=("storage",), for_ms=4_000),
        FaultKind(action="kill", targets=subtasks),
    ]


def storage(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """Checkpoint storage that is away, for a moment and for longer than ten restarts would last, or slow; and kills, in
    between and meanwhile."""
    errors = FaultKind(action="storage_errors", targets=("storage",))
    return [
        replace(errors, for_ms=3_000),
        replace(errors, for_ms=30_000),
        FaultKind(action="slow_storage", targets=("storage",), for_ms=15_000, delay_ms=400),
        FaultKind(action="kill", targets=subtasks),
        FaultKind(action="kill", targets=("jobmanager",)),
    ]


def partitions(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """Networks that part: manager and subtask, subtask and subtask, a node and all; one-way, flapping; short, and
    longer than the lease."""

    def part(targets: tuple[str, ...], **how: Any) -> FaultKind:
        return FaultKind(action="partition", targets=targets, **how)

    return [
        part(("jobmanager",), peers=subtasks, for_ms=8_000),
        part(("jobmanager",), peers=subtasks, for_ms=LEASE_MS + 8_000, one_way=True),
        part(subtasks, peers=subtasks, for_ms=8_000),
        part(subtasks, peers=subtasks, for_ms=8_000, one_way=True),
        part(subtasks, peers=subtasks, for_ms=9_000, flaps=3),
        part(("node:1", "node:2"), for_ms=LEASE_MS + 8_000),
        part(("node:1", "node:2"), for_ms=3_000),
    ]


def head(subtasks: tuple[str, ...]) -> list[FaultKind]:
    """The head node loses power, and comes back."""
    return [FaultKind(action="kill", targets=("head",), for_ms=4_000)]


def _kill(target: str) -> FaultKind:
    return FaultKind(action="kill", targets=(target,))


def run_on_cluster(round_: Round, folder: Path) -> dict[str, Any]:
    """Run it on the recorded cluster of real nodes, which this process is connected to."""
    config = {**CONFIG, "checkpoint.storage": str(folder / "checkpoints")}
    env = rf.StreamEnvironment(name=round_.name.replace(" ", "-"), parallelism=2, config=config)
    soak_job.build(env, output=str(folder / "out"), until=str(folder / "until"))
    return _run(round_, folder, env.submit(), RayEffects())


def run_on_s3(round_: Round, folder: Path) -> dict[str, Any]:
    """Run it on that cluster, with checkpoints on an S3 server of its own behind a proxy that fails."""
    with running_s3() as server, faulty_proxy(server.endpoint) as proxy:
        config = {
            **CONFIG,
            # What the default budget bears is the point.
            "restart.max_attempts": 10,
            **server.options,
            "s3.endpoint": proxy.endpoint,
            "checkpoint.storage": f"s3://{server.new_bucket()}/checkpoints",
        }
        env = rf.StreamEnvironment(name=round_.name.replace(" ", "-"), parallelism=2, config=config)
        soak_job.build(env, output=str(folder / "out"), until=str(folder / "until"))
        return _run(round_, folder, env.submit(), StorageEffects(proxy))


def run_on_namespaces(round_: Round, folder: Path, namespaces: Any) -> dict[str, Any]:
    """Run it on the recorded cluster of namespaces; submitted from a worker node, watched from the host."""
    config = {**CONFIG, "checkpoint.storage": str(folder / "checkpoints")}
    settings = [f"--set={key}={value}" for key, value in config.items()]
    command = [
        *(
            sys.executable,
            "-c",
            "from rayflow.cli.main import main; main()",
            "run",
            "tests/chaos/soak_job.py",
        ),
        *("--parallelism=3", "--detach", f"--output={folder}/out", f"--until={folder}/until", *settings),
    ]
    cluster = namespaces.recorded()
    environment = {**os.environ, **cluster.environment(), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        cluster.command(1, command), capture_output=True, text=True, timeout=200, cwd=ROOT, env=environment
    )
    if done.returncode:
        raise TransientError(f"the job could not be submitted: {done.stderr}")
    view = StoredView(folder / "checkpoints", done.stdout.split()[-1])
    return _run(round_, folder, view, NamespaceEffects(namespaces))


def _run(round_: Round, folder: Path, job: Any, effects: Effects) -> dict[str, Any]:
    begun_s = time.monotonic()
    _await(job, lambda d: d["checkpoints"]["completed"] > 0, 180)
    faults = _faults(round_, job.describe())
    (folder / "schedule.json").write_text(faults.to_text())
    injector = Injector(
        job, effects, replace_nodes=True, on_fault=lambda f: print(f"  {_line(f)}", flush=True)
    )
    try:
        injector.run(faults.faults)
    finally:
        injector.close()
    report = injector.report(round_.seed)
    last = soak_job.tell_end(folder / "out", folder / "until", RATE)
    problem = None
    try:
        _await(job, lambda d: d["state"] in ENDED, END_WITHIN_S, AT_MOST_S)
    except TransientError as error:
        problem = str(error)
    description = job.describe()
    tables = [ds.dataset(folder / "out" / name, format="parquet").to_table() for name in ("rows", "counts")]
    verdicts = [check_rows(tables[0], last), check_counts(tables[1], last)]
    return {
        "name": round_.name,
        "seed": round_.seed,
        "seconds": round(time.monotonic() - begun_s),
        "state": description["state"],
        "problem": problem or description.get("failure"),
        "injected": report["injected"],
        "skipped": report["skipped"],
        "restarts": description["restarts_total"],
        "recovery": report["recovery"],
        "first_row": recoveries(
            [
                {"at_ms": f["at_ms"], "target": _kind(f)}
                for f in report["faults"]
                if f["outcome"] == "injected"
            ],
            folder / "out" / "rows",
        ),
        "rows": verdicts[0].to_json(),
        "counts": verdicts[1].to_json(),
        "faults": report["faults"],
        "passed": description["state"] == "FINISHED" and all(v.exact for v in verdicts),
    }


def _faults(round_: Round, description: dict[str, Any]) -> Any:
    kinds = round_.kinds(subtask_targets(description))
    return draw(kinds, every_ms=round_.every_ms, seed=round_.seed, times=round_.times)


def _await(
    job: Any, condition: Callable[[dict[str, Any]], bool], within_s: float, at_most_s: float | None = None
) -> None:
    """Wait until the condition holds, for `within_s`; with `at_most_s` for so long, as long as checkpoints complete."""
    begun_s = time.monotonic()
    deadline_s, completed = begun_s + within_s, 0
    while True:
        try:
            description = job.describe()
            if condition(description):
                return
            if at_most_s is not None and description["checkpoints"]["completed"] > completed:
                completed = description["checkpoints"]["completed"]
                deadline_s = min(time.monotonic() + within_s, begun_s + at_most_s)
            if description["state"] in ("FAILED", "CANCELLED"):
                raise TransientError(f"the job ended as {description['state']}: {description['failure']}")
            state = description["state"]
        except TransientError as error:
            if "the job ended as" in str(error):
                raise
            state = str(error)
        if time.monotonic() > deadline_s:
            raise TransientError(f"not within {time.monotonic() - begun_s:.0f} s; the job is {state}")
        time.sleep(0.5)


def _kind(fault: dict[str, Any]) -> str:
    return "job manager" if fault["target"] == "jobmanager" and fault["action"] == "kill" else "subtask"


def _line(fault: dict[str, Any]) -> str:
    shown = {k: fault[k] for k in ("action", "target", "peer", "for_ms", "one_way", "flaps") if k in fault}
    return f"{json.dumps(shown)} {fault['outcome']}: {', '.join(fault['victims'][:2])}"


def counted(rounds: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    """Yield how many faults of each kind were injected."""
    found: dict[str, int] = {}
    for round_ in rounds:
        for fault in round_["faults"]:
            if fault["outcome"] == "injected":
                name = f"{fault['action']} {str(fault['target']).partition(':')[0]}".replace("_", " ")
                found[name] = found.get(name, 0) + 1
    yield from sorted(found.items())
