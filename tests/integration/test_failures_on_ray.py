"""One job on real Ray that is hurt at chosen moments, again and again: its output is as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pyarrow.dataset as ds
import pytest

import rayflow as rf
from rayflow.client.chaos.effects import RayEffects
from rayflow.client.processes import is_alive, started_at
from tests.chaos.victim import NOTHING_WRONG, WAIT_S, Victim

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray"), pytest.mark.timeout(1_200)]


def gone(processes) -> bool:
    """Wait until these processes have ended."""
    given_up_s = time.monotonic() + WAIT_S
    while any(is_alive(*p) for p in processes):
        if time.monotonic() > given_up_s:
            return False
        time.sleep(0.1)
    return True


def workers_of(job_id: str) -> list[str]:
    """Names of the job's worker actors that Ray knows."""
    import ray

    from rayflow.actors.specs import worker_prefix

    known = ray.util.list_named_actors(all_namespaces=True)
    return [actor["name"] for actor in known if actor["name"].startswith(worker_prefix(job_id))]


def test_a_job_that_is_killed_at_every_moment_is_exactly_once_and_leaves_nothing_behind(tmp_path):
    victim = Victim(tmp_path, "victim")
    try:
        victim.until(lambda: victim.settled(0))
        before = victim.pids()

        # A source while it reads; a keyed subtask while it aligns, held up.
        victim.survives(lambda: victim.kill(victim.source(0)))
        victim.held(acknowledged=2)
        victim.survives(lambda: victim.kill(victim.keyed(0)))

        # A source after its acknowledgement, before the checkpoint is complete; a second one during the recovery.
        victim.held(acknowledged=2)
        victim.survives(lambda: victim.kill(victim.source(1), victim.keyed(1)))
        victim.survives(lambda: (victim.kill(victim.source(1)), victim.kill(victim.keyed(0))))

        # The manager, with a checkpoint under way, and right after one was published.
        victim.held(acknowledged=2)
        victim.survives(victim.kill_manager)
        done = len(victim.job.checkpoints())
        victim.until(lambda: len(victim.job.checkpoints()) > done)
        victim.survives(victim.kill_manager)

        # The manager and a subtask; everything at once.
        victim.survives(lambda: victim.kill_manager(victim.keyed(1)))
        victim.survives(lambda: victim.kill(*victim.pids()))

        # Stopped for longer than anybody waits: when it goes on its place is taken.
        keyed = victim.keyed(0)
        victim.survives(lambda: victim.stop_until_replaced(keyed))

        ours = [(pid, started_at(pid)) for pid in victim.pids()]
        rows = victim.finish()
    finally:
        with suppress(Exception):
            victim.job.cancel()
    assert victim.verdict(rows) == NOTHING_WRONG
    assert rows.num_rows > 1_000
    assert not set(before) & {pid for pid, _ in ours}

    described = victim.job.describe()
    assert len(described["restarts"]) >= 9
    # Those noted less than a second before the manager was killed are not on storage.
    told = [e for e in victim.job.events() if e["type"] == "recovered"]
    assert len(told) >= 3
    parts = ("detect_ms", "reset_ms", "restore_ms", "replay_ms")
    assert all(sum(e[part] for part in parts) == e["total_ms"] for e in told)
    assert all(e[part] >= 0 for e in told for part in parts)
    assert gone(ours), "the manager stays for a moment, then all processes of the job have ended"
    assert workers_of(victim.job.id) == []


def seats(job_id: str) -> list[bool | None]:
    """Whether the actor in each of the manager's two seats leads; None where there is none that answers."""
    from rayflow.actors.standby import find_seat, leads

    actors = [find_seat(job_id, seat) for seat in (0, 1)]
    return [None if actor is None else leads(actor, 5) for actor in actors]


def leader(victim: Victim) -> int:
    """Process of the manager that leads."""
    return int(victim.job.describe()["job_manager"]["pid"])


@pytest.mark.chaos
def test_a_standby_takes_the_managers_place_and_the_one_that_was_killed_stands_by_in_turn(tmp_path):
    victim = Victim(tmp_path, "stood-by", **{"jobmanager.standby": "true", "restart.spares": "0"})
    try:
        victim.until(lambda: victim.settled(0) and seats(victim.job.id) == [True, False])
        # A kill of all takes it with it, though no description shows it. Who is slow to answer is passed over once.
        victim.until(lambda: [p.name for p in RayEffects().hidden(victim.job.describe())] == ["standby"])
        for _ in range(2):
            before = leader(victim)
            victim.survives(victim.kill_manager)
            # Which of the two leads is not said: a standby that did not answer for `heartbeat.timeout` is taken for
            # dead by the one that Ray has restarted.
            victim.until(lambda: sorted(map(str, seats(victim.job.id))) == ["False", "True"])
            assert leader(victim) != before
        rows = victim.finish()
    finally:
        with suppress(Exception):
            victim.job.cancel()
    assert victim.verdict(rows) == NOTHING_WRONG
    assert len(victim.job.describe()["restarts"]) >= 2
    given_up_s = time.monotonic() + WAIT_S
    while seats(victim.job.id) != [None, None]:
        assert time.monotonic() < given_up_s
        time.sleep(0.2)


JOB = """
import pyarrow as pa
import rayflow as rf

def numbers(start, count):
    return pa.record_batch({"n": range(start, start + count)})

def build(env, *, output: str):
    env.generate(numbers, rows=8_000, rate_limit=2_000).write_parquet(output)

if __name__ == "__main__":
    rf.run(build)
"""


def test_a_job_whose_command_is_killed_goes_on_and_is_found_by_name(tmp_path, local_ray):
    script, out = tmp_path / "orphaned.py", tmp_path / "out"
    script.write_text(JOB)
    command = [sys.executable, str(script), "--address", local_ray, "--output", str(out)]
    driver = subprocess.Popen([*command, "--set", "checkpoint.interval=300ms"], stdout=subprocess.DEVNULL)
    given_up_s = time.monotonic() + WAIT_S

    def found():
        assert time.monotonic() < given_up_s
        return next((j for j in rf.connect().jobs() if j["name"] == "orphaned"), None)

    while (job := found()) is None or job["state"] != "RUNNING":
        time.sleep(0.1)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL
    assert rf.connect().job("orphaned").wait(timeout=WAIT_S).state == "FINISHED"
    numbers = ds.dataset(out, format="parquet").to_table()["n"].to_pylist()
    assert sorted(numbers) == list(range(8_000))
