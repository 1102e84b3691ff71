"""`rayflow memory`: a table that a person can follow, and JSON."""

from __future__ import annotations

import json

import pytest


def test_the_model_is_shown_from_the_process_down(rayflow):
    code, out, _ = rayflow("memory", "--process", "8g")
    assert code == 0
    lines = [line.split()[:3] for line in out.splitlines()[2:9]]
    assert lines == [
        ["process", "8,192", "given"],
        ["−", "cutoff", "2,048"],
        ["=", "usable", "6,144"],
        ["−", "network", "614.4"],
        ["=", "rest", "5,529.6"],
        ["−", "managed", "4,423.68"],
        ["=", "user", "1,105.92"],
    ]
    assert "2,048 + 614.4 + 4,423.68 + 1,105.92 = 8,192 MiB" in out


def test_the_model_is_shown_from_the_user_share_up(rayflow):
    code, out, _ = rayflow("memory", "--user", "1105.92MiB")
    assert code == 0
    names = [line[2:].split()[0] for line in out.splitlines()[2:9]]
    assert names == ["user", "managed", "rest", "network", "usable", "cutoff", "process"]
    assert "8,192  usable ÷ (1 − 0.25)" in out


def test_json_has_every_size_in_bytes_and_they_add_up(rayflow):
    code, out, _ = rayflow("memory", "--user", "1g", "--managed", ".3", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["user_bytes"] == 1 << 30
    assert (found["known"], found["fractions"]["managed"]) == ("user", 0.3)
    parts = ("cutoff_bytes", "network_bytes", "managed_bytes", "user_bytes")
    assert sum(found[part] for part in parts) == found["process_bytes"]


def test_without_a_size_it_is_the_default_of_a_job(rayflow):
    _, out, _ = rayflow("memory", "--json")
    assert json.loads(out)["process_bytes"] == 1 << 30


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--process", "8g", "--user", "1g"), "not both"),
        (("--process", "huge"), "process: expected a size"),
        (("--process", "10MiB"), "no room beside the network buffers"),
        (("--cutoff", "1.5"), "cutoff: expected a fraction from 0 to below 1; got '1.5'"),
        (("--user", "0"), "at least 1 byte"),
    ],
)
def test_bad_input_is_named_and_exits_with_2(rayflow, arguments, message):
    code, out, err = rayflow("memory", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
