"""Event time as the engine counts it: whole nanoseconds since the UTC epoch, as Python integers.

Columns keep their own unit; only watermarks and window bounds are compared across units, so they are
brought to nanoseconds. Python integers do not overflow, hence a far-future `timestamp[ms]` is no danger.
`WATERMARK_MIN` means "nothing is known yet", `WATERMARK_MAX` "nothing more will come".
"""

from __future__ import annotations

WATERMARK_MIN = -(2**100)
WATERMARK_MAX = 2**100

NANOS_PER_UNIT = {"s": 1_000_000_000, "ms": 1_000_000, "us": 1_000, "ns": 1}
"""Nanoseconds in one unit of an Arrow timestamp."""
