"""What the API knows about a stream while it is being written down, and errors that name the user's line.

Everything here happens before any data flows. `StreamInfo` is what each call infers from the call before;
`at_user_line` turns whatever goes wrong in an inference into a PlanError at the line of the user's call.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType

import pyarrow as pa

from rayflow.batch.changelog import OP_COLUMN, changelog_schema
from rayflow.model.durations import parse_duration_ns
from rayflow.model.errors import ConfigError, PlanError
from rayflow.model.location import caller_location
from rayflow.operators.dedup.memories import CHUNK_COLUMN
from rayflow.state.parts import KEY_GROUP_COLUMN

RESERVED_COLUMNS = (OP_COLUMN, KEY_GROUP_COLUMN, CHUNK_COLUMN)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamInfo:
    """What is known of a stream's rows.

    `schema` has the columns a user sees, None where only running tells. `time_column` carries event time. An
    upsert stream has `is_upsert`, and `upsert_key` unless the key got lost on the way; with `whole_rows` several
    rows may share it, and old rows always come complete (see `batch.changelog`). `partitioned_by`
    names the columns that hold the keys of the last hash exchange. `window_ns` is (size, offset) of the
    windows whose starts `time_column` holds.
    """

    schema: pa.Schema | None = None
    time_column: str | None = None
    is_upsert: bool = False
    upsert_key: tuple[str, ...] | None = None
    whole_rows: bool = False
    partitioned_by: tuple[str, ...] | None = None
    window_ns: tuple[int, int] | None = None

    @property
    def physical_schema(self) -> pa.Schema | None:
        """The schema of the batches: with the hidden column for an upsert stream."""
        if self.schema is None or not self.is_upsert:
            return self.schema
        return changelog_schema(self.schema)


class at_user_line:
    """Context in which errors about the plan get the location of the user's call."""

    def __enter__(self) -> None:
        """Nothing to prepare."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Raise a PlanError with a location in place of an error without one."""
        if isinstance(error, PlanError):
            if error.location is None:
                raise PlanError(error.message, user_line()) from error.__cause__
        elif isinstance(error, ConfigError | pa.ArrowException):
            raise PlanError(str(error), user_line()) from error


def user_line() -> str | None:
    """Return the user's line that led here, as text."""
    location = caller_location()
    return None if location is None else str(location)


def plan_error(message: str) -> PlanError:
    """Return a PlanError at the user's line."""
    return PlanError(message, user_line())


def duration_ns(what: str, value: str | timedelta, *, positive: bool = False) -> int:
    """Return a duration in nanoseconds. Raises PlanError naming `what`, at the user's line."""
    try:
        nanos = parse_duration_ns(value)
    except ConfigError as error:
        raise plan_error(f"{what}: {error}") from None
    if positive and nanos == 0:
        raise plan_error(f"{what}: expected a duration longer than zero; got {value!r}")
    return nanos


def unknown_column(name: str, names: Iterable[str], what: str) -> PlanError:
    """Return the error that `what` names a column that is not there, with the nearest one."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return plan_error(f"{what}: unknown column {name!r}; {hint}the stream has {', '.join(known) or 'none'}")


def known_schema(info: StreamInfo, what: str) -> pa.Schema:
    """Return the schema of the stream. Raises PlanError, asking for `returns=`, where it is not known."""
    if info.schema is None:
        raise plan_error(
            f"{what}: the columns of this stream are not known, since a Python function made it without saying "
            "what it returns; give that function returns= (a pyarrow.schema, or {'column': type})"
        )
    return info.schema


def require_columns(info: StreamInfo, names: Iterable[str], what: str) -> pa.Schema:
    """Return the stream's schema, which has every one of `names`; PlanError otherwise."""
    schema = known_schema(info, what)
    for name in names:
        if name not in schema.names:
            raise unknown_column(name, schema.names, what)
    return schema


def refuse_upsert(info: StreamInfo, what: str) -> None:
    """Raise PlanError where the stream is an upsert stream."""
    if info.is_upsert:
        raise plan_error(
            f"{what} is not supported on upsert streams, whose rows replace earlier ones of the same key; do it "
            "before the running aggregate, or use a window, whose results are final"
        )


def output_schema(fields: Iterable[pa.Field], what: str) -> pa.Schema:
    """Return a schema of `fields`. Raises PlanError for a name that occurs twice or is rayflow's own, and for
    types whose rows Arrow can neither filter nor take."""
    schema = pa.schema(list(fields))
    for field in schema:
        if pa.types.is_string_view(field.type) or pa.types.is_binary_view(field.type):
            plain = str(field.type).removesuffix("_view")
            raise plan_error(
                f"{what}: column {field.name!r} is {field.type}, whose rows Arrow cannot select; cast it to {plain}"
            )
    for name, times in Counter(schema.names).items():
        if name in RESERVED_COLUMNS:
            raise plan_error(f"{what}: the column name {name!r} is reserved; choose another")
        if times > 1:
            raise plan_error(f"{what}: two columns are named {name!r}; give one of them .alias(name)")
    return schema


def event_time_unit(info: StreamInfo, column: str, what: str) -> None:
    """Raise PlanError unless `column` can carry event time: a timestamp, with or without zone."""
    if info.schema is None:
        return
    schema = require_columns(info, [column], what)
    found = schema.field(column).type
    if not pa.types.is_timestamp(found):
        raise plan_error(
            f"{what}: column {column!r} is {found}, expected a timestamp; cast it first, such as "
            f".with_columns({column}=col({column!r}).cast(pa.timestamp('ms')))"
        )
