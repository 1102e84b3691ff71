"""What windows the state in a snapshot is of: restoring it into others would give results of neither.

Size, slide and offset (the gap, of sessions), and the allowed lateness, which says what is still kept and what of
it was shown, are written beside the state. Who restores compares them with his own; snapshots from before they were
written are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import pyarrow as pa

from rayflow.model.durations import format_duration_ns
from rayflow.operators.contracts import OperatorContext
from rayflow.operators.functions import user_error
from rayflow.state.parts import RestoredPart, StatePart

_PARAMETERS = "window-parameters"


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeWindows:
    """Windows of `size_ns` every `slide_ns` from `offset_ns`, of rows by `keys`.

    `time_column` None: of processing time. Late rows go to the side output `late_to`, if any. Early results come
    whenever `early_rows` rows more are in a window, or every `early_ms` of processing time."""

    keys: tuple[str, ...]
    size_ns: int
    slide_ns: int
    offset_ns: int = 0
    time_column: str | None = None
    lateness_ns: int = 0
    late_to: str | None = None
    early_rows: int | None = None
    early_ms: int | None = None

    @property
    def has_early_results(self) -> bool:
        """Whether results come before a window is over."""
        return self.early_rows is not None or self.early_ms is not None

    @property
    def parameters_ns(self) -> dict[str, int]:
        """What state of one such operator must have in common with another."""
        return {
            "size": self.size_ns,
            "slide": self.slide_ns,
            "offset": self.offset_ns,
            "allowed lateness": self.lateness_ns,
            "state per": self.size_ns if self.by_window else gcd(self.size_ns, self.slide_ns),
        }

    @property
    def by_window(self) -> bool:
        """Whether state is kept by window; else by slice, which are shared by windows and show no early results."""
        return self.slide_ns % self.size_ns == 0 or self.has_early_results

    @property
    def updates(self) -> bool:
        """Whether a window's result may come more than once."""
        return self.has_early_results or self.lateness_ns > 0


def parameter_parts(ctx: OperatorContext, parameters_ns: Mapping[str, int]) -> list[StatePart]:
    """Return the state that is these durations by name, from the one subtask that writes it."""
    if ctx.subtask_index:
        return []
    table = pa.table({name: pa.array([value], pa.int64()) for name, value in parameters_ns.items()})
    return [StatePart(name=_PARAMETERS, kind="broadcast", build=lambda: table)]


def check_parameters(
    ctx: OperatorContext, restored: Sequence[RestoredPart], parameters_ns: Mapping[str, int]
) -> None:
    """Raise a user's error if state of windows with other durations is restored."""
    for part in restored:
        if part.name != _PARAMETERS:
            continue
        written = {name: part.table.column(name)[0].as_py() for name in part.table.column_names}
        if any(parameters_ns.get(name) != value for name, value in written.items()):
            raise user_error(
                ctx,
                f"the checkpoint's state is of windows with {_shown(written)}, this job's have "
                f"{_shown(parameters_ns)}; restore with the windows as they were, also as to early results, or "
                "start the job without this checkpoint",
                None,
            )


def _shown(parameters_ns: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {format_duration_ns(value)}" for name, value in parameters_ns.items())
