"""Sinks without a target: printing and discarding. Both are at-least-once: they commit nothing."""

from __future__ import annotations

import sys

import pyarrow as pa

from rayflow.batch.changelog import OP_SYMBOLS, is_changelog, ops, visible
from rayflow.connectors.json_lines import render_rows
from rayflow.operators.contracts import Sink


class PrintSink(Sink):
    """Prints every row to standard output as one JSON object a line, as soon as it comes.

    Rows of an upsert stream begin with what happens to their key: `+I`, `-U`, `+U` or `-D`. `prefix` begins
    every line, followed by a blank. At-least-once: after a failure, rows since the last checkpoint are printed
    again. Each batch is written at once, so lines of several subtasks do not mix.
    """

    wants_old_rows = True

    def __init__(self, prefix: str = "") -> None:
        self._prefix = f"{prefix} " if prefix else ""

    def write(self, batch: pa.RecordBatch) -> None:
        """Print the rows."""
        lines = render_rows(visible(batch))
        if is_changelog(batch.schema):
            lines = [f"{OP_SYMBOLS[op]} {line}" for op, line in zip(ops(batch).tolist(), lines, strict=True)]
        sys.stdout.write("".join(f"{self._prefix}{line}\n" for line in lines))
        sys.stdout.flush()


class DiscardSink(Sink):
    """Drops every row."""

    def write(self, batch: pa.RecordBatch) -> None:
        """Drop the rows."""
