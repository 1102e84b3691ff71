"""`rayflow metrics`: what a handle tells, as a table and as JSON."""

from __future__ import annotations

import json
import re

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
    "skew": {
        "window-1": {
            "rows": [1200, 34],
            "busiest": 0,
            "busiest_to_mean": 1.945,
            "busiest_to_least": 35.294,
            "hot_keys": [
                {"key": "'a b'", "hash": "00ff", "share": 0.5, "share_least": 0.48},
                {"key": None, "hash": "01ff", "share": 0.2, "share_least": 0.15},
                {"key": "'rare'", "hash": "02ff", "share": 0.2, "share_least": 0.001},
            ],
            "key_groups": [{"key_group": 7, "subtask": 0, "rows": 600, "share": 0.5}],
        }
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


def test_hot_keys_have_a_table_of_their_own_without_rare_ones(rayflow):
    _, out, _ = rayflow("metrics", "job-1")
    row = out.split("rows by key")[1].splitlines()[3]
    assert re.split(" {2,}", row) == [
        *("window-1", "1,200 34", "0", "1.945", "35.29"),
        *("'a b' 48.0%, 01ff 15.0%", "7 50.0%"),
    ]
