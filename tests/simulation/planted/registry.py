"""Where planted bugs are registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
BUGS: dict[str, Callable[[Patch], None]] = {}


def bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Register a bug by its name."""
    BUGS[plant.__name__] = plant
    return plant


def around(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(original, self, *args)` instead of a method."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda self, *args, **kwargs: wrapper(original, self, *args, **kwargs))
