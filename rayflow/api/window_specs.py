"""Specifications of windows and triggers, as users hand them to streams. Checked when they are made.

A *time window* (`Tumbling`, `Sliding`) has bounds that only its size and the clock decide; a `Session` grows with
its rows; `CountWindow` and `GlobalWindow` know no time. `time` says by which clock: `"event"`, the column that the
stream's watermark goes by, or `"processing"`, the moment at which a row comes to the operator.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from rayflow.api.planning import duration_ns, plan_error
from rayflow.model.durations import format_duration_ns

Duration = str | timedelta
Time = Literal["event", "processing"]


@dataclass(frozen=True)
class Tumbling:
    """Windows of one `size`, side by side, aligned to the UTC epoch plus `offset`."""

    size: Duration
    offset: Duration = "0s"
    time: Time = "event"

    def __post_init__(self) -> None:
        _ = self.size_ns, self.offset_ns
        _check_time("rf.Tumbling", self.time)

    @property
    def size_ns(self) -> int:
        """Length of a window, in nanoseconds."""
        return duration_ns("rf.Tumbling(size)", self.size, positive=True)

    @property
    def slide_ns(self) -> int:
        """Distance of window starts, in nanoseconds: the size."""
        return self.size_ns

    @property
    def offset_ns(self) -> int:
        """How far window starts are shifted, in nanoseconds; less than a size."""
        return duration_ns("rf.Tumbling(offset=)", self.offset) % self.size_ns

    def __str__(self) -> str:
        return f"tumbling {format_duration_ns(self.size_ns)}{_shown(self.offset_ns, self.time)}"


@dataclass(frozen=True)
class Sliding:
    """Windows of one `size`, a new one every `slide`, aligned to the UTC epoch plus `offset`.

    A row is in size/slide windows; where the slide is longer than the size some rows are in none (they are
    dropped, and counted in `gap_rows`), as in Flink.
    """

    size: Duration
    slide: Duration
    offset: Duration = "0s"
    time: Time = "event"

    def __post_init__(self) -> None:
        _ = self.size_ns, self.slide_ns, self.offset_ns
        _check_time("rf.Sliding", self.time)

    @property
    def size_ns(self) -> int:
        """Length of a window, in nanoseconds."""
        return duration_ns("rf.Sliding(size)", self.size, positive=True)

    @property
    def slide_ns(self) -> int:
        """Distance of window starts, in nanoseconds."""
        return duration_ns("rf.Sliding(slide)", self.slide, positive=True)

    @property
    def offset_ns(self) -> int:
        """How far window starts are shifted, in nanoseconds; less than a slide."""
        return duration_ns("rf.Sliding(offset=)", self.offset) % self.slide_ns

    def __str__(self) -> str:
        size, slide = format_duration_ns(self.size_ns), format_duration_ns(self.slide_ns)
        return f"sliding {size} every {slide}{_shown(self.offset_ns, self.time)}"


@dataclass(frozen=True)
class Session:
    """Windows of rows of a key that are at most `gap` apart: each ends `gap` after its last row."""

    gap: Duration
    time: Time = "event"

    def __post_init__(self) -> None:
        _ = self.gap_ns
        _check_time("rf.Session", self.time)

    @property
    def gap_ns(self) -> int:
        """Time without rows that ends a session, in nanoseconds."""
        return duration_ns("rf.Session(gap)", self.gap, positive=True)

    def __str__(self) -> str:
        return f"session gap {format_duration_ns(self.gap_ns)}{_shown(0, self.time)}"


@dataclass(frozen=True)
class CountWindow:
    """Windows of `n` rows of a key each, in order of arrival."""

    n: int

    def __post_init__(self) -> None:
        _check_count("rf.CountWindow(n)", self.n)

    def __str__(self) -> str:
        return f"every {self.n} rows"


@dataclass(frozen=True)
class GlobalWindow:
    """One window per key for all time. It ends with the input; a trigger may show results before."""

    def __str__(self) -> str:
        return "global"


@dataclass(frozen=True)
class OnWatermark:
    """Show a window's result once, when the watermark has reached its end. What windows do by default."""

    def __str__(self) -> str:
        return "on watermark"


@dataclass(frozen=True)
class OnCount:
    """Show a window's result early, whenever `n` more rows of a key have come into it."""

    n: int

    def __post_init__(self) -> None:
        _check_count("rf.OnCount(n)", self.n)

    def __str__(self) -> str:
        return f"every {self.n} rows"


@dataclass(frozen=True)
class OnProcessingTime:
    """Show the results of windows that changed early, every `every` of processing time."""

    every: Duration

    def __post_init__(self) -> None:
        _ = self.every_ns

    @property
    def every_ns(self) -> int:
        """Time between early results, in nanoseconds."""
        return duration_ns("rf.OnProcessingTime(every)", self.every, positive=True)

    def __str__(self) -> str:
        return f"every {format_duration_ns(self.every_ns)} of processing time"


TimeWindow = Tumbling | Sliding
WindowSpec = Tumbling | Sliding | Session | CountWindow | GlobalWindow
Trigger = OnWatermark | OnCount | OnProcessingTime


def _check_time(what: str, time: object) -> None:
    if time not in ("event", "processing"):
        raise plan_error(f"{what}(time=): expected 'event' or 'processing'; got {time!r}")


def _check_count(what: str, n: object) -> None:
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise plan_error(f"{what}: expected a whole number from 1; got {n!r}")


def _shown(offset_ns: int, time: Time) -> str:
    offset = f" offset {format_duration_ns(offset_ns)}" if offset_ns else ""
    return offset + (" of processing time" if time == "processing" else "")
