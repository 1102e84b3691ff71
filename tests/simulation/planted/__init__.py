"""Bugs to plant into the runtime, to see that the simulation finds them. Only here: nothing that ships has a switch.

Each is a small change of the kind that a slip of the pen, or of the mind, makes. `with planted(name): simulate(seed)`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.simulation.planted import checkpoints, control, data_plane, records
from tests.simulation.planted.registry import BUGS


@contextlib.contextmanager
def planted(name: str) -> Iterator[None]:
    """Have the bug while in the context."""
    with pytest.MonkeyPatch.context() as patch:
        BUGS[name](patch)
        yield


__all__ = ["BUGS", "checkpoints", "control", "data_plane", "planted", "records"]
