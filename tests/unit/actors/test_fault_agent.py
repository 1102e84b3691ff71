"""The agent signals processes of the expected kind only, and ends what it began."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayflow.actors.fault_agent import FaultAgent

# As Ray names the process of an actor.
ACTOR = "import sys; print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def actor(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        ["ray::SubtaskActor", "-c", ACTOR],
        executable=sys.executable,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def state(process: subprocess.Popen[bytes]) -> str:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]


def within(condition: Callable[[], bool], seconds: float = 30) -> bool:
    deadline_s = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.02)
    return True


def test_a_process_is_killed(actor: subprocess.Popen[bytes]) -> None:
    assert FaultAgent().kill("subtask", actor.pid)
    assert actor.wait(10) == -9


def test_a_process_of_another_kind_is_left_alone(actor: subprocess.Popen[bytes]) -> None:
    agent = FaultAgent()
    assert not agent.kill("jobmanager", actor.pid)
    assert not agent.stop("jobmanager", actor.pid, 10)
    assert not agent.fail_writes("jobmanager", actor.pid, 10)
    assert not agent.kill("subtask", 1)
    assert actor.poll() is None


def test_a_process_that_is_gone_is_no_error(actor: subprocess.Popen[bytes]) -> None:
    actor.kill()
    actor.wait()
    assert not FaultAgent().kill("subtask", actor.pid)
    FaultAgent().resume(actor.pid)


def test_a_stopped_process_goes_on_by_itself(actor: subprocess.Popen[bytes]) -> None:
    assert FaultAgent().stop("subtask", actor.pid, 300)
    assert within(lambda: state(actor) == "T")
    assert within(lambda: state(actor) != "T")


def test_a_stopped_process_can_be_told_to_go_on(actor: subprocess.Popen[bytes]) -> None:
    agent = FaultAgent()
    assert agent.stop("subtask", actor.pid, 600_000)
    assert within(lambda: state(actor) == "T")
    agent.resume(actor.pid)
    assert within(lambda: state(actor) != "T")


def test_writes_fail_for_a_while(actor: subprocess.Popen[bytes]) -> None:
    before = resource.prlimit(actor.pid, resource.RLIMIT_FSIZE)
    assert FaultAgent().fail_writes("subtask", actor.pid, 300)
    assert within(lambda: resource.prlimit(actor.pid, resource.RLIMIT_FSIZE)[0] == 0, 5)
    assert within(lambda: resource.prlimit(actor.pid, resource.RLIMIT_FSIZE) == before)
