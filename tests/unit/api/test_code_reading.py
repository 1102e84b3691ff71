"""What is told of users' code without running it."""

from __future__ import annotations

import functools
import json
from json import loads
from typing import Any

import pytest

from rayflow.api.code_reading import calls_per_row, mentions, parses_json


def by_module(row: dict[str, Any]) -> Any:
    return json.loads(row["line"])


def within_a_lambda(row: dict[str, Any]) -> Any:
    return [(lambda text: json.dumps(text))(value) for value in row.values()]


class Parser:
    def __call__(self, row: dict[str, Any]) -> Any:
        return json.loads(row["line"])


def no_json(row: dict[str, Any]) -> Any:
    return {"json": row["json"]}


@functools.wraps(by_module)
def wrapped(row: dict[str, Any]) -> Any:
    return by_module(row)


@pytest.mark.parametrize(
    "fn", [by_module, within_a_lambda, Parser, Parser(), wrapped, lambda r: json.loads(r)]
)
def test_a_function_that_uses_json_is_found(fn: Any) -> None:
    assert parses_json(fn)


@pytest.mark.parametrize("fn", [no_json, str.split, len, dict, functools.partial(no_json), lambda row: loads])
def test_others_are_not(fn: Any) -> None:
    assert not parses_json(fn)


class Base:
    def on_timer(self, ts: Any, ctx: Any) -> Any:
        self.total.clear()  # type: ignore[attr-defined]


class Derived(Base):
    def process(self, row: Any, ctx: Any) -> Any:
        return ()


def test_names_are_looked_for_in_bases_too() -> None:
    assert mentions(Derived, frozenset({"clear"}))
    assert not mentions(Derived, frozenset({"remove"}))


class Inserting:
    cursor: Any

    def write(self, batch: Any) -> None:
        for row in batch.to_pylist():
            values = tuple(row.values())
            self.cursor.execute("insert", values)


class Gathering:
    rows: Any
    cursor: Any

    def write(self, batch: Any) -> None:
        for row in batch.to_pylist():
            self.rows.append(row)
        self.cursor.executemany("insert", self.rows)


class Encoding:
    lines: Any

    def write(self, batch: Any) -> None:
        for row in batch.to_pylist():
            self.lines.append(json.dumps(row))


class AtOnce:
    cursor: Any

    def write(self, batch: Any) -> None:
        self.cursor.executemany("insert", [tuple(row.values()) for row in batch.to_pylist()])


def test_a_call_for_each_row_is_named() -> None:
    assert calls_per_row(Inserting.write) == "self.cursor.execute"


@pytest.mark.parametrize("method", [Gathering.write, Encoding.write, AtOnce.write, len, str.join])
def test_gathering_rows_is_no_such_call(method: Any) -> None:
    assert calls_per_row(method) is None
