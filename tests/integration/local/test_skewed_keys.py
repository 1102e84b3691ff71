"""jobs/skewed_keys.py: what a person who runs it sees."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rayflow.cli.job_file import load_job

JOB = Path(__file__).parents[3] / "jobs" / "skewed_keys.py"


def test_it_shows_a_skewed_stream_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    load_job(JOB).build.__globals__["compare"](parallelism=4, rows=200_000)
    out = capsys.readouterr().out
    table = {
        line.split()[0]: line
        for line in out.splitlines()
        if re.match(r"(none|local|salt|auto|uniform) ", line)
    }
    to_mean = {name: float(line.split()[5]) for name, line in table.items()}
    assert list(to_mean) == ["none", "local", "salt", "auto", "uniform"]
    assert to_mean["none"] > 1.5
    assert max(to_mean[name] for name in ("local", "salt", "auto", "uniform")) < 1.2
    assert out.splitlines()[-1] == "results with and without rf.Skew: equal"
