"""Reads a byte range of a file of lines: JSON lines and plain text.

A range [start, stop) holds the lines that begin in it: a reader that starts in the middle of a line skips to the next
one, and finishes the line that crosses its end. Positions are offsets of line beginnings.

A reader that is to skip what it cannot read (`skip_bad`) finds such lines by halves: what does not parse is cut in two.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from rayflow.batch.tables import concat
from rayflow.model.errors import DataError
from rayflow.operators.source_contract import SplitReader

_BLOCK_BYTES = 1 << 20
_PIECE_BYTES = 4096
_SAMPLE_BYTES = 4 << 20


class LineRange:
    """The lines of a range, a block at a time."""

    def __init__(self, filesystem: Any, path: str, start: int, stop: int, position: int | None) -> None:
        self._file = filesystem.open_input_file(path)
        self._stop = stop
        self.at = start if position is None else position
        if position is None and start > 0:
            # The byte before tells whether a line begins right at `start`.
            self.at = start - 1
            self._file.seek(self.at)
            self.at += len(self._rest_of_line())

    def next_block(self, max_lines: int) -> list[bytes]:
        """Return up to `max_lines` whole lines, with their ends; none at the end of the range."""
        if self.at >= self._stop:
            return []
        self._file.seek(self.at)
        data = self._file.read(min(_BLOCK_BYTES, self._stop - self.at))
        if not data.endswith(b"\n"):
            data += self._rest_of_line()
        lines = data.split(b"\n")
        last = lines.pop()
        whole = [line + b"\n" for line in lines] + ([last] if last else [])
        taken = whole[:max_lines]
        self.at += sum(len(line) for line in taken)
        return taken

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _rest_of_line(self) -> bytes:
        """Read on to the end of the line (or file); the file's offset may end up anywhere."""
        rest = b""
        while piece := bytes(self._file.read(_PIECE_BYTES)):
            end = piece.find(b"\n")
            if end >= 0:
                return rest + piece[: end + 1]
            rest += piece
        return rest


class _LineReader(SplitReader):
    """What readers of lines share."""

    def __init__(self, path: str, lines: LineRange, skip_bad: bool) -> None:
        self._path = path
        self._lines = lines
        self._skip_bad = skip_bad
        self._skipped: list[str] = []

    def position(self) -> int:
        """Offset of the next line."""
        return self._lines.at

    def skipped(self) -> Sequence[str]:
        """See `SplitReader`."""
        problems, self._skipped = self._skipped, []
        return problems

    def close(self) -> None:
        """Close the file."""
        self._lines.close()


class TextReader(_LineReader):
    """Lines as the one column `line`, without their ends (`\\n` or `\\r\\n`)."""

    def __init__(
        self,
        filesystem: Any,
        path: str,
        start: int,
        stop: int,
        position: int | None,
        *,
        skip_bad: bool = False,
    ) -> None:
        super().__init__(path, LineRange(filesystem, path, start, stop, position), skip_bad)

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next lines."""
        before = self._lines.at
        lines = self._lines.next_block(max_rows)
        if not lines:
            return None
        try:
            texts = [line.rstrip(b"\r\n").decode() for line in lines]
        except UnicodeDecodeError as error:
            if not self._skip_bad:
                raise DataError(
                    f"{self._path}, at or after byte {before}: not UTF-8 text: {error}"
                ) from error
            texts = self._readable(lines, before)
        return pa.RecordBatch.from_pydict({"line": pa.array(texts, pa.string())})

    def _readable(self, lines: list[bytes], offset: int) -> list[str]:
        texts = []
        for line in lines:
            try:
                texts.append(line.rstrip(b"\r\n").decode())
            except UnicodeDecodeError as error:
                self._skipped.append(f"{self._path}, line at byte {offset}: not UTF-8 text: {error}")
            offset += len(line)
        return texts


class JsonLinesReader(_LineReader):
    """Objects as rows of `schema`; fields it does not name are ignored, absent ones are null, blank lines skipped."""

    def __init__(
        self,
        filesystem: Any,
        path: str,
        start: int,
        stop: int,
        schema: pa.Schema,
        position: int | None,
        *,
        skip_bad: bool = False,
    ) -> None:
        super().__init__(path, LineRange(filesystem, path, start, stop, position), skip_bad)
        self._schema = schema

    def read(self, max_rows: int) -> pa.RecordBatch | None:
        """Return the next objects."""
        before = self._lines.at
        lines = self._lines.next_block(max_rows)
        if not lines:
            return None
        try:
            return _parse(b"".join(lines), self._schema)
        except pa.ArrowInvalid as error:
            if not self._skip_bad:
                raise self._explained(lines, before, error) from error
            return self._readable(lines, before)

    def _readable(self, lines: list[bytes], offset: int) -> pa.RecordBatch:
        batches = [_parse(b"", self._schema)]
        todo = [(lines, offset)]
        while todo:
            piece, at = todo.pop()
            try:
                batches.append(_parse(b"".join(piece), self._schema))
            except pa.ArrowInvalid as error:
                half = len(piece) // 2
                if half == 0:
                    self._skipped.append(str(self._explained(piece, at, error)))
                else:
                    todo.append((piece[half:], at + sum(map(len, piece[:half]))))
                    todo.append((piece[:half], at))
        return concat(batches)

    def _explained(self, lines: list[bytes], offset: int, error: Exception) -> DataError:
        for line in lines:
            try:
                _parse(line, self._schema)
            except pa.ArrowInvalid as cause:
                shown = line[:120].decode(errors="replace").strip()
                return DataError(f"{self._path}, line at byte {offset}: {_reason(line, cause)}: {shown}")
            offset += len(line)
        return DataError(f"{self._path}, after byte {offset}: {error}")


def json_schema(filesystem: Any, path: str) -> pa.Schema:
    """Return the fields and types of the objects in the first 4 MiB."""
    with filesystem.open_input_stream(path) as stream:
        data = stream.read(_SAMPLE_BYTES)
    if len(data) == _SAMPLE_BYTES:
        data = data[: data.rfind(b"\n") + 1]
    if not data.strip():
        raise DataError("it is empty, so its fields are not known; give schema=")
    try:
        schema = pa_json.read_json(pa.py_buffer(data)).schema
    except pa.ArrowInvalid as error:
        raise DataError(_unlike_the_others(data, error)) from error
    # A field that is always null there may turn out to be anything: text is the likeliest.
    return pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])


def _unlike_the_others(data: bytes, error: Exception) -> str:
    """Return which line Arrow could not make sense of: one that is no object, else one it found itself."""
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip() and not isinstance(_loaded(line), dict):
            return f"line {number}: {_reason(line, error)}: {line[:120].decode(errors='replace').strip()}"
    return f"{error}; give schema="


def _loaded(line: bytes) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _parse(data: bytes, schema: pa.Schema) -> pa.RecordBatch:
    if not data.strip():
        return pa.RecordBatch.from_pylist([], schema=schema)
    options = pa_json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    read = pa_json.ReadOptions(block_size=max(len(data) + 1, 1 << 16), use_threads=False)
    table = pa_json.read_json(pa.BufferReader(data), read_options=read, parse_options=options)
    return table.select(schema.names).combine_chunks().to_batches()[0]


def _reason(line: bytes, cause: Exception) -> str:
    try:
        parsed = json.loads(line)
    except ValueError as error:
        return f"not JSON ({error})"
    return str(cause) if isinstance(parsed, dict) else f"expected an object, got {type(parsed).__name__}"
