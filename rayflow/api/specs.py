"""Specifications that users hand to streams: watermarks. Checked when they are made.

Windows and triggers are in `window_specs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from rayflow.api.planning import duration_ns, plan_error
from rayflow.graph.plan import TimeSpec

Duration = str | timedelta


@dataclass(frozen=True)
class Watermark:
    """Which column is event time, and how far out of order its rows may come.

    After each batch a split's watermark is its largest `column` − `delay` − 1 unit; a row whose window the
    watermark has passed is late. `idle_after`: a split without rows for so long (processing time) is left out
    of account. `max_ahead`: a timestamp further than this ahead of the split's watermark is taken for wrong: it
    becomes null, hence the row late, and is counted (`far_future_rows`). `max_drift`: a split that is further ahead
    of the slowest one waits.
    """

    column: str
    delay: Duration = "0s"
    idle_after: Duration | None = None
    max_ahead: Duration | None = None
    max_drift: Duration | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.column, str):
            raise plan_error(f"rf.Watermark: expected the name of a column; got {self.column!r}")
        spec = self.time_spec()
        if spec.max_ahead is not None and spec.max_ahead <= spec.delay:
            raise plan_error(
                f"rf.Watermark: max_ahead={self.max_ahead!r} must be longer than delay={self.delay!r}, by which every "
                "new row is ahead of the watermark"
            )

    def stamped(self, schema: pa.Schema | None) -> pa.Schema | None:
        """Return the schema of the rows that have this event time: wrong times become null."""
        index = -1 if schema is None or self.max_ahead is None else schema.get_field_index(self.column)
        return (
            schema
            if schema is None or index < 0
            else schema.set(index, schema.field(index).with_nullable(True))
        )

    def time_spec(self) -> TimeSpec:
        """Return the same in nanoseconds."""
        return TimeSpec(
            column=self.column,
            delay=duration_ns("rf.Watermark(delay=)", self.delay),
            idle_after=_optional_ns("idle_after", self.idle_after),
            max_ahead=_optional_ns("max_ahead", self.max_ahead),
            max_drift=_optional_ns("max_drift", self.max_drift),
        )


def _optional_ns(name: str, value: Duration | None) -> int | None:
    return None if value is None else duration_ns(f"rf.Watermark({name}=)", value, positive=True)
