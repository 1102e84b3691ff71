"""What windows the state in a snapshot is of: restoring it into others would give results of neither.

Size, slide and offset (the gap, of sessions), and the allowed lateness, which says what is still kept and what of
it was shown, are written beside the state. Who restores compares them with his own; snapshots from before they were
written are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from rayflow.model.durations import format_duration_ns
from rayflow.operators.contracts import OperatorContext
from rayflow.operators.functions import user_error
from rayflow.state.parts import RestoredPart, StatePart

_PARAMETERS = "window-parameters"


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
