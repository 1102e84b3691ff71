"""Folders of dead processes go; those of the living stay."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rayflow.model.errors import ConfigError
from rayflow.state.disk.scratch import LocalDisk, Scratch

HOLDS = """
import sys, time
from pathlib import Path
from rayflow.state.disk.scratch import Scratch
store = Scratch(Path(sys.argv[1])).open_rows("held", 1 << 20)
store.write([(b"k", b"v")])
print("held", flush=True)
time.sleep(60)
"""


def folders(parent: Path) -> list[str]:
    return sorted(folder.name.partition("-")[0] for folder in parent.iterdir() if folder.is_dir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_the_livings_is_not(tmp_path: Path) -> None:
    holders = [
        subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE) for _ in "ab"
    ]
    try:
        for holder in holders:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
        assert folders(tmp_path) == sorted(str(holder.pid) for holder in holders)
        holders[0].send_signal(signal.SIGKILL)
        holders[0].wait(10)
        scratch = Scratch(tmp_path)
        scratch.open_rows("mine", 1 << 20).close()
        assert folders(tmp_path) == sorted([str(holders[1].pid), str(os.getpid())])
        scratch.remove()
        assert folders(tmp_path) == [str(holders[1].pid)]
    finally:
        for holder in holders:
            holder.kill()
            holder.wait(10)


def test_stores_of_one_name_do_not_meet(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    first, second = scratch.open_rows("job/uid 1", 1 << 20), scratch.open_rows("job/uid 1", 1 << 20)
    first.write([(b"k", b"1")])
    assert second.get([b"k"]) == [None]
    first.close()
    second.close()
    scratch.remove()


def test_a_place_that_cannot_hold_state_is_an_error_of_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match=r"state\.dir: .*file/rayflow-state-\d+ cannot hold state"):
        LocalDisk().open_rows(str(file), "rows", 1 << 20, False)
