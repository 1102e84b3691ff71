"""What is said about event time, by whoever makes watermarks (`split_watermarks`) or merges them (`watermark_merging`).

Theory of operation (Akidau et al., "The Dataflow Model", 2015; Begoli et al., "Watermarks in Stream
Processing Systems", 2021). A watermark w says: no row with an event time ≤ w follows, save late ones. Times
are whole nanoseconds (`rayflow.model.times`).

Invariants, of both machines:

W1. Watermarks that come out strictly grow (I9), also over a restore.
W2. `GoIdle` comes once per time of idleness, and only while nothing is active and not all has ended.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AdvanceWatermark:
    """Event time has come to `watermark`."""

    watermark: int


@dataclass(frozen=True, slots=True)
class GoIdle:
    """There is nothing to say about event time for now; ends with the next row or watermark."""


WatermarkCommand = AdvanceWatermark | GoIdle
