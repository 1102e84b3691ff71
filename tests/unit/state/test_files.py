"""State files: what is read is what was written, or an error."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayflow.model.errors import ConfigError, CorruptCheckpointError
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.state.files import decode_table, encode_table, operator_state, read_part, sha256_hex
from rayflow.state.manifest import CheckpointFiles, Manifest, StateFile
from rayflow.state.parts import KEY_GROUP_COLUMN
from rayflow.state.storage import MemoryStore, open_store

TABLE = pa.table({KEY_GROUP_COLUMN: pa.array(np.arange(10), pa.int32()), "v": [str(i) for i in range(10)]})


@pytest.fixture
def store(request: pytest.FixtureRequest) -> MemoryStore:
    return MemoryStore(f"memory://files-{id(request)}-{request.node.name}")


def _put(
    store: MemoryStore, table: pa.Table, index: int, kind: str = "keyed", part: str = "keys"
) -> StateFile:
    data = encode_table(table)
    file = StateFile(
        path=f"{part}-{index}.arrow",
        uid="count",
        part=part,
        kind=kind,
        subtask_index=index,
        nbytes=len(data),
        sha256=sha256_hex(data),
        rows=table.num_rows,
        key_groups=(0, 10) if kind == "keyed" else None,
    )
    store.write(f"chk-1/{file.path}", data)
    return file


def files_of(store: MemoryStore) -> CheckpointFiles:
    return CheckpointFiles(f"{store.url}/chk-1", lambda url: open_store(url, {}))


def test_a_table_comes_back_with_its_types() -> None:
    table = pa.table(
        {"t": pa.array([None, 1], pa.timestamp("us", "UTC")), "l": [[1.5], None], "e": [None, None]}
    )
    data = encode_table(table)
    assert decode_table(data, sha256_hex(data)).equals(table)


DATA = encode_table(TABLE)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, len(DATA) - 1), st.integers(1, 255))
def test_any_changed_byte_is_found(at: int, flip: int) -> None:
    changed = bytearray(DATA)
    changed[at] ^= flip
    with pytest.raises(CorruptCheckpointError, match="here is corrupt"):
        decode_table(bytes(changed), sha256_hex(DATA), "here")


def test_keyed_rows_are_filtered_by_key_group_and_list_parts_are_not(store: MemoryStore) -> None:
    keyed, listed = _put(store, TABLE, 0), _put(store, TABLE, 1, "list")
    assert read_part(files_of(store), keyed, KeyGroupRange(3, 5)).column("v").to_pylist() == ["3", "4"]
    assert read_part(files_of(store), keyed).equals(TABLE)
    assert read_part(files_of(store), listed, KeyGroupRange(3, 5)).equals(TABLE)


def test_a_missing_file_is_a_corrupt_checkpoint_that_names_it(store: MemoryStore) -> None:
    file = _put(store, TABLE, 0)
    store.delete("chk-1/keys-0.arrow")
    with pytest.raises(CorruptCheckpointError, match=r"chk-1/keys-0\.arrow is missing"):
        read_part(files_of(store), file)


def test_an_operators_state_is_shown_by_part_over_all_subtasks(store: MemoryStore) -> None:
    files = (
        _put(store, TABLE.slice(5), 1),
        _put(store, TABLE.slice(0, 5), 0),
        _put(store, TABLE, 0, "list", "log"),
    )
    manifest = Manifest(
        job_id="j", attempt=1, checkpoint_id=1, time_ms=0, max_parallelism=10,
        operators={"count": 2, "idle": 1}, files=files,
    )  # fmt: skip
    state = operator_state(files_of(store), manifest, "count")
    assert list(state) == ["keys", "log"]
    assert state["keys"].equals(TABLE)
    assert operator_state(files_of(store), manifest, "idle") == {}
    with pytest.raises(ConfigError, match="did you mean 'count'"):
        operator_state(files_of(store), manifest, "counts")
