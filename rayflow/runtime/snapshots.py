"""State to storage and back: what runs on the I/O pool when a task snapshots or restores.

Both functions block and touch nothing that the task thread changes. A part without rows is not written.
Files are Arrow IPC, named by operator, subtask, part and attempt, so that attempts never overwrite each other.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa

from rayflow.model.ids import Attempt, CheckpointId, SubtaskId
from rayflow.protocol.increments import Increment
from rayflow.protocol.key_groups import KeyGroupRange
from rayflow.runtime.in_flight import read_in_flight
from rayflow.runtime.messages import RestoreInfo
from rayflow.runtime.replay import RestoredState
from rayflow.state.chains import chains, merged, state_tables
from rayflow.state.files import encode_table, encode_tables, read_part, read_verified, sha256_hex
from rayflow.state.manifest import CheckpointFiles, StateFile
from rayflow.state.parts import RUN_COLUMN, RestoredPart, StatePart, StreamedPart
from rayflow.state.publishing import write_surely
from rayflow.state.storage import ObjectStore

_KEYS_PART, _MIN_KEYS_BYTES = 8, 256 << 10
OpenStore = Callable[[str, Mapping[str, str]], ObjectStore]


def upload(
    store: ObjectStore,
    directory: str,
    parts: Sequence[tuple[str, StatePart]],
    *,
    subtask: SubtaskId,
    attempt: Attempt,
    key_groups: KeyGroupRange,
    increment: Increment[StateFile] | None = None,
) -> tuple[StateFile, ...]:
    """Write the parts, (operator uid, part) each, under `directory`; return what the checkpoint consists of: what was
    written, and the files of the checkpoints that it builds on, by `increment`.

    Raises StorageError; files already written stay, to be removed with their checkpoint's directory.
    """
    files: list[StateFile] = []
    for uid, part in parts:
        older = _inherited(increment, uid, part)
        link = None if part.stream is None else 1 + max((file.link or 0 for file in older), default=-1)
        since = increment.since if increment is not None and older else None
        files += older
        for number, (data, rows) in enumerate(_encoded(part, since)):
            piece = part.name if part.stream is None else f"{part.name}-{number}"
            path = f"{_safe(uid)}-{subtask.index}-{piece}-a{attempt}.arrow"
            write_surely(store, f"{directory}/{path}", data)
            files.append(
                StateFile(
                    path=path,
                    uid=uid,
                    part=part.name,
                    kind=part.kind,
                    subtask_index=subtask.index,
                    nbytes=len(data),
                    sha256=sha256_hex(data),
                    rows=rows,
                    key_groups=(key_groups.start, key_groups.stop) if part.kind == "keyed" else None,
                    link=link,
                )
            )
    return tuple(files)


def _inherited(increment: Increment[StateFile] | None, uid: str, part: StatePart) -> tuple[StateFile, ...]:
    """Return the files that a part builds on, as the new checkpoint names them."""
    if increment is None or part.stream is None or not part.extends(increment.since):
        return ()
    return tuple(
        replace(file, origin=increment.since if file.origin is None else file.origin)
        for file in increment.chains.get((uid, part.name), ())
    )


def _encoded(part: StatePart, since: CheckpointId | None) -> Iterator[tuple[bytes, int]]:
    """Yield the files of a part, and how many rows each holds."""
    if part.stream is not None:
        yield from encode_tables(part.stream(since), part.file_bytes)
    elif (table := part.build()).num_rows:
        yield encode_table(table), table.num_rows


def restore(
    open_store: OpenStore,
    options: Mapping[str, str],
    info: RestoreInfo,
    key_groups: KeyGroupRange,
    spool: ObjectStore | None = None,
    managed_bytes: int | None = None,
) -> RestoredState:
    """Read and verify the state files of one subtask; return its parts by operator uid, and what was in flight.

    With a `spool` what may be larger than memory is copied there a file at a time, and read from it when it is wanted;
    keys that are held meanwhile (see `state.chains`) take a small part of `managed_bytes`.
    Raises StorageError, or CorruptCheckpointError when a file does not match its checksum.
    """
    parts: dict[str, list[RestoredPart]] = defaultdict(list)
    checkpoint = CheckpointFiles(info.directory, lambda url: open_store(url, options))
    in_flight = [read_in_flight(checkpoint, file) for file in info.files if file.kind == "in-flight"]
    states = [file for file in info.files if file.kind != "in-flight"]
    if spool is not None:
        keys_bytes = None if managed_bytes is None else max(_MIN_KEYS_BYTES, managed_bytes // _KEYS_PART)
        for uid, part in _spooled(checkpoint, states, info, key_groups, spool, keys_bytes):
            parts[uid].append(part)
        states = [file for file in states if file.link is None]
    for file, table in state_tables(states, lambda file: read_part(checkpoint, file, key_groups)):
        parts[file.uid].append(
            RestoredPart(
                name=file.part,
                kind=file.kind,
                table=table,
                writer_index=file.subtask_index,
                checkpoint_id=info.checkpoint_id,
            )
        )
    return RestoredState(parts=dict(parts), in_flight=tuple(in_flight), rescaled=info.rescaled)


def _spooled(
    checkpoint: CheckpointFiles,
    files: Sequence[StateFile],
    info: RestoreInfo,
    key_groups: KeyGroupRange,
    spool: ObjectStore,
    keys_bytes: int | None,
) -> Iterator[tuple[str, RestoredPart]]:
    """Copy the files of chains into `spool`, each verified; yield (operator uid, part)s that read them from there."""
    copies = CheckpointFiles("", lambda url: spool)
    for (uid, name, index), chain in chains(files).items():
        schema: pa.Schema | None = None
        copied = []
        for number, file in enumerate(chain):
            data = read_verified(checkpoint, file)
            if not file.link:
                schema = pa.ipc.open_file(pa.py_buffer(data)).schema
            copy = replace(file, path=f"{_safe(uid)}-{name}-{index}-{number}", origin=None)
            spool.write(copy.path, data)
            copied.append(copy)
        own = info.goes_on and chain[0].key_groups == (key_groups.start, key_groups.stop)
        if schema is not None and not own and RUN_COLUMN in schema.names:
            schema = schema.remove(schema.get_field_index(RUN_COLUMN))
        read = partial(
            merged, copied, lambda file: read_part(copies, file, key_groups), keys_bytes, keep_runs=own
        )
        yield uid, StreamedPart(name, chain[0].kind, index, info.checkpoint_id, schema, read)


def written_by(path: str) -> int:
    """Return the attempt that wrote a state file, by its name; 0 for what is no state file."""
    digits = path.rpartition("-a")[2].removesuffix(".arrow")
    return int(digits) if path.endswith(".arrow") and digits.isascii() and digits.isdigit() else 0


def _safe(uid: str) -> str:
    # A uid is the user's text: keep file names portable, and distinct for distinct uids.
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in uid)[:60]
    return kept if kept == uid else f"{kept}-{hashlib.sha256(uid.encode()).hexdigest()[:8]}"
