"""`rayflow metrics`: what a handle tells, as a table and as JSON."""

from __future__ import annotations

import json

import pytest

METRICS = {
    "job_id": "job-1",
    "state": "RUNNING",
    "attempt": 2,
    "at": "2024-01-01T00:00:00Z",
    "operators": {
        "source-1": {"watermark": "2024-01-01T00:00:00Z", "rows_in": 1234, "null_time_rows": 3},
        "window-1": {"watermark": None, "rows_in": 0},
    },
    "subtasks": [],
}


class Handle:
    def metrics(self):
        return METRICS


@pytest.fixture(autouse=True)
def handle(monkeypatch):
    monkeypatch.setattr("rayflow.cli.inspect_commands._handle", lambda job, address: Handle())


def test_json_is_what_the_handle_says(rayflow):
    code, out, _ = rayflow("metrics", "job-1", "--json")
    assert code == 0
    assert json.loads(out) == METRICS


def test_the_table_has_counters_and_watermarks(rayflow):
    code, out, _ = rayflow("metrics", "job-1")
    assert code == 0
    assert "job-1  RUNNING  attempt 2" in out
    source, window = out.splitlines()[3:5]
    assert source.split() == ["source-1", "1,234", "2024-01-01T00:00:00Z", "null_time_rows", "3"]
    assert window.split() == ["window-1", "0", "–", "–"]
