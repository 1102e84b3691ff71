"""What a windowed stream knows when its results are asked for: the input, the windows, lateness, the trigger.

`WindowPlan` is what the makers of the kinds of windows get (`time_windows`, …); `opened` checks what all kinds
have in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from rayflow.api.planning import (
    StreamInfo,
    event_time_unit,
    output_schema,
    plan_error,
    refuse_upsert,
    require_columns,
)
from rayflow.api.side_outputs import SideOutputs
from rayflow.api.skew import KeyedInput, Skew, keyed_input
from rayflow.api.window_specs import (
    CountWindow,
    GlobalWindow,
    OnWatermark,
    Session,
    Sliding,
    TimeWindow,
    Trigger,
    Tumbling,
    WindowSpec,
)
from rayflow.skew.combining import Combination
from rayflow.windows.bounds import PROCESSING_TIME_TYPE, WINDOW_END, WINDOW_START

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowPlan:
    """Rows of `stream` by `keys`, in windows of `spec`. `time_column` is the event time; None where the windows
    go by processing time, or by none. `late_to` is the side output for late rows."""

    stream: DataStream
    keys: tuple[str, ...]
    spec: WindowSpec
    time_column: str | None
    lateness_ns: int = 0
    late_to: str | None = None
    trigger: Trigger = field(default_factory=OnWatermark)
    skew: Skew | None = None

    @property
    def updates(self) -> bool:
        """Whether a window's result may come more than once, so that the output is an upsert stream."""
        return self.lateness_ns > 0 or not isinstance(self.trigger, OnWatermark)

    @property
    def detail(self) -> str:
        """What is done, for people."""
        on = f" on {self.time_column}" if self.time_column else ""
        trigger = "" if isinstance(self.trigger, OnWatermark) else f", {self.trigger}"
        return f"{self.spec}{on} by {', '.join(self.keys)}{trigger}"

    def input_schema(self, what: str) -> pa.Schema:
        """Return the input's schema. Raises PlanError where it is not known."""
        names = self.keys if self.time_column is None else (*self.keys, self.time_column)
        return require_columns(self.stream._info, names, what)

    def output_schema(self, results: Sequence[pa.Field], what: str) -> pa.Schema:
        """Return the schema of keys, bounds and `results`."""
        schema = self.input_schema(what)
        type_ = PROCESSING_TIME_TYPE if self.time_column is None else schema.field(self.time_column).type
        bounds = [pa.field(name, type_) for name in (WINDOW_START, WINDOW_END) if name not in self.keys]
        return output_schema([*(schema.field(key) for key in self.keys), *bounds, *results], what)

    def input(self, combination: Combination | str) -> KeyedInput:
        """Return what brings the input, by key: rows, or partial aggregates of `combination`; a text says why not."""
        return keyed_input(self.stream, self.keys, self.skew, combination)

    def side_outputs(self, made: Any = None) -> SideOutputs | None:
        """Return what can be read beside the results: late rows, with the columns of the input, and what a
        function puts aside, `made` of declared columns (see `SideOutputs`)."""
        known = {}
        if self.late_to is not None:
            info = self.stream._info
            late = StreamInfo(schema=info.schema, time_column=info.time_column, partitioned_by=self.keys)
            known[self.late_to] = late
        return SideOutputs(known, made) if known or made is not None else None


def opened(stream: DataStream, keys: tuple[str, ...], spec: Any, skew: Skew | None = None) -> WindowPlan:
    """Return the plan of `.window(spec)` on a stream grouped by `keys`. Raises PlanError, at the user's line."""
    if not isinstance(spec, Tumbling | Sliding | Session | CountWindow | GlobalWindow):
        raise plan_error(f"window: expected a window such as rf.Tumbling('1h'); got {spec!r}")
    info = stream._info
    refuse_upsert(info, "window")
    by_event_time = not isinstance(spec, CountWindow | GlobalWindow) and spec.time == "event"
    time = info.time_column if by_event_time else None
    if by_event_time:
        if time is None:
            raise plan_error(
                f"window: {spec} windows need event time, but the stream has no watermark; read it with "
                "watermark=rf.Watermark(column, delay=…), or call .assign_watermarks(…) before .key_by(); or let "
                "them go by the clock with time='processing'"
            )
        event_time_unit(info, time, "window")
        _check_nested(info.window_ns, spec)
    for name in (WINDOW_START, WINDOW_END):
        if name in keys and not (name == time == WINDOW_START and _same_grid(info.window_ns, spec)):
            raise plan_error(f"window: key column {name!r} has the name of a result; rename it first")
    return WindowPlan(stream=stream, keys=keys, spec=spec, time_column=time, skew=skew)


def _same_grid(inner_ns: tuple[int, int] | None, spec: WindowSpec) -> bool:
    # Then the key window_start is the window_start of the result.
    return isinstance(spec, Tumbling) and inner_ns == (spec.size_ns, spec.offset_ns)


def _check_nested(inner_ns: tuple[int, int] | None, outer: WindowSpec) -> None:
    """Windows over windows' results: each inner window must belong to one outer window, or to a whole number."""
    if inner_ns is None or not isinstance(outer, TimeWindow):
        return
    slide_ns, offset_ns = inner_ns
    if outer.size_ns % slide_ns or outer.slide_ns % slide_ns or (outer.offset_ns - offset_ns) % slide_ns:
        inner = Tumbling(f"{slide_ns}ns", f"{offset_ns}ns")
        raise plan_error(
            f"window: {outer} windows cannot group the results of {inner} windows, which would not lie within "
            "one; use a multiple of the size (of sliding windows: of the slide), or choose an event time with "
            ".assign_watermarks(…)"
        )
