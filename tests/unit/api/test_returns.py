from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Optional, TypedDict

import pyarrow as pa
import pytest

from rayflow.api.returns import arrow_type, returned_schema
from rayflow.model.errors import PlanError


class Reading(TypedDict):
    sensor: str
    value: float


@dataclass
class Point:
    x: int
    tags: list[str]


READING = pa.schema({"sensor": pa.string(), "value": pa.float64()})


@pytest.mark.parametrize(
    ("hint", "arrow"),
    [
        (int, pa.int64()),
        (bool, pa.bool_()),
        (datetime.datetime, pa.timestamp("us")),
        (pa.int8(), pa.int8()),
        ("int32", pa.int32()),
        ("timestamp[ms]", pa.timestamp("ms")),
        (list[str], pa.list_(pa.string())),
        (dict[str, float], pa.map_(pa.string(), pa.float64())),
        (Optional[int], pa.int64()),  # noqa: UP045
        (int | None, pa.int64()),
        (Literal["a", "b"], pa.string()),
        (Point, pa.struct({"x": pa.int64(), "tags": pa.list_(pa.string())})),
        (list[Reading], pa.list_(pa.struct(list(READING)))),
        (int | str, None),
        (Any, None),
        (dict, None),
        (list, None),
        (object, None),
        ("nonsense", None),
    ],
)
def test_types_become_arrow_types(hint: Any, arrow: pa.DataType | None) -> None:
    assert arrow_type(hint) == arrow


@pytest.mark.parametrize(
    "returns", [READING, {"sensor": str, "value": "double"}, Reading], ids=["schema", "mapping", "TypedDict"]
)
def test_returns_takes_schemas_mappings_and_records(returns: Any) -> None:
    assert returned_schema(returns, None, "map") == READING


def test_one_type_makes_one_column() -> None:
    assert returned_schema(float, None, "map") == pa.schema({"value": pa.float64()})


def test_type_hints_are_used_without_returns() -> None:
    def one(row: Any) -> Reading:
        return row  # type: ignore[no-any-return]

    def many(row: Any) -> Iterator[Reading]:
        yield row

    class Parser:
        def __call__(self, row: Any) -> Reading:
            return row  # type: ignore[no-any-return]

    assert returned_schema(None, one, "map") == READING
    assert returned_schema(None, many, "flat_map", flat=True) == READING
    assert returned_schema(None, Parser(), "map") == READING
    assert returned_schema(None, Parser, "map") == READING


def test_hints_that_say_too_little_leave_the_columns_unknown() -> None:
    def any_dict(row: Any) -> dict[str, Any]:
        return {}

    def missing(row: Any) -> Missing:  # type: ignore[name-defined]  # noqa: F821
        return None

    def nothing(row: Any) -> None: ...

    for fn in (any_dict, missing, nothing, partial(any_dict), len, lambda row: row, str.split):
        assert returned_schema(None, fn, "map") is None
        assert returned_schema(None, fn, "flat_map", flat=True) is None


@pytest.mark.parametrize("returns", [object, {"a": dict}, {1: int}, 5, "nonsense", []])
def test_what_is_no_type_is_refused(returns: Any) -> None:
    with pytest.raises(PlanError, match="returns="):
        returned_schema(returns, None, "map")


def test_reserved_and_repeated_names_are_refused() -> None:
    for schema in (pa.schema({"__op": pa.int8()}), pa.schema([("a", pa.int8()), ("a", pa.int8())])):
        with pytest.raises(PlanError, match="column"):
            returned_schema(schema, None, "map")
