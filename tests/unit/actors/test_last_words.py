"""What is known of processes that end inside a user's function."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ray.exceptions import RayActorError

from rayflow.actors.last_words import crash_report
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
