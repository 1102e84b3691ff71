from __future__ import annotations

import json
from datetime import datetime

import pyarrow as pa

from rayflow.cli.tables import echo_arrow, json_text, text_table


def test_numbers_are_grouped_and_stand_on_the_right_texts_on_the_left():
    assert text_table(("name", "rows"), [("a", 1234567), ("long name", None)]) == (
        "name            rows\n─────────  ─────────\na          1,234,567\nlong name          –"
    )


def test_no_cell_is_cut_or_broken_over_lines():
    text = text_table(("x",), [("a" * 300,), ("b\nc",)])
    assert "a" * 300 in text
    assert len(text.splitlines()) == 4


def test_wide_characters_count_double():
    assert text_table(("a", "b"), [("日本", "x"), ("ab", "y")]).splitlines()[2:] == ["日本  x", "ab    y"]


def test_json_has_texts_for_what_it_has_no_type_for():
    assert json.loads(json_text({"t": datetime(2013, 1, 1), "b": b"\x01", "s": {1}.__class__})) == {
        "t": "2013-01-01T00:00:00",
        "b": "01",
        "s": "<class 'set'>",
    }


def test_of_a_long_value_of_arrow_the_beginning_is_shown_and_how_long_it_is(capsys):
    echo_arrow(pa.table({"x": ["a" * 5_000, "b"], "y": [[1] * 1_000, [2]]}), None)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) < 500
    assert "aaa… (5,000 characters)" in text
    assert "… (3,000 characters)" in text
