"""How a subtask's network share is spent, so that everything that waits between subtasks stays within it (B1, M5).

Theory of operation. Rows wait in six places of a process, all of them bounded. In sixteenths of the share:

| place | bound | 16ths |
|---|---|---|
| input gate: received, not yet taken | credit (`protocol.credit`), and a frame a channel beyond it | 4 + 1 |
| taken: merged for one call of the operators, or read by the source | `taken_bytes` | 1 |
| output edges: gathered, not yet split into frames | `gathered_bytes`, and what one call adds | 1 + 1 |
| output queues: frames without credit | `queued_bytes`; then the task takes no more | 3 |
| with the transport: in threads, in the kernel, on the way | the consumers' credit, and a frame a channel | 2 + 1 |
| recorded for an unaligned checkpoint | `recorded_bytes`, and what one call takes | 1 + 1 |

What is under way is paid for with the consumer's credit, but lies in the producer's memory. So a channel's share of
credit (its *exclusive* one, which unspent credit never exceeds) is the smaller of what the consumer can give each of
its inputs and what the producer can have under way on each of its outputs. A frame is cut to half of that, so that one
can be under way while another is worked on.

A single row may be larger than a frame, than its share, and than everything: it passes alone, and the bound is exceeded
by that row in each place that it passes. Nor is bounded what an operator makes of what it took (a window that fires, a
function that gives a thousand rows for one): its output queues whole, and the task takes nothing until that has
drained. Nor is what is recorded of those behind broadcasts, whose barriers wait behind rows (`runtime.gate`).
While rows are split or merged the old and new ones exist side by side; that is the user share's.

Invariant: `most_bytes` ≤ `network_bytes`, whatever the number of channels, as long as frames are not at their floor.
"""

from __future__ import annotations

from rayflow.model.errors import ProtocolViolation

SMALLEST_FRAME_BYTES = 4096
"""Frames are not cut below this: it costs more than it bounds."""

_PARTS = 16


class NetworkBudget:
    """The budgets of one subtask whose network share is `network_bytes`. All in bytes."""

    __slots__ = (
        "gate_bytes",
        "gathered_bytes",
        "network_bytes",
        "queued_bytes",
        "recorded_bytes",
        "sent_bytes",
        "taken_bytes",
    )

    def __init__(self, network_bytes: int) -> None:
        if network_bytes < _PARTS:
            raise ProtocolViolation(f"a network share of {network_bytes} bytes: expected at least {_PARTS}")
        part = network_bytes // _PARTS
        self.network_bytes = network_bytes
        self.gate_bytes = 4 * part
        self.taken_bytes = part
        self.gathered_bytes = part
        self.queued_bytes = 3 * part
        self.sent_bytes = 2 * part
        self.recorded_bytes = part

    def share_bytes(self, inputs: int, outputs: int) -> int:
        """Return the exclusive share of a channel between a producer with `outputs` output channels and a consumer
        with `inputs` input channels (≥ 1 both), which have the same budget."""
        return max(1, min(self.gate_bytes // (2 * inputs), self.sent_bytes // outputs))

    def frame_bytes(self, inputs: int, outputs: int) -> int:
        """Return how large the frames of such a channel may be."""
        return max(SMALLEST_FRAME_BYTES, self.share_bytes(inputs, outputs) // 2)

    def queue_bytes(self, outputs: int) -> int:
        """Return how much may queue on each of `outputs` channels before the task stops taking rows."""
        return max(1, self.queued_bytes // max(1, outputs))

    def most_bytes(self, inputs: int, outputs: int) -> int:
        """Return what may wait at most in a subtask with so many input and output channels (0 for a source or sink),
        whose peers have but this channel, as long as no row is larger than a frame and no operator makes more bytes
        than it takes."""
        frames_in = inputs * self.frame_bytes(inputs, 1) if inputs else 0
        frames_out = outputs * self.frame_bytes(1, outputs) if outputs else 0
        taken = self.taken_bytes
        return (
            (self.gate_bytes + frames_in + taken + self.recorded_bytes + taken)
            + (self.gathered_bytes + taken + self.queued_bytes)
            + (self.sent_bytes + frames_out)
        )
