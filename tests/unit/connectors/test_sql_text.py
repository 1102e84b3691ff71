"""Rows as COPY lines and as MariaDB literals, read back by plain Python; and what errors of drivers are about."""

from __future__ import annotations

import re
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import rayflow as rf
from rayflow.connectors.extras import needed
from rayflow.connectors.sql_servers import judged
from rayflow.connectors.sql_text import copy_lines, mysql_values

CELLS = st.one_of(st.none(), st.text(alphabet="ab\\\t\n\r'N\0,()\u00e9\U0001f986", max_size=6))
TABLES = st.lists(st.tuples(CELLS, st.one_of(st.none(), st.integers(-99, 99))), min_size=1, max_size=8)


def batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    texts, numbers = zip(*rows)
    return pa.record_batch({"s": pa.array(texts, pa.string()), "n": pa.array(numbers, pa.int64())})


def read_copy(data: str) -> list[tuple[Any, ...]]:
    """As PostgreSQL's documentation has the text format."""
    plain = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}

    def cell(text: str) -> str | None:
        return None if text == "\\N" else re.sub(r"\\(.)", lambda found: plain[found[1]], text)

    assert data.endswith("\n")
    rows = [[cell(text) for text in line.split("\t")] for line in data[:-1].split("\n")]
    return [(s, None if n is None else int(n)) for s, n in rows]


@given(TABLES, st.integers(0, 3))
def test_copy_lines_read_back(rows: list[tuple[Any, ...]], skipped: int) -> None:
    # A slice, whose buffers begin before it and end behind it.
    given = batch(rows * 2).slice(min(skipped, len(rows)), len(rows))
    assert read_copy(bytes(copy_lines(given)).decode()) == [tuple(row.values()) for row in given.to_pylist()]


LITERAL = re.compile(r"NULL|-?\d+|'(?:[^'\\]|\\.)*'", re.DOTALL)


@given(TABLES)
def test_mysql_literals_read_back(rows: list[tuple[Any, ...]]) -> None:
    text, at, found = bytes(mysql_values(batch(rows))).decode(), 0, list[Any]()
    for index in range(2 * len(rows)):
        before = "(" if index == 0 else ",(" if index % 2 == 0 else ","
        assert text.startswith(before, at)
        literal = LITERAL.match(text, at + len(before))
        assert literal is not None
        at = literal.end()
        if index % 2:
            assert text[at] == ")"
            at += 1
        found.append(literal[0])
    assert at == len(text)
    read = [_mysql_value(literal) for literal in found]
    assert list(zip(read[::2], read[1::2])) == rows


def _mysql_value(literal: str) -> Any:
    if literal == "NULL":
        return None
    if not literal.startswith("'"):
        return int(literal)
    return re.sub(r"\\(.)", lambda m: "\0" if m[1] == "0" else m[1], literal[1:-1], flags=re.DOTALL)


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("40P01", "retry"),  # deadlock
        ("40001", "retry"),  # serialization failure
        ("53100", "retry"),  # disk full
        ("53300", "retry"),  # too many connections
        ("57P01", "retry"),  # shut down
        ("57014", "retry"),  # statement timeout
        ("22001", "refused"),  # too long
        ("23514", "refused"),  # check
        ("42P01", "fatal"),  # no such table
        ("42501", "fatal"),  # no privilege
        ("28P01", "fatal"),  # wrong password
    ],
)
def test_what_errors_of_postgresql_are_about(state: str, verdict: str) -> None:
    psycopg = pytest.importorskip("psycopg")
    assert judged(psycopg.errors.lookup(state)("it said no")) == verdict


@pytest.mark.parametrize(
    ("code", "kind", "verdict"),
    [
        (1213, "OperationalError", "retry"),  # deadlock
        (1205, "OperationalError", "retry"),  # lock wait timeout
        (1114, "OperationalError", "retry"),  # table full
        (2013, "OperationalError", "retry"),  # lost connection
        (1406, "DataError", "refused"),  # too long
        (4025, "OperationalError", "refused"),  # check
        (1062, "IntegrityError", "refused"),  # duplicate
        (1045, "OperationalError", "fatal"),  # access denied
        (1146, "ProgrammingError", "fatal"),  # no such table
    ],
)
def test_what_errors_of_mariadb_are_about(code: int, kind: str, verdict: str) -> None:
    pymysql = pytest.importorskip("pymysql")
    assert judged(getattr(pymysql.err, kind)(code, "it said no")) == verdict


def test_what_is_not_installed_is_named_with_what_installs_it() -> None:
    with pytest.raises(rf.PlanError, match=r"rf\.SqlSink needs no_such_driver: pip install 'rayflow\[sql\]'"):
        needed("rf.SqlSink", "sql", "json", "no_such_driver")
