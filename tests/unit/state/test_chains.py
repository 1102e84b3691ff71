"""A base and its links are the rows of now, whatever order the files come in."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.errors import CorruptCheckpointError
from rayflow.state import chains
from rayflow.state.chains import merged, packed_runs, state_tables
from rayflow.state.key_index import KeyIndex
from rayflow.state.manifest import StateFile
from rayflow.state.parts import GONE_COLUMN, KEY_COLUMNS, RUN_COLUMN, RUNS


def table(rows: dict[int | None, int | None], *, is_base: bool) -> pa.Table:
    columns: dict[str, Any] = {
        "k": pa.array(list(rows), pa.int64()),
        "v": pa.array(list(rows.values()), pa.int64()),
    }
    if not is_base:
        columns[GONE_COLUMN] = pa.array([value is None for value in rows.values()], pa.bool_())
    return pa.table(columns).replace_schema_metadata({KEY_COLUMNS: "1"})


def file(path: str, link: int | None, part: str = "state", rows: int = 1) -> StateFile:
    return StateFile(
        path=path,
        uid="op",
        part=part,
        kind="keyed",
        subtask_index=0,
        nbytes=1,
        sha256="",
        rows=rows,
        link=link,
    )


KEYS = st.none() | st.integers(0, 6)
BASE = st.dictionaries(KEYS, st.integers(0, 99))
LINKS = st.lists(st.dictionaries(KEYS, st.none() | st.integers(0, 99)), max_size=4)


@given(BASE, LINKS, st.randoms(use_true_random=False), st.sampled_from([None, 1, 300, 1 << 20]))
def test_the_newest_row_of_a_key_counts(
    base: Any, links: list[Any], order: random.Random, keys_bytes: int | None
) -> None:
    contents = {"base": table(base, is_base=True)}
    files = [file("base", 0)]
    expected = dict(base)
    for number, link in enumerate(links, 1):
        # Of several files each, and of keys that are told twice.
        for piece in (0, 1):
            contents[f"{number}-{piece}"] = table(link, is_base=False)
            files.append(file(f"{number}-{piece}", number))
        expected |= link
    order.shuffle(files)
    found: dict[Any, Any] = {}
    for rows in merged(files, lambda f: contents[f.path], keys_bytes):
        assert rows.schema.names == ["k", "v"]
        got = dict(zip(rows["k"].to_pylist(), rows["v"].to_pylist()))
        assert not got.keys() & found.keys()
        assert len(got) == rows.num_rows
        found |= got
    assert found == {key: value for key, value in expected.items() if value is not None}


def test_files_without_a_chain_come_beside_those_of_chains() -> None:
    files = [file("whole", None, "other"), file("base", 0)]
    contents = {"whole": pa.table({"x": [1]}), "base": table({1: 2}, is_base=True)}
    found = {named.part: rows.num_rows for named, rows in state_tables(files, lambda f: contents[f.path])}
    assert found == {"other": 1, "state": 1}


def test_the_keys_of_links_take_no_more_memory_than_they_may(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 0

    class Watched(KeyIndex):
        def insert(self, keys: pa.RecordBatch) -> Any:
            nonlocal most
            slots = super().insert(keys)
            most = max(most, self.nbytes)
            return slots

    monkeypatch.setattr(chains, "KeyIndex", Watched)
    texts = [f"key number {n} of many" for n in range(60_000)]
    for keys in (list(range(60_000)), texts):
        rows = pa.table({"k": keys, "v": [1] * len(keys)})
        link = rows.append_column(GONE_COLUMN, pa.array([False] * len(keys)))
        contents = {
            str(n): (link if n else rows).replace_schema_metadata({KEY_COLUMNS: "1"}) for n in range(2)
        }
        files = [file(str(n), n, rows=len(keys)) for n in range(2)]
        most = 0
        count = sum(t.num_rows for t in merged(files, lambda f, c=contents: c[f.path], 1 << 19))
        assert count == len(keys)
        assert 0 < most <= 1 << 19


def test_a_chain_without_one_of_its_links_is_corrupt() -> None:
    whole = table({1: 1}, is_base=True)
    for links in ([0, 2], [1]):
        with pytest.raises(CorruptCheckpointError, match="some are missing"):
            list(state_tables([file(str(link), link) for link in links], lambda f: whole))


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 9))), min_size=1, max_size=5))
def test_the_rows_of_the_runs_count_that_the_newest_link_names_in_their_order(steps: list[Any]) -> None:
    # Each checkpoint has some new runs, and some of those before are gone.
    contents: dict[str, pa.Table] = {}
    files: list[StateFile] = []
    there: list[int] = []
    count = 0
    for link, (new, gone) in enumerate(steps):
        fresh = list(range(count, count + new))
        count += new
        there = [run for run in there if run not in gone] + fresh
        # A file a run, and one where none is new; a key has a row in every run.
        for run in fresh or [None]:
            rows = [] if run is None else [run]
            columns = {
                "k": pa.array([0] * len(rows)),
                "v": pa.array(rows),
                RUN_COLUMN: pa.array(rows, pa.int64()),
            }
            contents[f"{link}-{run}"] = pa.table(columns).replace_schema_metadata({RUNS: packed_runs(there)})
            files.append(file(f"{link}-{run}", link))
    tables = [rows for _, rows in state_tables(files, lambda f: contents[f.path])]
    assert all(rows.schema.names == ["k", "v"] for rows in tables)
    assert [v for rows in tables for v in rows["v"].to_pylist()] == there
