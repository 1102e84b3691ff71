from __future__ import annotations

import datetime as dt
import math
import operator
import pickle
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import cloudpickle
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.batch.changelog import OP_COLUMN, with_op
from rayflow.batch.expressions import Expr, col, lit, when
from rayflow.batch.kernels import rowwise_functions
from rayflow.batch.nodes import ExpressionError
from rayflow.model.errors import PlanError

BATCH = pa.record_batch(
    {
        "i": [7, -7, None],
        "f": [1.5, -2.5, None],
        "s": ["ab", None, "c"],
        "t": pa.array([0, 3_600_000, None], pa.timestamp("ms")),
        "z": pa.array([0, 3_600_000, None], pa.timestamp("ms", "Europe/Berlin")),
        "b": [True, None, False],
        "u": pa.array([2**64 - 1, 1, None], pa.uint64()),
        "d": pa.array([Decimal("1.50"), None, Decimal("2.00")]),
        "v": pa.array(["ab", None, "y"], pa.string_view()),
        "k": pa.array(["ab", None, "y"]).dictionary_encode(),
        "l": [[1], [2, 3], None],
    }
)
HOUR = dt.timedelta(hours=1)
EPOCH = dt.datetime(1970, 1, 1)

CASES: list[tuple[Expr, list[Any]]] = [
    (col("i") + 1, [8, -6, None]),
    (1 - col("i"), [-6, 8, None]),
    (col("i") / 2, [3.5, -3.5, None]),
    (col("i") // 2, [3, -4, None]),
    (col("i") % -2, [-1, -1, None]),
    (col("f") // 1, [1.0, -3.0, None]),
    (lit(1.0) // 0.1, [9.0] * 3),
    (-col("i"), [-7, 7, None]),
    (abs(col("i")), [7, 7, None]),
    (2 ** col("i").abs(), [128, 128, None]),
    (np.int64(5) + col("i"), [12, -2, None]),
    (col("u") - 1, [2**64 - 2, 0, None]),
    (col("u") > 5, [True, False, None]),
    (col("d") * 2, [Decimal(3), None, Decimal(4)]),
    (col("d") / 2, [Decimal("0.75"), None, Decimal(1)]),
    (col("d") // 1, [Decimal(1), None, Decimal(2)]),
    (col("d") % 1, [Decimal("0.5"), None, Decimal(0)]),
    (col("s") + "!", ["ab!", None, "c!"]),
    (col("v") + "!", ["ab!", None, "y!"]),
    (col("s").utf8_upper(), ["AB", None, "C"]),
    (col("v").utf8_upper(), ["AB", None, "Y"]),
    (col("k").utf8_upper(), ["AB", None, "Y"]),
    (col("k") == col("s"), [True, None, False]),
    (col("v") != "y", [True, None, False]),
    (col("t").hour(), [0, 1, None]),
    (col("t").strftime("%H:%M"), ["00:00", "01:00", None]),
    (col("t").floor_temporal(1, unit="day"), [EPOCH, EPOCH, None]),
    (col("t") + HOUR, [EPOCH + HOUR, EPOCH + 2 * HOUR, None]),
    (col("t") - col("t"), [dt.timedelta(0), dt.timedelta(0), None]),
    (col("t") > EPOCH, [False, True, None]),
    (col("t") >= dt.datetime(1970, 1, 1, 0, 30, tzinfo=dt.timezone.utc), [False, True, None]),
    (col("t") > dt.date(1970, 1, 1), [False, True, None]),
    (col("z") == col("t"), [True, True, None]),
    (col("z") > EPOCH, [False, True, None]),
    (col("b") & None, [None, None, False]),
    (col("b") | True, [True, True, True]),
    (col("b") ^ True, [False, None, True]),
    (~col("b"), [False, None, True]),
    (col("b").and_(True), [True, None, False]),
    (col("i").is_in([7, 8]), [True, False, False]),
    (col("t").is_in([EPOCH]), [True, False, False]),
    (col("i").is_in([]), [False, False, False]),
    (col("i").is_valid(), [True, True, False]),
    (col("i").is_null(), [False, False, True]),
    (col("i").between(-7, 0), [False, True, None]),
    (col("i").fill_null(0), [7, -7, 0]),
    (col("i").coalesce(col("f"), 9), [7.0, -7.0, 9.0]),
    (col("b").if_else(col("i"), None), [7, None, None]),
    (col("i").max_element_wise(col("f"), 3), [7.0, 3.0, 3.0]),
    (col("s").binary_join_element_wise("x", "-"), ["ab-x", None, "c-x"]),
    (col("l").list_value_length(), [1, 2, None]),
    (col("i").round(ndigits=-1), [10, -10, None]),
    (col("k").dictionary_decode(), ["ab", None, "y"]),
    (when(col("i") > 0).then("+").when(col("i") < 0).then("-").otherwise("0"), ["+", "-", "0"]),
    (when(col("b")).then(col("i")), [7, None, None]),
    (when(col("b")).then(1).otherwise(2.5), [1.0, 2.5, 2.5]),
    (when(col("b")).then(None).otherwise("x"), [None, "x", "x"]),
    (col("i").cast("int8"), [7, -7, None]),
    (col("i").cast(str), ["7", "-7", None]),
    (col("f").cast(int, safe=False), [1, -2, None]),
    (col("s").alias("other"), ["ab", None, "c"]),
    (lit(5), [5, 5, 5]),
    (lit(None), [None, None, None]),
    (lit("x").utf8_upper(), ["X", "X", "X"]),
    (lit(1, "int8"), [1, 1, 1]),
]


@pytest.mark.parametrize(("expr", "expected"), CASES, ids=[repr(expr) for expr, _ in CASES])
def test_expression_gives_these_values_everywhere_it_may_run(expr: Expr, expected: list[Any]) -> None:
    result = expr.evaluate(BATCH)
    assert result.to_pylist() == expected
    assert expr.output_type(BATCH.schema) == result.type
    assert expr.evaluate(BATCH.slice(1)).to_pylist() == expected[1:]
    assert len(expr.evaluate(BATCH.slice(3))) == 0
    for module in (pickle, cloudpickle):
        copy = module.loads(module.dumps(expr))
        assert repr(copy) == repr(expr)
        assert copy.evaluate(BATCH).to_pylist() == expected


def test_integers_of_every_operator_overflow_loudly() -> None:
    batch = pa.record_batch({"i": [2**63 - 1], "n": [-(2**63)]})
    i, n = col("i"), col("n")
    for expr in (i + 1, n - 1, i * 2, -n, abs(n), i**2, n // -1, i.add(1), i.multiply(i), n.abs()):
        with pytest.raises(ExpressionError, match="overflow"):
            expr.evaluate(batch)


def test_true_division_by_zero_follows_floats_and_integer_floor_raises() -> None:
    assert (col("i") / 0).evaluate(BATCH).to_pylist() == [math.inf, -math.inf, None]
    with pytest.raises(ExpressionError, match="divide by zero"):
        (col("i") // 0).evaluate(BATCH)


def test_evaluation_errors_name_the_innermost_expression() -> None:
    with pytest.raises(ExpressionError, match=r'^\(col\("i"\) \* 100\)\.cast\(\'int8\'\): .*700'):
        ((col("i") * 100).cast("int8") + 1).evaluate(BATCH)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: col("i").utf8_uper(), "unknown function 'utf8_uper'; did you mean 'utf8_upper'?"),
        (lambda: col("i").cumulative_sum(), "looks at more than one row"),
        (lambda: col("i").product(), "not one of rayflow's aggregates"),
        (lambda: col("i").random(), "takes no column"),
        (lambda: col("s").starts_with(), "missing a required argument: 'pattern'"),
        (lambda: col("s").starts_with("a", colour=1), "'colour'"),
        (lambda: col("s").starts_with(col("s")), "option 'pattern' must be a plain value"),
        (lambda: col("b").if_else(1), "if_else() takes 2 more"),
        (lambda: col("i").cast("int33"), "unknown type 'int33'"),
        (lambda: col(3), "expected a column's name"),
        (lambda: lit(object()), "cannot be a value"),
        (lambda: lit(2**70), "cannot be a value"),
        (lambda: col("i") + col("i").sum(), "is an aggregate"),
        (lambda: bool(col("i") > 1), "use & | ~"),
        (lambda: 0 < col("i") < 3, "between(low, high)"),
        (lambda: col("tt").hour().output_type(BATCH.schema), "unknown column 'tt'; did you mean 't'?"),
        (lambda: col("tt").evaluate(BATCH), "unknown column 'tt'"),
        (lambda: (col("i") + "x").output_type(BATCH.schema), "(col(\"i\") + 'x'): "),
        (lambda: (col("i") + "x").output_type(BATCH.schema), "the columns are i: int64"),
        (lambda: (col("i") & col("b")).output_type(BATCH.schema), "and_kleene"),
        (lambda: when(col("i")).then(1).output_type(BATCH.schema), "when(col"),
    ],
)
def test_mistakes_fail_when_the_plan_is_built(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert message in str(caught.value)


def test_attribute_probes_see_no_such_attribute() -> None:
    assert not hasattr(col("i"), "__array_interface__")
    assert not hasattr(col("i"), "nope")
    with pytest.raises(PlanError) as caught:
        col("i").nope
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_hidden_column_is_not_visible() -> None:
    batch = with_op(BATCH, 0)
    assert (col("i") + 1).evaluate(batch).to_pylist() == [8, -6, None]
    with pytest.raises(PlanError, match="unknown column '__op'"):
        col(OP_COLUMN).evaluate(batch)


def test_two_columns_of_one_name_are_ambiguous() -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([1]), pa.array([2])], names=["a", "a"])
    with pytest.raises(PlanError, match="ambiguous"):
        col("a").evaluate(batch)


def test_every_scalar_function_of_pyarrow_is_a_method() -> None:
    scalar = {
        n for n in pc.list_functions() if pc.get_function(n).kind == "scalar" and pc.get_function(n).arity
    }
    assert scalar <= set(rowwise_functions())
    for name in rowwise_functions():
        assert callable(getattr(col("x"), name))


def test_names_and_columns_of_expressions() -> None:
    assert (lit(1) + col("f") * col("i")).name == "f"
    assert when(col("b")).then(col("i")).otherwise(0).name == "i"
    assert col("i").alias("n").name == "n"
    assert lit(1).name == "literal"
    assert when(col("b")).then(col("i") + col("f")).otherwise(0).columns() == {"b", "i", "f"}
    assert lit(1).columns() == frozenset()


def test_text_of_expressions_is_readable() -> None:
    assert repr(col("a") + 1) == '(col("a") + 1)'
    assert repr(~(col("a") > 1) & col("b").is_valid()) == '(~(col("a") > 1) & col("b").is_valid())'
    assert repr(col("t").strftime("%H")) == "col(\"t\").strftime(format='%H')"
    assert repr(when(col("a")).then(1).otherwise(2)) == 'when(col("a")).then(1).otherwise(2)'


# ------------------------------------------------------------------ against a naive model in plain Python

SMALL = st.one_of(st.none(), st.integers(-20, 20))
ROWS = st.lists(
    st.fixed_dictionaries({"a": SMALL, "b": SMALL, "p": st.sampled_from([True, False, None])}), max_size=8
)

ARITHMETIC = {"+": operator.add, "-": operator.sub, "*": operator.mul}
COMPARISON = {"<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne}
Model = Callable[[dict[str, Any]], Any]


def strict(function: Callable[..., Any], *models: Model) -> Model:
    """Null in, null out."""

    def run(row: dict[str, Any]) -> Any:
        values = [model(row) for model in models]
        return None if None in values else function(*values)

    return run


def kleene_and(p: Any, q: Any) -> Any:
    if p is False or q is False:
        return False
    return None if p is None or q is None else True


def kleene_or(p: Any, q: Any) -> Any:
    return negate(kleene_and(negate(p), negate(q)))


def negate(p: Any) -> Any:
    return None if p is None else not p


@st.composite
def numbers(draw: st.DrawFn, depth: int = 3) -> tuple[Expr, Model]:
    kind = draw(
        st.sampled_from(
            ["column", "literal", "arithmetic", "floor", "case"] if depth else ["column", "literal"]
        )
    )
    if kind == "column":
        name = draw(st.sampled_from(["a", "b"]))
        return col(name), lambda row: row[name]
    if kind == "literal":
        value = draw(st.integers(-9, 9))
        return lit(value), lambda row: value
    left, left_model = draw(numbers(depth - 1))
    right, right_model = draw(numbers(depth - 1))
    if kind == "arithmetic":
        name = draw(st.sampled_from(sorted(ARITHMETIC)))
        return ARITHMETIC[name](left, right), strict(ARITHMETIC[name], left_model, right_model)
    if kind == "floor":
        divisor = draw(st.integers(-9, 9).filter(bool))
        if draw(st.booleans()):
            return left // divisor, strict(lambda x: x // divisor, left_model)
        return left % divisor, strict(lambda x: x % divisor, left_model)
    condition, condition_model = draw(conditions(depth - 1))
    return when(condition).then(left).otherwise(
        right
    ), lambda row: left_model(row) if condition_model(row) else right_model(row)


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> tuple[Expr, Model]:
    kind = draw(st.sampled_from(["column", "compare", "and", "or", "not"] if depth else ["column"]))
    if kind == "column":
        return col("p"), lambda row: row["p"]
    if kind == "compare":
        left, left_model = draw(numbers(depth - 1))
        right, right_model = draw(numbers(depth - 1))
        name = draw(st.sampled_from(sorted(COMPARISON)))
        return COMPARISON[name](left, right), strict(COMPARISON[name], left_model, right_model)
    left, left_model = draw(conditions(depth - 1))
    if kind == "not":
        return ~left, lambda row: negate(left_model(row))
    right, right_model = draw(conditions(depth - 1))
    if kind == "and":
        return left & right, lambda row: kleene_and(left_model(row), right_model(row))
    return left | right, lambda row: kleene_or(left_model(row), right_model(row))


SCHEMA = pa.schema({"a": pa.int64(), "b": pa.int64(), "p": pa.bool_()})


@settings(max_examples=100)
@given(ROWS, st.one_of(numbers(), conditions()))
def test_random_trees_agree_with_plain_python(rows: list[dict], tree: tuple[Expr, Model]) -> None:
    expr, model = tree
    batch = pa.RecordBatch.from_pylist(rows, schema=SCHEMA)
    assert expr.evaluate(batch).to_pylist() == [model(row) for row in rows]


FLOATS = st.floats(-1e6, 1e6).filter(lambda x: x == 0 or abs(x) > 1e-6)


@given(FLOATS, FLOATS.filter(bool))
def test_floor_and_modulo_of_floats_are_pythons(left: float, right: float) -> None:
    batch = pa.record_batch({"x": [left], "y": [right]})
    assert (col("x") // col("y")).evaluate(batch).to_pylist() == [left // right]
    assert (col("x") % col("y")).evaluate(batch).to_pylist() == [left % right]


WIDE = st.integers(-(2**63), 2**63 - 1)


@given(WIDE, WIDE.filter(lambda x: x not in (0, -1)))
def test_floor_and_modulo_of_the_widest_integers_are_pythons(left: int, right: int) -> None:
    batch = pa.record_batch({"x": [left], "y": [right]})
    assert (col("x") // col("y")).evaluate(batch).to_pylist() == [left // right]
    assert (col("x") % col("y")).evaluate(batch).to_pylist() == [left % right]
