from __future__ import annotations

from functools import partial
from typing import Any, TypedDict

import pyarrow as pa
import pytest

from rayflow import col
from rayflow.model.errors import PlanError


class Answer(TypedDict):
    n: int
    text: str


async def ask(row: dict[str, Any]) -> Answer:
    return {"n": row["n"], "text": "yes"}


async def ask_with(setting: int, row: dict[str, Any]) -> Answer:
    return await ask(row)


class Client:
    async def __call__(self, row: dict[str, Any]) -> Answer:
        return await ask(row)


def plain(row: dict[str, Any]) -> dict[str, Any]:
    return row


@pytest.mark.parametrize("fn", [ask, Client, Client(), partial(ask_with, 1)])
def test_the_columns_come_from_returns_or_type_hints(rows: Any, fn: Any) -> None:
    given = rows.map_async(fn, returns={"n": "int64", "text": str})
    assert given.schema == pa.schema([("n", pa.int64()), ("text", pa.string())])
    if not isinstance(fn, partial):
        assert rows.map_async(fn).schema == given.schema


def test_event_time_stays_where_its_column_does(rows: Any) -> None:
    timed = rows.map_async(ask, returns=rows.schema)
    assert timed._info.time_column == rows._info.time_column


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.map_async(plain), r"map_async: expected an `async def` function"),
        (lambda s: s.map_async(lambda row: ask(row)), r"expected an `async def` function"),
        (lambda s: s.map_async(7), r"expected an `async def` function"),
        (lambda s: s.map_async(ask, capacity=0), r"capacity: expected a number from 1; got 0"),
        (lambda s: s.map_async(ask, retries=-1), r"retries: expected a number from 0"),
        (lambda s: s.map_async(ask, timeout="soon"), r"map_async: timeout: .*soon"),
        (lambda s: s.map_async(ask, timeout="0s"), r"longer than zero"),
        (lambda s: s.map_async(ask, timeout="1s", on_timeout="skip"), r"expected 'fail' or 'drop'"),
        (lambda s: s.map_async(ask, on_timeout="drop"), r"needs a timeout="),
        (lambda s: s.key_by("k").aggregate(n=col("n").sum()).map_async(ask), r"upsert streams"),
    ],
)
def test_mistakes_are_reported_at_their_line(rows: Any, call: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message) as error:
        call(rows)
    assert "test_map_async.py" in str(error.value.location)
