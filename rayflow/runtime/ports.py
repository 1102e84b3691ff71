"""What the engines need from the world. Production, `--local` and the simulator each bring their own.

The engines (`SubtaskEngine`, `JobMaster`) are driven by `step(now_ms)`, which never blocks. Whatever
blocks goes through one of these ports and comes back as a message in the engine's mailbox.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from rayflow.graph.plan import Resources
from rayflow.model.ids import Attempt, ChannelId, SubtaskId
from rayflow.operators.async_calls import AsyncCalls
from rayflow.runtime.messages import CreditFrame, Frame, FromSubtask, ToSubtask
from rayflow.state.disk.row_store import RowStore
from rayflow.state.storage import ObjectStore


class Clock(Protocol):
    """Wall-clock time."""

    def now_ms(self) -> int:
        """Milliseconds since the Unix epoch."""


class IoPool(Protocol):
    """Runs blocking work elsewhere."""

    def submit(self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]) -> None:
        """Run `work()` off the engine's thread, then call `done(result, error)` on any thread."""


AsyncRunner = Callable[[Callable[[], None]], AsyncCalls]
"""Runs coroutines elsewhere: opens the calls of one operator in one attempt. What it is given is called, on any
thread, when some have completed."""


class Disk(Protocol):
    """The node's own disk, for state that does not fit memory."""

    def open_rows(self, folder: str | None, name: str, memory_bytes: int, appended: bool) -> RowStore:
        """Return an empty store below `folder` (None: wherever it likes) that uses no more memory than that.
        `appended`: keys are written in ascending order, and read about once."""

    def spool(self, folder: str | None) -> ObjectStore:
        """Return an empty store below `folder` for what is to be read once more soon; it goes when nobody refers to
        it."""

    def give_back(self) -> None:
        """Return to the system what memory the process holds and does not use."""

    def ticks_ns(self) -> int:
        """A clock for durations, which are counted and nothing else."""


class FrameReceiver(Protocol):
    """What a subtask engine offers the transport. All methods may be called on any thread."""

    def on_frame(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """A frame arrived on an input channel."""

    def on_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """A credit arrived on an output channel."""

    def on_channel_broken(self, attempt: Attempt, channel: ChannelId, reason: str) -> None:
        """The stream of an input or output channel broke, or could not be opened."""


class Transport(Protocol):
    """Moves frames between subtasks: per channel in order, no loss without `on_channel_broken`.

    Its own queues are bounded by credit, since only frames without a cost are sent without it. None of
    its methods blocks.
    """

    def listen(self, receiver: FrameReceiver, attempt: Attempt, inputs: list[ChannelId]) -> None:
        """Expect these input channels of `attempt`; everything of earlier attempts is closed and dropped."""

    def connect(self, attempt: Attempt, outputs: dict[ChannelId, str], receiver: FrameReceiver) -> None:
        """Open these output channels to the consumers' addresses. Frames may be sent at once."""

    def send(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """Send a frame on an output channel. A channel that is not open drops it."""

    def send_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """Send a credit on an input channel."""

    def close_channels(self, attempt: Attempt) -> None:
        """Close all channels of `attempt` and earlier ones, without `on_channel_broken`."""


class MasterLink(Protocol):
    """A subtask's way to its job master."""

    def report(self, message: FromSubtask) -> None:
        """Send without waiting. Order is kept; delivery is not certain, also where the master lives."""


class WorkerPool(Protocol):
    """The job master's processes: one worker per subtask. Events come back through `WorkerEvents`."""

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Have a worker for `subtask`: start one unless it exists. Answered with `on_worker_ready`."""

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Send without waiting. Order is kept; what is sent may be lost, or arrive twice. If the worker is dead,
        `on_worker_lost` follows."""

    def kill(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        """End the worker of `subtask` for good; no `on_worker_lost` follows. `unreachable`: it does not answer, and
        others had better not be started where it is for a while."""

    def shutdown(self) -> None:
        """End all workers."""


class WorkerEvents(Protocol):
    """What a worker pool tells the job master, on any thread."""

    def on_worker_ready(
        self, subtask: SubtaskId, address: str, node_id: str, pid: int, silent_ms: int = 0
    ) -> None:
        """The worker runs and listens on `address`. Called once per worker. It may be a new process or one that
        was kept ready; or a dead master's, which has dropped that one's attempt and had not heard of it for
        `silent_ms`."""

    def on_worker_lost(self, subtask: SubtaskId, reason: str) -> None:
        """The worker died, or could not be started."""

    def on_message(self, message: FromSubtask) -> None:
        """A subtask reported."""
