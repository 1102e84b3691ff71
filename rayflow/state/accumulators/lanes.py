"""Lanes: states that are a few numbers a slot, each combined with its like by one plain operation.

Whoever knows an aggregate's state as lanes can combine states in loops of his own, compiled ones, and have the
results made of the numbers that come out (`Accumulator.results_of`). Sums of integers can be taken back exactly
(`is_invertible`): limbs and counts are added without loss, whatever the order. Nothing else can.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rayflow.state.accumulators.parts import SlotArray

Numbers = npt.NDArray[Any]

ADD, MOST, LEAST = 0, 1, 2
"""What combines two numbers: their sum; the larger, NaN above all others; the smaller, NaN above all others."""


@dataclass(frozen=True, slots=True)
class Lane:
    """One number a slot, in `array`; states are combined by `operation`."""

    array: SlotArray
    operation: int

    @property
    def identity(self) -> Any:
        """The number that changes none it is combined with: what an empty slot holds."""
        return self.array.fill

    @property
    def is_invertible(self) -> bool:
        """Whether what was added can be subtracted again, exactly."""
        return self.operation == ADD and bool(np.issubdtype(self.array.values.dtype, np.integer))
