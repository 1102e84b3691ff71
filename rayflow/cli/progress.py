"""What a running job does, once or twice a second: a live table on a terminal, plain lines elsewhere.

`ProgressMeter` turns a series of `describe` dictionaries (API.md section 6) into rates; the rest only prints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

ENDED_STATES = frozenset({"FINISHED", "CANCELLED", "FAILED", "STOPPED"})
PLAIN_INTERVAL_S = 1.0
SAME_INTERVAL_S = 10.0
RATE_SPAN_S = 4.0
_FULL_WIDTH = 80
BACKPRESSURE_SHOWN = 0.1
"""Ratio from which back-pressure is worth a word (BACKGROUND D2: up to 0.10 is ok)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorProgress:
    """One chain: rows in this attempt, rows per second lately, and the worst subtask's ratios (0 to 1)."""

    uid: str
    name: str
    parallelism: int
    rows_in: int
    rows_out: int
    rows_in_per_s: float
    rows_out_per_s: float
    busy: float
    backpressured: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A job at one moment, `elapsed_s` after it was first looked at."""

    elapsed_s: float
    state: str
    attempt: int
    restarts: tuple[str, ...]
    restarts_total: int
    warnings: tuple[str, ...]
    operators: tuple[OperatorProgress, ...]
    checkpoints_completed: int
    checkpoints_failed: int
    latest_checkpoint: int | None


class ProgressMeter:
    """Turns descriptions of a job into progress. Times are seconds of any steady clock.

    Counters in descriptions move about once a second, whenever a subtask was asked last; so rates are taken over the
    last `RATE_SPAN_S`, or since the attempt began where that is shorter.
    """

    def __init__(self) -> None:
        self._started_s: float | None = None
        self._attempt = 0
        self._samples: deque[_Sample] = deque()

    def observe(self, description: Mapping[str, Any], now_s: float) -> Progress:
        """Return the job's progress."""
        if self._started_s is None:
            self._started_s = now_s
        attempt = int(description["attempt"])
        if attempt != self._attempt:
            # A new attempt counts from 0 again.
            self._attempt = attempt
            self._samples.clear()
        sample = _sample(description, now_s)
        self._samples.append(sample)
        while self._samples[0].at_s < now_s - RATE_SPAN_S:
            self._samples.popleft()
        checkpoints = description["checkpoints"]
        return Progress(
            elapsed_s=now_s - self._started_s,
            state=description["state"],
            attempt=attempt,
            restarts=tuple(_restart_text(restart) for restart in description["restarts"]),
            restarts_total=description["restarts_total"],
            warnings=tuple(description.get("warnings", ())),
            operators=tuple(
                _operator_progress(operator, description["subtasks"], sample, self._samples[0])
                for operator in description["operators"]
            ),
            checkpoints_completed=checkpoints["completed"],
            checkpoints_failed=checkpoints["failed"],
            latest_checkpoint=checkpoints["latest"],
        )


@dataclass(frozen=True, slots=True)
class _Sample:
    """Rows in and out by operator, at a time."""

    at_s: float
    rows: dict[str, tuple[int, int]]


def _sample(description: Mapping[str, Any], now_s: float) -> _Sample:
    rows = {operator["uid"]: (0, 0) for operator in description["operators"]}
    for subtask in description["subtasks"]:
        rows_in, rows_out = rows[subtask["operator"]]
        rows[subtask["operator"]] = (rows_in + subtask["rows_in"], rows_out + subtask["rows_out"])
    return _Sample(now_s, rows)


def _operator_progress(
    operator: Mapping[str, Any], subtasks: list[Mapping[str, Any]], now: _Sample, before: _Sample
) -> OperatorProgress:
    uid = operator["uid"]
    own = [s for s in subtasks if s["operator"] == uid]
    span_s = now.at_s - before.at_s
    (rows_in, rows_out), (in_before, out_before) = now.rows[uid], before.rows[uid]
    return OperatorProgress(
        uid=uid,
        name=operator["name"],
        parallelism=operator["parallelism"],
        rows_in=rows_in,
        rows_out=rows_out,
        rows_in_per_s=max(rows_in - in_before, 0) / span_s if span_s > 0 else 0.0,
        rows_out_per_s=max(rows_out - out_before, 0) / span_s if span_s > 0 else 0.0,
        busy=max((s["busy"] for s in own), default=0.0),
        backpressured=max((s["backpressured"] for s in own), default=0.0),
    )


def progress_line(progress: Progress) -> str:
    """Return the progress as one line of plain text."""
    return f"{progress.elapsed_s:6.1f}s {_progress_text(progress)}"


def _progress_text(progress: Progress) -> str:
    head = f"{_state_text(progress)} | "
    if progress.state == "CREATED":
        return f"{head}starting {sum(o.parallelism for o in progress.operators)} subtasks"
    parts = [
        f"{operator.uid} in {operator.rows_in:,} ({operator.rows_in_per_s:,.0f}/s) "
        f"out {operator.rows_out:,} ({operator.rows_out_per_s:,.0f}/s)"
        for operator in progress.operators
    ]
    parts.append(_checkpoints_text(progress))
    pressed = max(progress.operators, key=lambda o: o.backpressured, default=None)
    if pressed is not None and pressed.backpressured > BACKPRESSURE_SHOWN:
        parts.append(f"back-pressure {pressed.backpressured:.0%} at {pressed.uid}")
    return head + " | ".join(parts)


