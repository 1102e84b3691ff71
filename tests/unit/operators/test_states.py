"""ValueState, ListState, MapState: what they do, how long they last, and what a snapshot holds of them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import rayflow as rf
from rayflow.model.errors import PlanError, UserFunctionError
from rayflow.operators.process import Port, ProcessOperator

SCHEMA = pa.schema([("k", pa.string()), ("i", pa.int64())])


class Script(rf.KeyedProcessFunction):
    """Runs step `i` of the test with itself; what steps return is collected."""

    steps: list[Callable[[Any], Any]]
    got: list[Any]

    def process(self, row: Any, ctx: Any) -> None:
        self.got.append(self.steps[row["i"]](self))


def script(**states: Any) -> type[Script]:
    made = type("Made", (Script,), {**states, "steps": [], "got": []})
    assert issubclass(made, Script)
    return made


class Runner:
    """One subtask with a script and a clock."""

    def __init__(self, harness: Any, fn: type[Script], restored: Any = (), now_ms: int = 0) -> None:
        self.harness, self.fn, self.now_ms = harness, fn, now_ms
        port = Port(method="process", keys=("k",))
        self.driven = harness(
            lambda: ProcessOperator(fn, [port], pa.schema([SCHEMA.field(0)]), None),
            restored=restored,
            now_ms=lambda: self.now_ms,
        )

    def __call__(self, *steps: Callable[[Any], Any], key: str = "a") -> list[Any]:
        """Run steps, each a row of the key, all in one batch; return their results."""
        self.fn.steps[:] = steps
        self.fn.got.clear()
        rows = [{"k": key, "i": i} for i in range(len(steps))]
        self.driven.feed(pa.RecordBatch.from_pylist(rows, SCHEMA))
        return list(self.fn.got)

    def restarted(self, fn: type[Script] | None = None) -> Runner:
        return Runner(self.harness, fn or self.fn, self.driven.snapshot(1), self.now_ms)

    @property
    def table(self) -> list[dict[str, Any]]:
        (part,) = [part for part in self.driven.snapshot(9) if part.name == "state"]
        return part.table.drop_columns("__key_group").to_pylist()


def test_a_value_is_its_default_until_set_and_again_when_cleared(harness: Any) -> None:
    run = Runner(harness, script(n=rf.ValueState("int64", default=7), s=rf.ValueState(str)))
    got = run(
        lambda f: (f.n.value, f.s.value),
        lambda f: (f.n.set(1), f.s.set("x")),
        lambda f: (f.n.get(), f.s.get()),
        lambda f: f.n.clear(),
        lambda f: (f.n.value, f.s.value),
    )
    assert [got[0], got[2], got[4]] == [(7, None), (1, "x"), (7, "x")]
    run = run.restarted()
    assert run(lambda f: (f.n.value, f.s.value), key="a") == [(7, "x")]
    assert run(lambda f: (f.n.value, f.s.value), key="b") == [(7, None)]
    assert len(run.driven.operator._keyed) == 1


def test_lists(harness: Any) -> None:
    run = Runner(harness, script(items=rf.ListState("int64")))
    got = run(
        lambda f: (list(f.items), len(f.items), bool(f.items)),
        lambda f: (f.items.append(1), f.items.extend(x for x in (2, None))),
        lambda f: f.items.get(),
        lambda f: f.items.get().append(9),
        lambda f: f.items.extend(f.items),
        lambda f: (list(f.items), len(f.items), bool(f.items)),
        lambda f: f.items.set([5]),
    )
    assert got[0] == ([], 0, False)
    assert got[2] == [1, 2, None]
    assert got[5] == ([1, 2, None, 1, 2, None], 6, True)
    assert run.table == [{"k": "a", "items.list": [5]}]
    assert run.restarted()(lambda f: f.items.get(), lambda f: f.items.clear(), lambda f: f.items.get()) == [
        [5], None, [],
    ]  # fmt: skip


def test_maps(harness: Any) -> None:
    run = Runner(harness, script(m=rf.MapState(str, "int64")))

    def fill(f: Any) -> None:
        f.m["a"] = 1
        f.m.put("b", 2)
        f.m.put_all({"c": 3, "d": None})

    def look(f: Any) -> Any:
        return (
            f.m.items(),
            f.m.keys(),
            f.m.values(),
            list(f.m),
            len(f.m),
            bool(f.m),
            f.m.is_empty(),
            f.m.to_dict(),
        )

    def take(f: Any) -> Any:
        found = ["a" in f.m, "x" in f.m, "d" in f.m, f.m["a"], f.m.get("x"), f.m.get("x", 5), f.m.get("d", 5)]
        for key in f.m:
            f.m.remove(key)
        with pytest.raises(KeyError):
            f.m["a"]
        with pytest.raises(KeyError):
            del f.m["a"]
        return found

    empty = ([], [], [], [], 0, False, True, {})
    entries = {"a": 1, "b": 2, "c": 3, "d": None}
    full = (list(entries.items()), [*entries], [*entries.values()], [*entries], 4, True, False, entries)
    assert run(look, fill, look) == [empty, None, full]
    assert run.table == [{"k": "a", "m.map": list(entries.items())}]
    run = run.restarted()
    assert run(look, take, look) == [full, [True, False, True, 1, None, 5, None], empty]
    assert run.table == []
    run(fill, lambda f: f.m.clear())
    assert len(run.driven.operator._keyed) == 0


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("int8", -5),
        ("uint64", 2**64 - 1),
        ("float32", 0.5),
        (bool, True),
        (bool, False),
        (str, "ü" * 5000),
        (bytes, b"\x00"),
        (datetime, datetime(2024, 1, 1, 0, 0, 0, 1)),
        (pa.timestamp("s", "UTC"), None),
        (pa.decimal128(10, 2), Decimal("1.25")),
        (list[int], [1, 2]),
        (dict[str, int], [("a", 1)]),
        (pa.struct({"a": pa.list_(pa.string())}), {"a": ["x", None]}),
    ],
)
def test_values_of_every_type_come_back_from_a_snapshot(harness: Any, type_: Any, value: Any) -> None:
    if value is None:
        value = pa.array([0], pa.int64()).cast(type_).to_pylist()[0]
    fn = script(v=rf.ValueState(type_), items=rf.ListState(type_), m=rf.MapState("int64", type_))
    run = Runner(harness, fn)
    run(lambda f: (f.v.set(value), f.items.append(value), f.m.put(1, value)))
    expected = (value, [value], {1: value})
    see = lambda f: (f.v.get(), f.items.get(), f.m.to_dict())  # noqa: E731
    assert run(see) == [expected]
    run = run.restarted()
    assert run(see) == [expected]
    assert type(run(lambda f: f.v.get())[0]) is type(value)


def test_what_get_returns_is_the_callers_own(harness: Any) -> None:
    nested = list[list[int]]
    fn = script(
        v=rf.ValueState(nested, default=[[0]]), items=rf.ListState(nested), m=rf.MapState(str, nested)
    )
    run = Runner(harness, fn)
    mine = [[1]]

    def change(f: Any) -> None:
        f.v.get()[0].append(9)
        f.items.get()[0][0].append(9)
        f.m["a"][0].append(9)
        f.m.to_dict()["a"][0].append(9)
        mine[0].append(9)

    run(
        lambda f: f.v.get()[0].append(9),
        lambda f: (f.v.set(mine), f.items.append(mine), f.m.put("a", mine)),
        change,
    )
    assert run(lambda f: (f.v.get(), f.items.get(), f.m["a"])) == [([[1]], [[[1]]], [[1]])]
    assert run(lambda f: f.v.clear(), lambda f: f.v.get()) == [None, [[0]]]


def test_a_snapshot_does_not_change_when_states_do(harness: Any) -> None:
    fn = script(v=rf.ValueState(str), items=rf.ListState(int), m=rf.MapState(str, int))
    fill = lambda f: (f.v.set("x"), f.items.append(1), f.m.put("a", 1))  # noqa: E731
    change = lambda f: (f.v.set("y"), f.items.append(2), f.m.put("a", 2), f.m.put("b", 2))  # noqa: E731
    remove = lambda f: (f.v.clear(), f.items.clear(), f.m.clear())  # noqa: E731
    seen = {"k": "a", "v.value": "x", "items.list": [1], "m.map": [("a", 1)]}
    for then in (change, remove):
        run = Runner(harness, fn)
        run(fill)
        run.driven.snapshot(0)
        run(remove, fill)
        (part,) = [part for part in run.driven.operator.snapshot(1) if part.name == "state"]
        run(then)
        run(fill, key="b")
        assert part.build().drop_columns("__key_group").to_pylist() == [seen]


# ------------------------------------------------------------------------------------------ time to live


def test_a_value_lives_so_long_from_its_last_write(harness: Any) -> None:
    run = Runner(harness, script(n=rf.ValueState(int, default=0, ttl="10s"), stays=rf.ValueState(int)))
    run(lambda f: (f.n.set(1), f.stays.set(1)))
    for run.now_ms, expected in ((9_999, 1), (10_000, 0)):
        assert run(lambda f: f.n.value) == [expected]
    run(lambda f: f.n.set(2))
    run.now_ms = 15_000
    run(lambda f: f.n.set(3), lambda f: f.n.value)
    run.now_ms = 20_000
    run = run.restarted()
    assert run.table == [
        {"k": "a", "n.value": 3, "n.updated": datetime(1970, 1, 1, 0, 0, 15), "stays.value": 1}
    ]
    run.now_ms = 24_999
    assert run(lambda f: f.n.value) == [3]
    run.now_ms = 25_000
    assert run.table == [{"k": "a", "n.value": None, "n.updated": None, "stays.value": 1}]
    assert run(lambda f: f.n.value) == [0]


def test_elements_and_entries_live_each_for_themselves(harness: Any) -> None:
    run = Runner(harness, script(items=rf.ListState(int, ttl="10s"), m=rf.MapState(str, int, ttl="10s")))
    for run.now_ms in (0, 4_000, 8_000):
        n = run.now_ms // 1000
        run(lambda f: (f.items.append(n), f.m.put(str(n), n)))  # noqa: B023
    run.now_ms = 9_000
    run(lambda f: f.m.put("0", 9))
    see = lambda f: (f.items.get(), len(f.items), f.m.to_dict(), f.m.get("4"), "4" in f.m)  # noqa: E731
    run.now_ms = 13_999
    assert run(see) == [([4, 8], 2, {"0": 9, "4": 4, "8": 8}, 4, True)]
    run = run.restarted()
    run.now_ms = 14_000
    assert run(see) == [([8], 1, {"0": 9, "8": 8}, None, False)]
    run.now_ms = 18_999
    ((seen,), _) = (run.table, run(lambda f: f.items.append(5)))
    assert (seen["items.list"], seen["m.map"]) == (None, [("0", 9)])
    run.now_ms = 25_000
    assert run(see) == [([5], 1, {}, None, False)]


def test_a_clock_that_goes_back_loses_nothing_early(harness: Any) -> None:
    run = Runner(harness, script(items=rf.ListState(int, ttl="10s")), now_ms=8_000)
    run(lambda f: f.items.append(1))
    run.now_ms = 2_000
    run(lambda f: f.items.append(2))
    run.now_ms = 17_999
    assert run(lambda f: f.items.get()) == [[1, 2]]


def test_keys_that_never_come_again_are_forgotten_in_time(harness: Any) -> None:
    ttl = {"ttl": "10s"}
    fn = script(v=rf.ValueState(int, **ttl), items=rf.ListState(int, **ttl), m=rf.MapState(str, int, **ttl))
    run = Runner(harness, fn)
    fill = lambda f: (f.v.set(1), f.items.append(1), f.m.put("a", 1))  # noqa: E731
    for key in range(500):
        run(fill, key=str(key))
    assert len(run.driven.operator._keyed) == 500
    run.now_ms = 10_000
    for _ in range(10):
        run(fill, key="new")
    assert len(run.driven.operator._keyed) == 1
    run.now_ms = 20_000
    run.driven.operator.snapshot(1)
    assert len(run.driven.operator._keyed) == 0


def test_a_time_to_live_may_be_given_to_a_state_later_and_counts_from_the_restore(harness: Any) -> None:
    run = Runner(harness, script(v=rf.ValueState(int), items=rf.ListState(int), m=rf.MapState(str, int)))
    run(lambda f: (f.v.set(1), f.items.append(1), f.m.put("a", 1)))
    run.now_ms = 60_000
    ttl = {"ttl": "10s"}
    fn = script(v=rf.ValueState(int, **ttl), items=rf.ListState(int, **ttl), m=rf.MapState(str, int, **ttl))
    run = run.restarted(fn)
    see = lambda f: (f.v.get(), f.items.get(), f.m.to_dict())  # noqa: E731
    run.now_ms = 69_999
    assert run(see) == [(1, [1], {"a": 1})]
    run.now_ms = 70_000
    assert run(see) == [(None, [], {})]


OPS = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 4_000)), max_size=25)


@given(OPS, st.sets(st.integers(0, 24), max_size=3))
@settings(max_examples=60, deadline=None)
def test_with_a_time_to_live_states_are_those_of_a_naive_model(
    harness: Any, ops: Any, restarts: set[int]
) -> None:
    ttl = {"ttl": "5s"}
    fn = script(v=rf.ValueState(int, **ttl), items=rf.ListState(int, **ttl), m=rf.MapState(int, int, **ttl))
    run = Runner(harness, fn)
    log: dict[str, list[tuple[int, int]]] = {"a": [], "b": []}
    for number, (key, n, pause) in enumerate(ops):
        run.now_ms += pause
        if number in restarts:
            run = run.restarted()
        alive = [(time, m) for time, m in log[key] if time > run.now_ms - 5_000]
        expected = (alive[-1][1] if alive else None, [m for _, m in alive], {m % 3: m for _, m in alive})
        got = run(
            lambda f: (f.v.get(), f.items.get(), f.m.to_dict()),
            lambda f: (f.v.set(n), f.items.append(n), f.m.put(n % 3, n)),  # noqa: B023
            key=key,
        )
        assert got[0] == expected
        log[key].append((run.now_ms, n))


# ----------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (lambda f: f.n.set("x"), "state 'n' of key 'a': value 'x' (str) is no int64"),
        (lambda f: setattr(f.n, "value", 2**63), "is no int64: expected -9223372036854775808 to"),
        (lambda f: f.items.append(5), "state 'items' of key 'a': element 5 (int) is no string"),
        (lambda f: f.items.set(["a", 5]), "element 5 (int) is no string"),
        (lambda f: f.m.put(1, 1), "state 'm' of key 'a': map key 1 (int) is no string"),
        (lambda f: f.m.get(None), "map key None (NoneType) is no string"),
        (lambda f: f.m.put("a", "b"), "value of 'a' 'b' (str) is no int64"),
        (lambda f: setattr(f, "n", 5), "state 'n' cannot be assigned to; change it with self.n.value = …"),
        (lambda f: setattr(f, "m", 5), "state 'm' cannot be assigned to; change it with self.m.clear()"),
    ],
)
def test_what_does_not_fit_names_state_key_value_and_type(harness: Any, step: Any, message: str) -> None:
    fn = script(n=rf.ValueState("int64"), items=rf.ListState(str), m=rf.MapState(str, "int64"))
    with pytest.raises(UserFunctionError) as caught:
        Runner(harness, fn)(step)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: rf.ValueState("int65"), "rf.ValueState: type 'int65': expected an Arrow type"),
        (lambda: rf.ListState(None), "rf.ListState: type None: expected an Arrow type"),
        (lambda: rf.MapState(list[int], int), "keys are numbers, texts, binaries or times"),
        (lambda: rf.ValueState(pa.dictionary(pa.int8(), pa.string())), "cannot be stored"),
        (lambda: rf.ValueState(int, default="x"), "default 'x' is no int64"),
        (lambda: rf.ValueState(int, ttl="5"), "ttl: expected a duration with a unit"),
        (lambda: rf.ValueState(int, ttl="0s"), "ttl: expected a duration longer than zero"),
    ],
)
def test_a_wrong_declaration_is_a_plan_error_at_its_line(make: Any, message: str) -> None:
    with pytest.raises(PlanError) as caught:
        make()
    assert message in caught.value.message
    assert "test_states.py" in str(caught.value.location)


def test_states_outside_of_a_job_say_so() -> None:
    class Fn(rf.KeyedProcessFunction):
        n = rf.ValueState(int)
        items = rf.ListState(int)
        m = rf.MapState(int, int)

    uses: list[Any] = [
        lambda f: f.n.value, lambda f: f.n.set(1), lambda f: f.items.append(1), lambda f: list(f.items),
        lambda f: 1 in f.m, lambda f: f.m.put(1, 1), lambda f: len(f.m),
    ]  # fmt: skip
    for use in uses:
        with pytest.raises(RuntimeError, match="only while the function runs in a job"):
            use(Fn())
    with pytest.raises(RuntimeError, match="must be declared in the function's class body"):
        _ = rf.ValueState(int).value


def test_states_are_inherited_and_may_be_hidden(harness: Any) -> None:
    class Base(Script):
        steps: list[Any] = []  # noqa: RUF012
        got: list[Any] = []  # noqa: RUF012
        n = rf.ValueState(int, default=1)
        m = rf.ValueState(int, default=1)

    class Derived(Base):
        n = rf.ValueState(str, default="x")
        m = None  # type: ignore[assignment]

    run = Runner(harness, Derived)
    assert run(lambda f: (f.n.value, f.m), lambda f: f.n.set("y")) == [("x", None), None]
    assert run.table == [{"k": "a", "n.value": "y"}]
