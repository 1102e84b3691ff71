"""State that several checkpoints' files make up together: a base, and links, each what changed since the one before.

The base (link 0) has all rows of its moment. Tables say in their metadata which of two ways it goes on:

- By key (`KEY_COLUMNS`: how many columns that is). A link has for each key that changed its row, or that it is gone
  (`GONE_COLUMN`). Read newest first, a key's first row is the one that counts: so no more than one table is held at a
  time, and the keys of the links. Where these are too many for the memory there is, all is read several times, each
  time for a part of the keys.
- By runs (`RUNS`), where a key may have several rows, which its owner merges in their order: rows are written once, in
  a run (`RUN_COLUMN`), which is dropped whole. A link has the rows of the runs that are new, perhaps none, and each
  table says which runs there are at its checkpoint. Read oldest first, the rows count of the runs that the newest link
  names.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from rayflow.batch.hashing import hash_columns
from rayflow.model.errors import CorruptCheckpointError
from rayflow.state.key_index import KeyIndex
from rayflow.state.manifest import StateFile
from rayflow.state.parts import GONE_COLUMN, KEY_COLUMNS, RUN_COLUMN, RUNS

_KEY_GROWTH, _INDEX_BYTES = 2, 48
"""What a key takes in an index: so many times its own bytes, and so many more."""


def state_tables(
    files: Iterable[StateFile], read: Callable[[StateFile], pa.Table]
) -> Iterator[tuple[StateFile, pa.Table]]:
    """Yield the rows that files hold, with a file that says of what: of a chain the rows that its files make up, a
    table at a time. `read` gives the rows of a file; see `merged`."""
    whole = list(files)
    for file in whole:
        if file.link is None:
            yield file, read(file)
    for chain in chains(whole).values():
        for table in merged(chain, read):
            yield chain[0], table


def chains(files: Iterable[StateFile]) -> dict[tuple[str, str, int], list[StateFile]]:
    """Return the files that are in chains, by operator, state and the subtask that wrote them."""
    found: dict[tuple[str, str, int], list[StateFile]] = {}
    for file in files:
        if file.link is not None:
            found.setdefault((file.uid, file.part, file.subtask_index), []).append(file)
    return found


def merged(
    files: Sequence[StateFile],
    read: Callable[[StateFile], pa.Table],
    keys_bytes: int | None = None,
    keep_runs: bool = False,
) -> Iterator[pa.Table]:
    """Yield the rows that the files of one chain make up, a table at a time, each key once; or the rows of runs, each
    run's one after the other, which `keep_runs` leaves with its number.

    `read` gives the rows of a file, perhaps of some keys only; it is called several times for one where the keys of
    links would take more than about `keys_bytes` of memory. Raises what it raises, and CorruptCheckpointError where
    links are missing."""
    links = sorted({file.link or 0 for file in files})
    if links != list(range(len(links))):
        raise CorruptCheckpointError(f"the state of {files[0].uid!r} has links {links}: some are missing")
    newest_first = sorted(files, key=lambda file: -(file.link or 0))
    newest = read(newest_first[0])
    if RUNS in (newest.schema.metadata or {}):
        oldest_first = sorted(files, key=lambda file: file.link or 0)
        return _of_runs(oldest_first, read, newest.schema.metadata[RUNS], keep_runs)
    return _by_key(newest_first, read, _passes(newest_first, read, keys_bytes))


def _of_runs(
    oldest_first: Sequence[StateFile], read: Callable[[StateFile], pa.Table], packed: bytes, keep_runs: bool
) -> Iterator[pa.Table]:
    there = unpacked_runs(packed)
    for file in oldest_first:
        table = read(file)
        of = table.column(RUN_COLUMN).to_numpy()
        kept = table.filter(pa.array(np.isin(of, there))) if len(of) else table
        kept = kept if keep_runs else kept.drop_columns([RUN_COLUMN])
        yield kept.replace_schema_metadata(None)


def _by_key(
    newest_first: Sequence[StateFile], read: Callable[[StateFile], pa.Table], passes: int
) -> Iterator[pa.Table]:
    for number in range(passes):
        seen: KeyIndex | None = None
        for file in newest_first:
            table = read(file)
            if passes > 1:
                table = table.filter(pa.array(_pass_of(table, passes) == number))
            if not newest_first[0].link:
                yield table
                continue
            seen = seen or KeyIndex(_keys(table).schema)
            kept = _unseen(seen, table, is_base=not file.link)
            yield kept.drop_columns([GONE_COLUMN]) if file.link else kept


def _passes(files: Sequence[StateFile], read: Callable[[StateFile], pa.Table], keys_bytes: int | None) -> int:
    """Return how many times to read, by the keys that the links have if their files are like the largest."""
    links = [file for file in files if file.link and file.rows]
    if keys_bytes is None or not links:
        return 1
    largest = max(links, key=lambda file: file.rows)
    sample = read(largest)
    # After rescaling these are some of the file's rows only.
    rows = sum(file.rows for file in links) * sample.num_rows / largest.rows
    key_bytes = _keys(sample).nbytes / max(1, sample.num_rows)
    nbytes: float = rows * (_KEY_GROWTH * key_bytes + _INDEX_BYTES)
    return max(1, math.ceil(nbytes / keys_bytes))


def _pass_of(table: pa.Table, passes: int) -> npt.NDArray[np.uint64]:
    keys = _keys(table)
    hashes = (
        hash_columns(keys.combine_chunks().to_batches()[0], keys.schema.names) if table.num_rows else None
    )
    # Other bits than those by which rows find their subtask.
    return np.zeros(0, np.uint64) if hashes is None else (hashes >> np.uint64(32)) % np.uint64(passes)


def packed_runs(runs: Iterable[int]) -> bytes:
    """Return the numbers of runs as `RUNS` has them."""
    numbers = np.sort(np.fromiter(runs, np.int64))
    return zlib.compress(np.diff(numbers, prepend=0).astype("<i8").tobytes())


def unpacked_runs(packed: bytes) -> npt.NDArray[np.int64]:
    """Return the numbers of runs, ascending."""
    numbers: npt.NDArray[np.int64] = np.cumsum(np.frombuffer(zlib.decompress(packed), "<i8"))
    return numbers


def _unseen(seen: KeyIndex, table: pa.Table, *, is_base: bool) -> pa.Table:
    keys = _keys(table).combine_chunks()
    rows = np.zeros(table.num_rows, np.bool_)
    at = 0
    for batch in keys.to_batches():
        if is_base:
            rows[at : at + batch.num_rows] = seen.find(batch) < 0
        else:
            rows[at + seen.insert(batch)[1]] = True
        at += batch.num_rows
    if not is_base:
        rows &= ~table.column(GONE_COLUMN).to_numpy()
    return table.filter(pa.array(rows))


def _keys(table: pa.Table) -> pa.Table:
    width = int((table.schema.metadata or {}).get(KEY_COLUMNS, 0))
    if width == 0:
        raise CorruptCheckpointError("a table of a chain does not say which columns are its key")
    return table.select(list(range(width))).replace_schema_metadata(None)
