"""Files as a sink: rows become visible, exactly once, when their checkpoint is complete.

Theory of operation. Rows go to *staged* files `<path>/_rayflow/<job id>/<attempt>/….pending`. At a barrier
`prepare` finishes them and returns their names, staged and final; that goes into the checkpoint. Once the
checkpoint is complete `commit` moves each staged file to its final name, which ends with the format's suffix.
A staged file exists once, so whoever moves it publishes it; finding it gone and the final one there means it was
done before. That makes every order of commits harmless:

* the same commit twice, or again after a restore: the second finds the files moved;
* a commit interrupted in the middle: the next one moves what is left;
* a zombie of an older attempt, late: all it holds permits for is in the checkpoint that the new attempt restored
  and committed before it wrote anything, so there is nothing left to move, and no newer file it could replace;
* a zombie that goes on writing: below its own attempt's directory, which `restored` and `finish_job` remove;
  since only `open` makes that directory, on a local disk such a zombie then fails;
* a commit whose outcome is unknown (the answer got lost, or came too late): it was applied if the final file is there
  and the staged one is not; else publishing again is harmless, and after `PUBLISH_TRIES` the attempt fails, and the
  next one commits again.

Commits run in the background: a storage that is slow, or hangs, holds up no rows.

Neither staged nor final file: rows were lost by someone else's hand, and commit fails loudly.

Two ways of writing share all this: `append` (`append_files.py`) adds files, `upsert` (`upsert_files.py`)
replaces bucket files.

Invariants:

1. A name with the format's suffix belongs to committed rows only.
2. Nothing of other jobs below `_rayflow` is touched, except that restoring from another job's checkpoint
   commits the transactions in it.
3. A commit for which neither staged nor final file exists raises.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import pyarrow as pa

from rayflow.batch.changelog import is_changelog, visible_schema
from rayflow.connectors.append_files import AppendWriter
from rayflow.connectors.file_formats import FORMATS, SUFFIXES, FormatName
from rayflow.connectors.staged_files import FileWriter, StagedNames, may_be_pending
from rayflow.connectors.targets import Target, absolute_url, open_target
from rayflow.connectors.upsert_files import UpsertWriter, bucket_name, check_base
from rayflow.model.errors import ConfigError, PlanError, StorageError
from rayflow.operators.contracts import Sink, SinkContext
from rayflow.protocol.commits import CommitPermit

STAGING = "_rayflow"
PUBLISH_TRIES = 3
"""How often a file is published before the commit, and with it the attempt, fails."""

Mode = Literal["append", "upsert"]
IfExists = Literal["error", "append", "overwrite"]


class FileSink(Sink):
    """Writes rows to files of one format below `path` (local, `file://` or `s3://`).

    `mode="append"`: each checkpoint adds at most a few files per subtask (and partition), rows in the order in
    which they came. `mode="upsert"` needs `upsert_key`: files hold the last row of every key; which are
    rewritten as a whole when one of their keys changes. `partition_by` columns become Hive directories
    (`column=value/`) and are not in the files; upserts can be partitioned by key columns only.

    `if_exists` is about a fresh job: `"error"` refuses a path with anything in it; `"append"` leaves what is
    there (upserts take it as their base, if they wrote it, with the same `max_parallelism`); `"overwrite"` first
    removes all files with the suffix of any format, and leaves others alone.

    `options` are `s3.*` settings; the job's configuration fills in what they lack. `keep_changes` (for
    collecting) lets an upsert stream be appended as the changes it consists of. `whole_rows`: several rows may
    share the upsert key, and all columns tell rows apart (see `batch.changelog`).
    """

    commit_in_background = True

    def __init__(
        self,
        path: str | os.PathLike[str],
        format: FormatName = "parquet",
        mode: Mode = "append",
        if_exists: IfExists = "error",
        partition_by: Sequence[str] = (),
        upsert_key: Sequence[str] | None = None,
        options: Mapping[str, str] | None = None,
        *,
        keep_changes: bool = False,
        whole_rows: bool = False,
    ) -> None:
        _one_of("format", format, get_args(FormatName))
        _one_of("mode", mode, get_args(Mode))
        _one_of("if_exists", if_exists, get_args(IfExists))
        self.url = absolute_url(path)
        self.format = FORMATS[format]
        self.mode = mode
        self.if_exists = if_exists
        self.partition_by = tuple(partition_by)
        self.upsert_key = tuple(upsert_key or ())
        self.keep_changes = keep_changes
        self.whole_rows = whole_rows
        self._options = dict(options or {})
        self._schema: pa.Schema | None = None
        self._writer: FileWriter | None = None
        self._check_arguments()

    def __repr__(self) -> str:
        return f"FileSink({self.url.partition('?')[0]!r}, mode={self.mode!r})"

    # ------------------------------------------------------------------------------------------- plan

    def validate(self, schema: pa.Schema | None) -> None:
        """Check columns and types, where the schema is known, and remember it for a job without rows."""
        if schema is None:
            return
        if is_changelog(schema) and self.mode == "append" and not self.keep_changes:
            raise PlanError(
                "an upsert stream cannot be appended to files: rows in it change and disappear; "
                "write it with mode='upsert'"
            )
        columns = visible_schema(schema)
        for role, names in (("partition_by", self.partition_by), ("upsert key", self.upsert_key)):
            if missing := [name for name in names if name not in columns.names]:
                raise PlanError(f"{role} column {missing[0]!r} does not exist; there are {columns.names}")
        if unfit := [n for n in (*self.partition_by, *self.upsert_key) if _is_nested(columns.field(n).type)]:
            raise PlanError(f"column {unfit[0]!r} is nested and cannot name a partition or be a key")
        if self.whole_rows and (nested := [f.name for f in columns if _is_nested(f.type)]):
            raise PlanError(
                f"column {nested[0]!r} is {columns.field(nested[0]).type}: rows of this upsert stream are told apart "
                "by all their columns, and nested ones cannot be compared; leave it out with .drop()"
            )
        stored = pa.schema([f for f in columns if f.name not in self.partition_by])
        if not stored.names:
            raise PlanError("partition_by names every column; at least one must be left for the files")
        self.format.check(stored, read_back=self.mode == "upsert")
        self._schema = schema if self.keep_changes else columns

    def _check_arguments(self) -> None:
        if bool(self.upsert_key) != (self.mode == "upsert"):
            raise PlanError("mode='upsert' and upsert_key belong together; only one of them is given")
        if outside := [
            name
            for name in self.partition_by
            if self.mode == "upsert" and not self.whole_rows and name not in self.upsert_key
        ]:
            raise PlanError(
                f"partition_by column {outside[0]!r} is not part of the upsert key {list(self.upsert_key)}: "
                "a row that changes would have to move between partitions"
            )
        try:
            open_target(self.url, self._options)
        except ConfigError as error:
            raise PlanError(str(error)) from None
        if self.if_exists == "overwrite" and self.url.startswith("/"):
            _refuse_precious(Path(self.url))

    # ------------------------------------------------------------------------------------ job-level hooks

    def start_job(self, ctx: SinkContext) -> None:
        """Check or empty the target, and prove that it can be written."""
        target = self._target(ctx)
        self._prove_writable(target, ctx)
        existing = [path for path in target.list("") if not path.startswith(f"{STAGING}/")]
        if existing and self.if_exists == "error":
            more = f" and {len(existing) - 1} more" if len(existing) > 1 else ""
            raise PlanError(
                f"output {target.url} is not empty (it has {existing[0]}{more}); choose another path, or "
                "if_exists='overwrite' or 'append'"
            )
        if existing and self.if_exists == "append" and self.mode == "upsert":
            check_base(target.url, existing, self.format.suffix, ctx.max_parallelism)
        if self.if_exists == "overwrite":
            for path in existing:
                if path.endswith(SUFFIXES):
                    target.delete(path)

    def finish_job(self, ctx: SinkContext) -> None:
        """Remove what this job staged and no restore can commit; a finished job without rows leaves one empty
        Parquet or CSV file, so that the result can be read (not if it is partitioned)."""
        target = self._target(ctx)
        if ctx.succeeded:
            self._write_empty(target, ctx)
            self._remove_emptied(target)
        # Nothing unfinished can be part of a checkpoint.
        target.remove_unfinished(_job_directory(ctx.job_id))
        self._remove_garbage(target, ctx)
        target.remove_empty(STAGING)

    def restored(self, ctx: SinkContext) -> None:
        """Remove what attempts before `ctx.attempt` left."""
        target = self._target(ctx)
        job = _job_directory(ctx.job_id)
        self._remove_unfinished(target, ctx)
        attempts = {path[len(job) + 1 :].partition("/")[0] for path in target.list(job)}
        for attempt in sorted(attempts):
            if attempt.isdigit() and int(attempt) < ctx.attempt:
                target.delete_prefix(f"{job}/{attempt}")
        for number in range(1, ctx.attempt):
            target.remove_empty(f"{job}/{number}")

    def _make_room(self, ctx: SinkContext) -> None:
        """Remove what earlier attempts staged and no restore can need, before anything is written: they may have
        filled the disk."""
        if ctx.subtask_index != 0 or ctx.attempt <= 1:
            return
        restored = 0 if ctx.restored_job is not None else ctx.restored_checkpoint or 0
        job = _job_directory(ctx.job_id)
        own = f"{job}/{ctx.attempt}/"
        for path in self._out.list(job):
            if not path.startswith(own) and not may_be_pending(path, restored):
                self._out.delete(path)

    def _remove_unfinished(self, target: Target, ctx: SinkContext) -> None:
        for attempt in range(1, ctx.attempt):
            target.remove_unfinished(f"{_job_directory(ctx.job_id)}/{attempt}")

    def _remove_garbage(self, target: Target, ctx: SinkContext) -> None:
        """Remove what the ended job staged, but for what its newest checkpoint may have pending, and what attempts
        after this one have: these have another job manager, who has taken over from the one that ends the job here."""
        job, completed = _job_directory(ctx.job_id), 0 if ctx.succeeded else ctx.completed_checkpoint or 0
        for path in target.list(job):
            attempt = path[len(job) + 1 :].partition("/")[0]
            later = attempt.isdigit() and int(attempt) > ctx.attempt
            if not (later or may_be_pending(path, completed)):
                target.delete(path)
        for number in range(1, ctx.attempt + 1):
            target.remove_empty(f"{job}/{number}")
        target.remove_empty(job)

    def _prove_writable(self, target: Target, ctx: SinkContext) -> None:
        probe = f"{_job_directory(ctx.job_id)}/probe.pending"
        try:
            target.write(probe, b"")
            target.delete(probe)
            target.remove_empty(_job_directory(ctx.job_id))
            target.remove_empty(STAGING)
        except StorageError as error:
            raise PlanError(f"output {target.url} cannot be written: {error}") from None

    def _write_empty(self, target: Target, ctx: SinkContext) -> None:
        if self._schema is None or self.partition_by or self.format.suffix == ".jsonl":
            return
        committed = [path for path in target.list("") if path.endswith(self.format.suffix)]
        if committed:
            return
        name = f"part-{ctx.job_id}-empty{self.format.suffix}"
        if self.mode == "upsert":
            name = bucket_name(0, ctx.max_parallelism, self.format.suffix)
        stream = pa.BufferOutputStream()
        self.format.writer(stream, self._schema).close()
        target.write(name, bytes(stream.getvalue()))

    def _remove_emptied(self, target: Target) -> None:
        """Remove upsert files whose last row was deleted, of the one format whose readers stumble over them. Only
        now, when nobody can publish any more, is that safe."""
        if self.mode != "upsert" or self.format.suffix != ".jsonl":
            return
        for path in target.list(""):
            if path.endswith(self.format.suffix) and target.is_empty(path):
                target.delete(path)

    # --------------------------------------------------------------------------------------- subtask

    def open(self, ctx: SinkContext) -> None:
        """Make the directory for staged files."""
        self._ctx = ctx
        self._out = self._target(ctx)
        staging = f"{_job_directory(ctx.job_id)}/{ctx.attempt}"
        self._make_room(ctx)
        self._out.make_directory(staging)
        self._names = StagedNames(staging, ctx)
        self._writer = self._make_writer(ctx)

    def write(self, batch: pa.RecordBatch) -> None:
        """Stage rows."""
        self._opened().write(batch)

    def prepare(self, checkpoint_id: int) -> Any | None:
        """Finish the staged files."""
        files = self._opened().prepare(checkpoint_id)
        return {"target": self._out.url, "files": [list(names) for names in files]} if files else None

    def commit(self, permit: CommitPermit) -> None:
        """Give the staged files their final names; StorageError where a file is gone (invariant 3). Looks at nothing
        that the task thread changes."""
        target = self._target_of(permit.pending)
        for staged, final in permit.pending["files"]:
            self._publish(target, staged, final, permit)
        self._remove_foreign_directories(target, permit.pending["files"])

    def _publish(self, target: Target, staged: str, final: str, permit: CommitPermit) -> None:
        for tries_left in reversed(range(PUBLISH_TRIES)):
            try:
                if target.publish(staged, final) or target.exists(final):
                    return
            except StorageError:
                # It may have been applied all the same: what is there tells, or doing it again.
                if _was_published(target, staged, final):
                    return
                if not tries_left:
                    raise
            else:
                raise StorageError(
                    f"cannot commit checkpoint {permit.checkpoint_id} to {target.url}: neither {staged} nor "
                    f"{final} exists; someone has removed them, and their rows are lost"
                )

    def committed(self, permit: CommitPermit) -> None:
        """The files have their names."""
        if self._writer is not None:
            for staged, _ in permit.pending["files"]:
                self._writer.published(staged)
        self._names.reached(permit.checkpoint_id)

    def abort(self, pending: Any) -> None:
        """Delete the staged files. Only when the attempt is over: an upsert builds upon what it has staged."""
        target = self._target_of(pending)
        for staged, _ in pending["files"]:
            target.delete(staged)

    def close(self) -> None:
        """Give up what is not prepared."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _make_writer(self, ctx: SinkContext) -> FileWriter:
        if self.mode == "upsert":
            return UpsertWriter(
                self._out,
                self._names,
                self.format,
                ctx,
                self.upsert_key,
                self.partition_by,
                whole_rows=self.whole_rows,
            )
        drop_ops = not self.keep_changes
        return AppendWriter(self._out, self._names, self.format, self.partition_by, drop_ops=drop_ops)

    def _opened(self) -> FileWriter:
        if self._writer is None:
            raise RuntimeError(f"{self!r} is not open")
        return self._writer

    def _target(self, ctx: SinkContext) -> Target:
        settings = {key: str(value) for key, value in ctx.options.items() if key.startswith("s3.")}
        return open_target(self.url, {**settings, **self._options})

    def _target_of(self, pending: Any) -> Target:
        """The transaction's own target: a job restored with another output path still owes rows to the old."""
        url: str = pending["target"]
        if url == self._out.url:
            return self._out
        settings = {key: str(value) for key, value in self._ctx.options.items() if key.startswith("s3.")}
        query = self.url.partition("?")[2] if url.startswith("s3://") and self.url.startswith("s3://") else ""
        return open_target(url + (f"?{query}" if query else ""), {**settings, **self._options})

    def _remove_foreign_directories(self, target: Target, files: Sequence[Sequence[str]]) -> None:
        # After a restore from another job's checkpoint nobody else would tidy up its directories.
        own = f"{_job_directory(self._ctx.job_id)}/"
        for directory in {staged.rpartition("/")[0] for staged, _ in files}:
            if not directory.startswith(own):
                target.remove_empty(directory)
                target.remove_empty(directory.rpartition("/")[0])


def _was_published(target: Target, staged: str, final: str) -> bool:
    try:
        return target.exists(final) and not target.exists(staged)
    except StorageError:
        return False


def _job_directory(job_id: str) -> str:
    return f"{STAGING}/{job_id}"


def _one_of(what: str, value: str, allowed: Sequence[str]) -> None:
    if value not in allowed:
        raise PlanError(f"{what} is {value!r}; expected one of {', '.join(map(repr, allowed))}")


def _is_nested(type_: pa.DataType) -> bool:
    return bool(pa.types.is_nested(type_))


def _refuse_precious(path: Path) -> None:
    """Overwriting removes data files recursively: not from where a typing error leads."""
    here = Path.cwd()
    if path in (here, *here.parents, Path.home(), *Path.home().parents):
        raise PlanError(f"if_exists='overwrite' refuses {path}: it holds your home or working directory")