def progress_table(progress: Progress, title: str, width: int = 100) -> Table:
    """Return the progress as a table with a line per chain; below 80 columns of `width` some numbers are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table(
        title=f"{title}  {_state_text(progress)}  {progress.elapsed_s:.0f}s",
        caption=_checkpoints_text(progress),
        title_justify="left",
        caption_justify="left",
    )
    headings = ("subtasks", "rows in", "rows out", "in/s", "out/s", "busy", "back-pressure")
    shown = headings if width >= _FULL_WIDTH else ("rows in", "in/s", "busy")
    table.add_column("operators")
    for heading in shown:
        table.add_column(heading, justify="right", no_wrap=True)
    for o in progress.operators:
        style = (
            "green"
            if o.backpressured <= BACKPRESSURE_SHOWN
            else "yellow"
            if o.backpressured <= 0.5
            else "red"
        )
        values: tuple[str | Text, ...] = (
            str(o.parallelism),
            f"{o.rows_in:,}",
            f"{o.rows_out:,}",
            f"{o.rows_in_per_s:,.0f}",
            f"{o.rows_out_per_s:,.0f}",
            f"{o.busy:.0%}",
            Text(f"{o.backpressured:.0%}", style=style),
        )
        by_heading = dict(zip(headings, values, strict=True))
        table.add_row(Text(o.name), *(by_heading[heading] for heading in shown))
    return table


class ProgressView(Protocol):
    """Shows progress while it is open (a context manager)."""

    def __enter__(self) -> ProgressView:
        """Begin to show."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last progress on the screen."""

    def show(self, progress: Progress) -> None:
        """Show `progress` in place of the last."""


class _News:
    """What has come to restarts and warnings since the last look."""

    def __init__(self) -> None:
        self._restarts = self._warnings = 0

    def of(self, progress: Progress) -> list[str]:
        """Return the new ones as lines."""
        restarts = _untold(progress, self._restarts)
        warnings = progress.warnings[self._warnings :]
        self._restarts, self._warnings = progress.restarts_total, len(progress.warnings)
        return [*restarts, *(f"warning: {warning}" for warning in warnings)]


class PlainView:
    """Writes a line whenever the state changes, the job restarts, or a warning comes; else one a second where the
    numbers have changed, and every ten seconds where they have not."""

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._shown: Progress | None = None
        self._news = _News()

    def __enter__(self) -> PlainView:
        return self

    def __exit__(self, *_: object) -> None:
        self._out.flush()

    def show(self, progress: Progress) -> None:
        """Write a line if it is time for one."""
        for line in self._news.of(progress):
            print(f"{progress.elapsed_s:6.1f}s {line}", file=self._out, flush=True)
        last = self._shown
        if last is not None and last.state == progress.state:
            same = _progress_text(last) == _progress_text(progress)
            if progress.elapsed_s - last.elapsed_s < (SAME_INTERVAL_S if same else PLAIN_INTERVAL_S):
                return
        print(progress_line(progress), file=self._out, flush=True)
        self._shown = progress


class LiveView:
    """Draws a table in place on a terminal; restarts and warnings stay as lines above it."""

    def __init__(self, console: Console, title: str) -> None:
        from rich.live import Live

        self._live = Live(console=console, auto_refresh=False)
        self._title = title
        self._news = _News()

    def __enter__(self) -> LiveView:
        self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.__exit__(kind, error, trace)

    def show(self, progress: Progress) -> None:
        """Redraw the table."""
        for line in self._news.of(progress):
            self._live.console.print(line, style="yellow", markup=False, highlight=False)
        self._live.update(progress_table(progress, self._title, self._live.console.width), refresh=True)


def _untold(progress: Progress, told: int) -> tuple[str, ...]:
    """Return the restarts after the first `told` of all: of very many only the first and the last are described."""
    return progress.restarts[max(0, len(progress.restarts) - (progress.restarts_total - told)) :]


def open_view(out: TextIO, title: str) -> ProgressView:
    """Return the view that fits `out`: live on a terminal, else plain."""
    if not out.isatty():
        return PlainView(out)
    from rich.console import Console

    return LiveView(Console(file=out), title)


def _state_text(progress: Progress) -> str:
    return progress.state if progress.attempt <= 1 else f"{progress.state} (attempt {progress.attempt})"


def _checkpoints_text(progress: Progress) -> str:
    if not progress.checkpoints_completed and not progress.checkpoints_failed:
        return "no checkpoint yet"
    failed = f", {progress.checkpoints_failed} failed" if progress.checkpoints_failed else ""
    latest = "" if progress.latest_checkpoint is None else f", latest {progress.latest_checkpoint}"
    return f"checkpoints {progress.checkpoints_completed}{latest}{failed}"


def _restart_text(restart: Mapping[str, Any]) -> str:
    source = restart["restored_from"]
    origin = "the beginning" if source is None else str(source)
    return f"attempt {restart['attempt']} from {origin}, because: {restart['cause']}"
