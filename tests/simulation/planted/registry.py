"""Where planted bugs are registered.

A bug that itself stumbles (over a method that has moved, or takes other arguments now) would be found, too, and prove
nothing: `SLIPS` tells of those.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

Patch = pytest.MonkeyPatch
BUGS: dict[str, Callable[[Patch], None]] = {}
SLIPS: list[str] = []
"""What bugs that `around` planted have stumbled over."""


def bug(plant: Callable[[Patch], None]) -> Callable[[Patch], None]:
    """Register a bug by its name."""
    BUGS[plant.__name__] = plant
    return plant


def around(patch: Patch, owner: Any, name: str, wrapper: Callable[..., Any]) -> None:
    """Have `wrapper(original, self, *args)` instead of a method."""
    original = getattr(owner, name)

    def planted(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return wrapper(original, self, *args, **kwargs)
        except (AttributeError, NameError, TypeError) as error:
            SLIPS.append(f"{owner.__name__}.{name}: {error}")
            raise

    patch.setattr(owner, name, planted)
