"""Poison rows: what operators that take rows one by one, or by pieces, do with those on which they raise.

Theory of operation
-------------------
An operator with a policy other than `"fail"` has a `PoisonRows`. It says, in `tolerates`, whether an error is one
of the row, and takes the row with `add`; what was taken is counted and, where the policy is a side output,
leaves with the next `flush`, within the same call of the engine: so rows, side output and count stand together before
a barrier or behind it. The count is state (list part `poison`), which makes it exact over restarts, as the rows are.

Whoever works on whole batches finds the poison rows by halves (`in_pieces`): what raises is cut in two until a single
row raises. That calls the work again for rows of the same batch: it must not have effects, nor keep state.

The first poison row of an operator in an attempt is told to the job's events, with its error and values; then
every time their number has grown tenfold.

Not poison, whatever the policy: errors that rayflow itself raises about something else than a row, a `TransientError`
(which a user's function may raise to say that a restart will help), and memory that ran out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import pyarrow as pa

from rayflow.batch.tables import concat, render_sample
from rayflow.model.error_policy import ERROR_COLUMN, OPERATOR_COLUMN, SideOutput
from rayflow.model.errors import DataError, RayflowError, UserFunctionError
from rayflow.model.tracebacks import describe_error
from rayflow.observe.metrics import Gauge
from rayflow.operators.contracts import OperatorContext, Output
from rayflow.state.parts import RestoredPart, StatePart

POISONED = "rows_poisoned"
"""The metric: how many poison rows there were since the job began."""
PART = "poison"

T = TypeVar("T")


class PoisonRows:
    """The poison rows of one operator in one attempt."""

    def __init__(self, ctx: OperatorContext, out: Output, restored: Sequence[RestoredPart]) -> None:
        self._ctx = ctx
        self._out = out
        policy = ctx.errors
        self.tolerant = policy != "fail"
        """Whether the policy is another than `"fail"`."""
        self._tag = policy.tag if isinstance(policy, SideOutput) else None
        self._aside: list[pa.RecordBatch] = []
        self._causes: list[str] = []
        before = sum(sum(part.table.column("rows").to_pylist()) for part in restored if part.name == PART)
        # Not read back from the metric: while a restore catches up, several operators in turn share the context.
        self._total = before
        # Where none can be, nobody need see a zero.
        self._shown = ctx.metrics.gauge(POISONED) if self.tolerant or before else Gauge()
        self._shown.set(before)
        self._seen = 0
        self._tell_at = 1

    def tolerates(self, error: BaseException) -> bool:
        """Whether the row that raised this is to be left out, and the others go on."""
        out_of_memory = isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError)
        if not self.tolerant or not isinstance(error, Exception) or out_of_memory:
            return False
        return isinstance(error, UserFunctionError | DataError) or not isinstance(error, RayflowError)

    def add(self, row: pa.RecordBatch, error: Exception) -> None:
        """Take a row on which the operator raised an error that is tolerated."""
        cause = error.cause if isinstance(error, UserFunctionError) else describe_error(error)
        self._total += 1
        self._shown.set(self._total)
        self._seen += 1
        if self._tag is not None:
            self._aside.append(row)
            self._causes.append(cause)
        if self._seen >= self._tell_at:
            self._tell_at *= 10
            self._tell(row, cause)

    def flush(self) -> None:
        """Emit to the side output what was taken since the last time."""
        if not self._aside or self._tag is None:
            return
        rows, causes = concat(self._aside), self._causes
        self._aside, self._causes = [], []
        columns = [*rows.columns, pa.array(causes, pa.string()), pa.array([self._ctx.name] * len(causes))]
        batch = pa.RecordBatch.from_arrays(columns, schema=poison_schema(rows.schema))
        wanted = self._ctx.side_outputs.get(self._tag)
        self._out.emit_side(self._tag, batch if wanted is None else batch.cast(wanted))

    def snapshot(self) -> list[StatePart]:
        """Return the count as state."""
        if not self._total:
            return []
        table = pa.table({"rows": pa.array([self._total], pa.int64())})
        return [StatePart(name=PART, kind="list", build=lambda: table)]

    def _tell(self, row: pa.RecordBatch, cause: str) -> None:
        done = "skipped" if self._tag is None else f"put aside as {self._tag!r}"
        rows = "a row" if self._seen == 1 else f"{self._seen} rows"
        self._ctx.warn(
            "rows_poisoned",
            f"{self._ctx.name}: {rows} {done} so far in subtask {self._ctx.subtask_index}; the last, "
            f"{render_sample(row)}, raised {cause}",
        )


def poison_schema(schema: pa.Schema) -> pa.Schema:
    """Return the columns of a side output of poison rows of `schema`."""
    return pa.schema([*schema, (ERROR_COLUMN, pa.string()), (OPERATOR_COLUMN, pa.string())])


def in_pieces(rows: pa.RecordBatch, work: Callable[[pa.RecordBatch], T], poison: PoisonRows) -> list[T]:
    """Return what `work` makes of `rows`, in order, in as many pieces as it takes to leave the poison rows out. One
    piece, where nothing raises or nothing is tolerated; then whatever is raised goes on."""
    made: list[T] = []
    todo = [rows]
    while todo:
        piece = todo.pop()
        try:
            made.append(work(piece))
        except Exception as error:
            if not poison.tolerates(error):
                raise
            if piece.num_rows <= 1:
                poison.add(piece, error)
            else:
                half = piece.num_rows // 2
                todo += [piece.slice(half), piece.slice(0, half)]
    return made
