"""State files: Arrow IPC, checked against the manifest's SHA-256, filtered by key group.

A file holds one part of one subtask's state (see `parts.py`). Built-in state is always a table, never a
pickle, so `operator_state` can show any of it. Nothing is believed before its checksum matches: a store may
tear or rot what it keeps, and some do not even notice a wrong checksum on upload.
"""

from __future__ import annotations

import difflib
import hashlib
import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.model.errors import ConfigError, CorruptCheckpointError
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.state.chains import state_tables
from rayflow.state.manifest import CheckpointFiles, Manifest, StateFile
from rayflow.state.parts import KEY_GROUP_COLUMN
from rayflow.state.publishing import read_checked
from rayflow.state.storage import MissingObject

T = TypeVar("T")

# On the calling thread: what Arrow's own threads compress in comes from a pool that keeps it for each of them.
_OPTIONS = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)


def encode_table(table: pa.Table) -> bytes:
    """Return `table` as an Arrow IPC file (LZ4)."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema, options=_OPTIONS) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def encode_tables(tables: Iterable[pa.Table], file_bytes: int) -> Iterator[tuple[bytes, int]]:
    """Yield Arrow IPC files (LZ4) that hold the rows of `tables`, which have one schema, and how many rows each holds.
    A file is closed when it has `file_bytes`, so that only so much is held at a time."""
    # Python's: it grows by an eighth, Arrow's twofold, and gives its contents without a copy.
    sink, writer, rows = io.BytesIO(), None, 0
    for table in tables:
        if writer is None:
            writer = pa.ipc.new_file(sink, table.schema, options=_OPTIONS)
        writer.write_table(table)
        rows += table.num_rows
        if sink.tell() >= file_bytes:
            writer.close()
            yield sink.getvalue(), rows
            _give_back()
            sink, writer, rows = io.BytesIO(), None, 0
    if writer is not None:
        writer.close()
        yield sink.getvalue(), rows
        _give_back()


def _give_back() -> None:
    """Return what this thread compressed in. Writers take it from the pool of Arrow's own choice, whatever Python was
    told to use, and that one keeps it for each thread."""
    with suppress(NotImplementedError):
        pa.mimalloc_memory_pool().release_unused()


def sha256_hex(data: bytes) -> str:
    """Return the SHA-256 of `data`, in hex."""
    return hashlib.sha256(data).hexdigest()


def decode_table(
    data: bytes, expected_sha256: str, origin: str = "a state file", expected_nbytes: int | None = None
) -> pa.Table:
    """Return the table in `data`; CorruptCheckpointError, naming `origin`, where the checksum differs."""
    _verify(data, expected_sha256, origin, expected_nbytes)
    try:
        return pa.ipc.open_file(pa.py_buffer(data)).read_all()
    except pa.ArrowInvalid as error:
        raise CorruptCheckpointError(f"{origin} is not an Arrow IPC file: {error}") from None


def _verify(data: bytes, expected_sha256: str, origin: str, expected_nbytes: int | None) -> bytes:
    actual = sha256_hex(data)
    if actual != expected_sha256:
        raise CorruptCheckpointError(
            f"{origin} is corrupt: its {len(data)} bytes have SHA-256 {actual}, the manifest says "
            f"{'' if expected_nbytes is None else f'{expected_nbytes} bytes with '}{expected_sha256}"
        )
    return data


def read_verified(checkpoint: CheckpointFiles, file: StateFile) -> bytes:
    """Return a file's contents. Raises CorruptCheckpointError where it is missing or does not match its checksum."""
    return _read(checkpoint, file, _verify)


def _read(checkpoint: CheckpointFiles, file: StateFile, check: Callable[..., T]) -> T:
    store, path = checkpoint.locate(file)
    origin = f"{store.url}/{path}"
    try:
        return read_checked(
            lambda: store.read(path), lambda data: check(data, file.sha256, origin, file.nbytes)
        )
    except MissingObject:
        raise CorruptCheckpointError(
            f"{origin} is missing, although the manifest names it ({file.nbytes} bytes)"
        ) from None


def read_part(
    checkpoint: CheckpointFiles, file: StateFile, key_groups: KeyGroupRange | None = None
) -> pa.Table:
    """Return a part's rows, of a keyed part only those of `key_groups` where given.

    Raises CorruptCheckpointError where the file is missing or does not match its checksum.
    """
    table = _read(checkpoint, file, decode_table)
    if key_groups is None or file.kind != "keyed":
        return table
    column = table.column(KEY_GROUP_COLUMN)
    return table.filter(pc.and_(pc.greater_equal(column, key_groups.start), pc.less(column, key_groups.stop)))


def operator_state(checkpoint: CheckpointFiles, manifest: Manifest, uid: str) -> dict[str, pa.Table]:
    """Return the whole state of operator `uid` by part, the subtasks' tables one below the other.

    Raises ConfigError, naming the nearest, where the checkpoint has no such operator.
    """
    if uid not in manifest.operators:
        near = difflib.get_close_matches(uid, manifest.operators, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(sorted(manifest.operators))}"
        raise ConfigError(f"{checkpoint.url} has no operator {uid!r}; {hint}")
    tables: dict[str, list[pa.Table]] = {}
    own = sorted(
        (file for file in manifest.files if file.uid == uid), key=lambda f: (f.part, f.subtask_index)
    )
    for file, table in state_tables(own, lambda file: read_part(checkpoint, file)):
        tables.setdefault(file.part, []).append(table)
    return {part: pa.concat_tables(parts, promote_options="permissive") for part, parts in tables.items()}
