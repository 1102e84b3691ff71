"""Whether a series of measurements is flat: it does not grow over a long run. Pure.

Two measures must both say so, each of which overlooks something: the medians of the first and the last quarter (a
growth that comes and goes), and the median slope over all pairs (Theil–Sen: outliers do not count), times the duration.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

MIN_SAMPLES = 8
_MAX_PAIRS_OF = 400


@dataclass(frozen=True)
class Trend:
    """What became of one quantity. `allowed` is how much it may grow over the whole run."""

    name: str
    samples: int
    first: float
    last: float
    slope_per_hour: float
    slope_growth: float
    allowed: float

    @property
    def flat(self) -> bool:
        """Whether it did not grow."""
        return self.last - self.first <= self.allowed and self.slope_growth <= self.allowed


def trend(
    name: str, series: Sequence[tuple[float, float]], *, share: float = 0.1, slack: float = 0.0
) -> Trend:
    """Judge a series of (seconds, value). It may grow by `share` of its first quarter's median plus `slack`. Raises
    ValueError for fewer than eight samples."""
    if len(series) < MIN_SAMPLES:
        raise ValueError(f"{name}: {len(series)} samples say nothing; at least {MIN_SAMPLES} are needed")
    quarter = len(series) // 4
    first = median(value for _, value in series[:quarter])
    last = median(value for _, value in series[-quarter:])
    slope = _median_slope(series)
    return Trend(
        name=name,
        samples=len(series),
        first=first,
        last=last,
        slope_per_hour=slope * 3600,
        slope_growth=slope * (series[-1][0] - series[0][0]),
        allowed=share * first + slack,
    )


def _median_slope(series: Sequence[tuple[float, float]]) -> float:
    # Every pair of a few hundred samples, evenly chosen, is enough.
    step = -(-len(series) // _MAX_PAIRS_OF)
    chosen = series[::step]
    slopes = [
        (value - earlier) / (at - before)
        for i, (before, earlier) in enumerate(chosen)
        for at, value in chosen[i + 1 :]
        if at > before
    ]
    return median(slopes) if slopes else 0.0
