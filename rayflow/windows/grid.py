"""The arithmetic of time windows: which slices a window has, which windows a slice is in, which are over.

Theory of operation. Times are whole units of the event-time column. Windows of `size` begin every `slide`, at
`offset` from the epoch, and are numbered by their start: window k is [offset + k·slide, offset + k·slide + size).
Time is cut into *slices* of the greatest common divisor of size and slide (Li, Maier, Tufte, Papadimos, Tucker,
"No Pane, No Gain", 2005), numbered likewise: a window is a whole number of slices (`per_window`), begins at every
`step`-th one, and a row belongs to one slice. Tumbling windows are their own slices.

A window is *over* at instant r when r ≥ its end − 1, and closed for good when r ≥ its end − 1 + lateness. Both
are monotone in k, so one number tells which windows are: `first_open`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]

_INT64 = np.iinfo(np.int64)


@dataclass(frozen=True, slots=True)
class WindowGrid:
    """Windows of `size` every `slide` from `offset`, in units of time."""

    size: int
    slide: int
    offset: int
    slice_size: int = field(init=False)
    per_window: int = field(init=False)
    step: int = field(init=False)

    def __post_init__(self) -> None:
        slice_size = math.gcd(self.size, self.slide)
        object.__setattr__(self, "slice_size", slice_size)
        object.__setattr__(self, "per_window", self.size // slice_size)
        object.__setattr__(self, "step", self.slide // slice_size)

    @property
    def has_gaps(self) -> bool:
        """Whether some instants are in no window."""
        return self.slide > self.size

    @property
    def margin(self) -> int:
        """How near to the ends of what the time can hold an instant must not be."""
        return self.size + self.slide + self.offset

    def slices_of(self, ticks: I64) -> I64:
        """Return the number of the slice of every instant."""
        slices: I64 = (ticks - self.offset) // self.slice_size
        return slices

    def first_window(self, slices: I64) -> I64:
        """Return the number of the first window of every slice."""
        return (slices - self.per_window) // self.step + 1

    def last_window(self, slices: I64) -> I64:
        """Return the number of the last window of every slice; below the first where a gap holds the slice."""
        return slices // self.step

    def first_slice(self, window: int) -> int:
        """Return the number of a window's first slice; at the far ends of time, the first or last of int64."""
        return max(int(_INT64.min), min(int(_INT64.max), window * self.step))

    def window_start(self, windows: I64) -> I64:
        """Return the instants at which windows begin."""
        return windows * self.slide + self.offset

    def start_of(self, window: int) -> int:
        """Return the instant at which a window begins; of any size."""
        return window * self.slide + self.offset

    def first_open(self, reached: int, lateness: int = 0) -> int:
        """Return the number of the first window k for which end − 1 + lateness > `reached`; at the far ends of
        time, the first or last that int64 can hold."""
        first = -((self.size + lateness + self.offset - reached - 2) // self.slide)
        return max(int(_INT64.min), min(int(_INT64.max), first))
