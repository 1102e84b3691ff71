"""What is known of processes that end inside a user's function."""

from __future__ import annotations

import subprocess
import sys
from queue import Queue

import pytest
from ray.exceptions import RayActorError

from rayflow.actors import last_words
from rayflow.actors.last_words import crash_report, is_to_blame, node_memory, watch_memory
from rayflow.actors.ray_pool import what_ended

CRASH = """
import ctypes, faulthandler
faulthandler.enable()
def crash():
    ctypes.string_at(0)
crash()
"""


def test_a_crash_in_native_code_is_told_with_the_users_line(tmp_path):
    script, said = tmp_path / "job.py", tmp_path / "stderr"
    script.write_text(CRASH)
    with open(said, "wb") as file:
        file.write(b"something before\n" * 3)
        file.flush()
        assert subprocess.run([sys.executable, script], stderr=file, check=False).returncode < 0
    assert crash_report(str(said)) == f'Segmentation fault, at File "{script}", line 5 in crash'


def test_a_stderr_that_tells_nothing_or_is_not_here_gives_no_report(tmp_path):
    (tmp_path / "quiet").write_text("all well\n")
    assert crash_report(str(tmp_path / "quiet")) is None
    assert crash_report(str(tmp_path / "elsewhere")) is None
    assert crash_report("") is None


@pytest.mark.parametrize(
    ("own", "available", "blame"), [(90, 5, True), (90, 50, False), (20, 5, False), (20, 50, False)]
)
def test_only_a_process_over_its_share_ends_itself_and_only_when_memory_runs_out(own, available, blame):
    assert is_to_blame(own, 30, available, 100) is blame


def test_the_nodes_memory_is_read():
    available, total = node_memory()
    assert 0 < available <= total


def test_the_memory_watch_ends_the_process_once_and_says_how_much_it_uses(monkeypatch):
    monkeypatch.setattr(last_words, "node_memory", lambda: (1 << 20, 1 << 30))
    ended = Queue()
    watch_memory(lambda: 300 << 20, 100 << 20, lambda: None, lambda at_work, why: ended.put((at_work, why)))
    at_work, why = ended.get(timeout=20)
    assert at_work.operator == "unknown"
    assert "uses 300 MiB, more than its share (memory.process is 100 MiB)" in why
    assert ended.empty()


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR",
            "without a word",
        ),
        ("The actor died because its node has died. Node Id: abc", "its node died"),
        ("Worker exit type: NODE_OUT_OF_MEMORY Worker exit detail: …", "ran low on memory"),
        ("The actor is dead because it was killed by `ray.kill`.", "was ended through Ray"),
        ("something new\nand more", "its process ended: Died: something new"),
    ],
)
def test_what_ray_says_of_a_dead_process_is_put_in_plain_words(said, told):
    assert told in what_ended(Died(said))


class Died(RayActorError):
    def __init__(self, text):
        self.text = text

    def __str__(self):
        return self.text


EXIT = """
import os, sys
import pyarrow as pa
from rayflow.actors.last_words import tell_exits
import rayflow as rf
env = rf.StreamEnvironment(name="exits", parallelism=1)
def leave(batch):
    os._exit(3)
env.from_rows([{"a": 1}]).map_batches(leave, returns={"a": "int64"}).name("leaving").discard()
bare = tell_exits(lambda at, why: print(at.operator, "|", at.location, "|", why, flush=True))
if sys.argv[1:]:
    os._exit(4)
env.execute(local=True)
"""


@pytest.mark.parametrize("outside", [False, True])
def test_a_function_that_ends_its_process_is_told_on_and_nobody_else_is(tmp_path, outside):
    script = tmp_path / "job.py"
    script.write_text(EXIT)
    done = subprocess.run(
        [sys.executable, script, *["outside"] * outside],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if outside:
        assert (done.returncode, done.stdout) == (4, "")
    else:
        operator, location, why = done.stdout.strip().split(" | ")
        assert done.returncode == 3
        assert operator == "leaving"
        assert "job.py:9" in location
        assert why == "the function ended its process: os._exit(3)"
