"""How long a job takes to recover: `python -m tests.chaos.bench_recovery [--faults subtask,manager,node] [--times 3]`.

Runs one job on a cluster of its own of three nodes (`rayflow cluster up`, in a data folder of its own), hurts it again
and again, and prints a table: medians, in seconds. *Total* is measured from outside: from the kill to the first file of
rows that appears in the output after the new attempt runs (with a checkpoint every 100 ms). The other columns are
what the job's `recovered` events say; they begin at the last sign of life, not at the kill, and end at the first row
at a sink.

Faults: `subtask`, `manager`, `both` processes; `node` kills a node that the job's manager is not on, `manager-node` the
one that it is on (never the head, which has Ray's control store), and both add a fresh node afterwards.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import ray

from rayflow.actors.specs import NAMESPACE, worker_prefix
from rayflow.actors.standby import find_seat, leads
from rayflow.client import local_cluster
from rayflow.client.ray_session import close_session, open_session
from tests.chaos.victim import Victim

PARTS = ("detect_ms", "reset_ms", "restore_ms", "replay_ms")
LIMITS_S = {"subtask": 3.0, "manager": 12.0, "both": 12.0, "node": 8.0, "manager-node": 12.0}
_QUIET_S = 3.0
_SUBTASKS = 4


def main() -> None:
    """Run, print the table and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", default="subtask,manager,both,node")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="the job's configuration"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rayflow-bench-") as folder:
        os.environ["RAYFLOW_HOME"] = folder
        os.environ.pop("RAY_ADDRESS", None)
        local_cluster.up(3)
        try:
            open_session()
            config = dict(text.split("=", 1) for text in options.set)
            _run(Path(folder), options.faults.split(","), options.times, config)
        finally:
            close_session()
            local_cluster.down()


def _run(folder: Path, faults: list[str], times: int, config: dict[str, str]) -> None:
    settings = {
        "checkpoint.interval": "100ms",
        "heartbeat.interval": "1s",
        "heartbeat.timeout": "5s",
        "restart.delay": "100ms",
    }
    victim = Victim(folder, "bench-recovery", 1_000, **{**settings, **config})
    victim.until(lambda: victim.settled(0))
    print(
        f"{'fault':<14}{'n':>3}{'detect':>9}{'reset':>9}{'restore':>9}{'replay':>9}{'total':>9}{'worst':>9}{'limit':>9}"
    )
    for fault in faults:
        found = [_measure(victim, fault) for _ in range(times)]
        parts = [statistics.median(event[part] / 1000 for event, _ in found) for part in PARTS]
        totals = [total_s for _, total_s in found]
        numbers = [*parts, statistics.median(totals), max(totals), LIMITS_S[fault]]
        print(f"{fault:<14}{times:>3}" + "".join(f"{number:>9.2f}" for number in numbers), flush=True)
    print(f"verdict: {victim.verdict(victim.finish())}")


def _measure(victim: Victim, fault: str) -> tuple[dict[str, Any], float]:
    """Hurt the job once; return its `recovered` event, and the seconds from the kill to the first new rows."""
    victim.until(lambda: _spare_is_up(victim))
    if victim.env.config.get("jobmanager.standby") == "true":
        victim.until(lambda: sorted(map(str, _seats(victim))) == ["False", "True"])
    # It loads the job's code yet.
    time.sleep(_QUIET_S)
    before = victim.attempt
    hurt = FAULTS[fault](victim)
    killed_s = time.time()
    hurt()
    event = victim.until(lambda: _event(victim, "recovered", before))
    running_s = datetime.fromisoformat(_event(victim, "attempt_running", before)["at"]).timestamp()
    first_s = victim.until(lambda: _first_file_s(victim.out, running_s))
    victim.until(lambda: victim.settled(before))
    if "node" in fault:
        local_cluster.add_node()
    return event, first_s - killed_s


def _spare_is_up(victim: Victim) -> bool:
    """Whether there are more worker processes than subtasks, and all answer."""
    prefix = worker_prefix(victim.job.id)
    known = ray.util.list_named_actors(all_namespaces=True)
    names = [actor["name"] for actor in known if actor["name"].startswith(prefix)]
    if len(names) <= _SUBTASKS:
        return False
    try:
        # To the tenure 0 nobody belongs: it changes nothing.
        pings = [ray.get_actor(name, namespace=NAMESPACE).ping.remote(0) for name in names]
        return len(ray.wait(pings, num_returns=len(pings), timeout=1.0)[0]) == len(pings)
    except ValueError:
        return False


def _seats(victim: Victim) -> list[bool | None]:
    """Whether each of the manager's seats leads; None where nobody is or answers."""
    actors = [find_seat(victim.job.id, seat) for seat in (0, 1)]
    return [None if actor is None else leads(actor, 5) for actor in actors]


def _event(victim: Victim, type_: str, after: int) -> dict[str, Any] | None:
    found = [e for e in victim.job.events() if e["type"] == type_ and e["attempt"] > after]
    return found[0] if found else None


def _first_file_s(out: Path, since_s: float) -> float | None:
    return min((t for file in out.glob("*.parquet") if (t := file.stat().st_mtime) > since_s), default=None)


def _node(victim: Victim, *, of_manager: bool) -> Callable[[], Any]:
    """Return what kills a node with subtasks of the job, that of its manager or another, and never the head."""
    described = victim.job.describe()
    cluster = local_cluster.recorded_cluster()
    assert cluster is not None, "this command has started it"
    numbers = {
        node.number: {pid for pid, _ in local_cluster.session_members(node.pid)} for node in cluster.nodes[1:]
    }
    manager = described["job_manager"]["pid"]
    workers = {s["pid"] for s in described["subtasks"]}
    for number, pids in numbers.items():
        if workers & pids and (manager in pids) is of_manager:
            return lambda: local_cluster.kill_node(number)
    raise RuntimeError(
        f"no node but the head has what is to be killed; the manager is {manager}, nodes {list(numbers)}"
    )


def _subtask(victim: Victim) -> Callable[[], Any]:
    pid = victim.keyed(0)
    return lambda: victim.kill(pid)


def _manager(victim: Victim) -> Callable[[], Any]:
    pid = victim.job.describe()["job_manager"]["pid"]
    return lambda: victim.kill(pid)


def _both(victim: Victim) -> Callable[[], Any]:
    pids = victim.job.describe()["job_manager"]["pid"], victim.keyed(0)
    return lambda: victim.kill(*pids)


FAULTS: dict[str, Callable[[Victim], Callable[[], Any]]] = {
    "subtask": _subtask,
    "manager": _manager,
    "both": _both,
    "node": lambda victim: _node(victim, of_manager=False),
    "manager-node": lambda victim: _node(victim, of_manager=True),
}


if __name__ == "__main__":
    main()
