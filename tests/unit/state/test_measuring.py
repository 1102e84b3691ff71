"""The measured size of state, against what was put there."""

from __future__ import annotations

import sys
import tracemalloc
from collections import deque

import numpy as np
import pyarrow as pa
import pytest

import rayflow.state.accumulators.objects as own_module
from rayflow.state.key_index import KeyIndex
from rayflow.state.measuring import held_bytes


class Own:
    """Passes for a class of rayflow's."""

    __module__ = own_module.__name__

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Slotted:
    __module__ = own_module.__name__
    __slots__ = ("column", "missing")

    def __init__(self, column):
        self.column = column


class Users:
    def __init__(self, value):
        self.value = value


class Told:
    def __init__(self, nbytes):
        self.nbytes = nbytes

    def measured_bytes(self):
        return self.nbytes


def about(expected, tolerance=0.1):
    return pytest.approx(expected, rel=tolerance)


def test_a_column_counts_once_however_often_it_is_held():
    column = np.zeros(100_000, np.int64)
    views = Own(a=column, b=column[10:20], inner=Slotted(column.reshape(10, -1)))
    assert held_bytes([views]) == 800_000


def test_a_slice_counts_as_what_it_keeps_alive():
    batch = pa.record_batch({"v": np.arange(100_000)})
    pieces = [batch.slice(start, 10) for start in range(0, 1000, 10)]
    assert held_bytes([Own(pieces=pieces)]) == about(800_000, 0.01)
    assert held_bytes([Own(whole=batch, first=pieces[0], table=pa.Table.from_batches([batch]))]) == 800_000


def test_many_batches_each_with_memory_of_its_own_all_count():
    batches = deque(pa.record_batch({"v": np.arange(1000) + i}) for i in range(500))
    assert held_bytes([Own(batches=batches)]) == about(500 * 8000, 0.02)


def test_long_containers_of_python_objects_are_estimated_from_some():
    rows = {i: {"user": f"user-{i:08}", "n": i + 1000} for i in range(20_000)}
    tracemalloc.start()
    copy = {
        int(str(k)): {"user": v["user"][:4] + v["user"][4:], "n": int(str(v["n"]))} for k, v in rows.items()
    }
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held_bytes([Own(rows=copy)]) == about(taken, 0.25)


def test_objects_in_columns_and_users_accumulators_count():
    column = np.empty(1000, object)
    for i in range(1000):
        column[i] = Users(bytes(1000))
    assert held_bytes([Own(column=column)]) == about(8_000 + 1000 * (1033 + 48 + 296), 0.3)


def test_what_a_users_function_holds_is_not_state():
    assert held_bytes([Own(function=Users(np.zeros(1_000_000)))]) == 0


def test_what_tells_its_size_is_believed():
    assert held_bytes([Own(bitmaps={g: Told(1000) for g in range(10)})]) == about(
        10_000 + sys.getsizeof({}), 0.2
    )


def test_references_in_circles_end():
    a = Own(column=np.zeros(10))
    a.me, a.parts = a, [a, a]
    assert 80 <= held_bytes([a]) < 400


def test_a_million_objects_take_no_longer_than_a_bound():
    # Counted in visits, since a test that measures time fails on a busy day.
    visited = []

    class Counting(dict):
        def items(self):
            visited.append(1)
            return super().items()

    inner = [Counting({"a": [1, 2, 3]}) for _ in range(100_000)]
    assert held_bytes([Own(rows=inner)]) > 100_000 * 100
    assert len(visited) < 1000


def test_the_key_index_grows_with_its_keys():
    schema = pa.schema({"k": pa.int64()})
    sizes = []
    for count in (10_000, 1_000_000):
        index = KeyIndex(schema)
        index.insert(pa.record_batch({"k": np.arange(count)}))
        sizes.append(held_bytes([index]))
    assert 10_000 * 8 <= sizes[0] < 10_000 * 100
    assert 1_000_000 * 8 <= sizes[1] < 1_000_000 * 100


class Shy:
    __slots__ = ()

    @property
    def __dict__(self):
        raise RuntimeError("outside of its context")


class Stubborn(dict):
    def items(self):
        raise RuntimeError("not now")


class Unweighed:
    def __sizeof__(self):
        raise RuntimeError("no size")


@pytest.mark.parametrize("users", [Shy(), Stubborn(a=1), Unweighed()])
def test_an_object_that_raises_when_it_is_looked_at_counts_as_nothing_and_the_rest_counts(users):
    rest = np.zeros(1000)
    assert 8000 <= held_bytes([[users], users, [[users, rest]], rest]) < 10_000
