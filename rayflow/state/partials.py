"""Partial aggregates on their way to where they are merged: a row per key (and slice) with the states of accumulators.

Theory of operation. Whoever combines rows before an exchange (`rayflow.skew`) sends, in place of them, batches of
the key columns, the number of rows that are in each partial aggregate (`ROWS`), for windows of event time the number
of the slice (`SLICE`), and the states as columns, `<aggregate>.<part>`. The operator behind the exchange adds these
states where it would have added rows. It tells by the columns which of the two a batch holds, so both may come in
on one input: rows in flight in a checkpoint of a job without combining are still what they were.

Rows that may turn out late, and are to be put aside as they came, travel in their partial aggregate (`WholeRows`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from rayflow.batch.aggregates import AggregateExpr
from rayflow.state.accumulators.base import I64

ROWS, SLICE = "__partial_rows", "__slice"
WHOLE_ROWS = "__whole_rows"

NO_SLICE = int(np.iinfo(np.int64).min)
"""Stands for the slice of rows without a time. Never the number of a slice: times so small are refused."""


def is_partial(schema: pa.Schema) -> bool:
    """Return whether batches of `schema` are partial aggregates, rather than rows."""
    return bool(schema.get_field_index(ROWS) >= 0)


def counts_of_rows(batch: pa.RecordBatch) -> I64 | int:
    """Return how many rows each row of `batch` stands for: an array, or 1 for all."""
    if not is_partial(batch.schema):
        return 1
    counts: I64 = batch.column(ROWS).to_numpy()
    return counts


def rows_in(batch: pa.RecordBatch) -> int:
    """Return how many rows `batch` stands for."""
    counts = counts_of_rows(batch)
    return batch.num_rows if isinstance(counts, int) else int(counts.sum())


def slices_in(partials: pa.RecordBatch) -> I64:
    """Return the slices of partial aggregates."""
    slices: I64 = np.array(partials.column(SLICE).to_numpy())
    return slices


def whole_rows(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the rows that `batch` stands for: itself, or those that came along with partial aggregates."""
    if not is_partial(batch.schema):
        return batch
    return pa.RecordBatch.from_struct_array(batch.column(f"{WHOLE_ROWS}.values").flatten())


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class WholeRows(AggregateExpr):
    """The aggregate that keeps every row, with all of its columns."""

    def input_type(self, schema: pa.Schema) -> pa.DataType:
        """See `AggregateExpr`."""
        return pa.struct(list(schema))

    def input_values(self, batch: pa.RecordBatch) -> Any:
        """See `AggregateExpr`."""
        return pa.StructArray.from_arrays(batch.columns, fields=list(batch.schema))

    def output_type(self, schema: pa.Schema) -> pa.DataType:
        """See `AggregateExpr`."""
        return pa.list_(self.input_type(schema))


def all_whole_rows() -> WholeRows:
    """Return a fresh `WholeRows`."""
    return WholeRows("collect_list")
