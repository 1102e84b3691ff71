"""The subtask engine: everything a subtask does, driven by `step`, behind ports.

Theory of operation
-------------------
The engine outlives attempts. It has a mailbox for control messages and an inbox for frames and credits; network and
actor threads only append to them and wake the driver. `step` serves all control first, then moves what has
arrived into the task, then lets the task do one thing (see `runtime.task`). Blocking work (reading state on
restore, writing it at a checkpoint) runs on the I/O pool; what was read comes back through the mailbox, what was
written is acknowledged at once.

A `Deploy` of a newer attempt drops the running task whole, restores, and answers `Deployed`; `Start` connects the
outputs and runs. An exception anywhere in the task ends the attempt here and is reported once as `TaskFailed`;
the engine then waits for the next Deploy.

Invariants
  S1  attempts only grow; what carries an older one is dropped and counted (I6).
  S2  an ack is sent only after the state is durable (C3); a commit only after the checkpoint completed (C5).
  S3  at most one task exists; after a failure none does.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

from rayflow.graph.execution import input_channels, output_channels
from rayflow.model.config import JobConfig
from rayflow.model.ids import Attempt, ChannelId, CheckpointId, SubtaskId
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.sequencing import AttemptFence
from rayflow.runtime.accounting import Activity
from rayflow.runtime.assembly import Assembly, own_key_groups
from rayflow.runtime.correspondence import Correspondence
from rayflow.runtime.event_loop import EventLoopCalls
from rayflow.runtime.faults import failure_of
from rayflow.runtime.mail import Arrived, ChannelBroke, Mail, StateRead
from rayflow.runtime.memory import HostCommand, MemoryKeeper, MemoryUse, limit_of, use_of
from rayflow.runtime.messages import (
    AssignSplits,
    Cancel,
    CaughtUp,
    CheckpointAborted,
    CheckpointCompleted,
    Committed,
    CreditFrame,
    Deploy,
    Deployed,
    Finish,
    Frame,
    FromSubtask,
    Heartbeat,
    InputsEnded,
    PeerLost,
    SaltKeys,
    SplitsProgressed,
    SplitsRequested,
    Start,
    Stopped,
    ToSubtask,
    TriggerCheckpoint,
    Warned,
)
from rayflow.runtime.ports import AsyncRunner, Disk, IoPool, MasterLink, Transport
from rayflow.runtime.replay import RestoredState
from rayflow.runtime.snapshots import OpenStore, restore
from rayflow.runtime.stepping import StepResult
from rayflow.runtime.task import Task
from rayflow.runtime.uploads import Uploads
from rayflow.state.disk.scratch import LocalDisk

_log = logging.getLogger(__name__)

_FRAMES_PER_STEP = 1024


class SubtaskEngine:
    """One subtask over all its attempts. `post` and the `on_…` methods on any thread, the rest on one.

    `host_statistics` adds what only the host knows (`busy`, `backpressured`, `idle`, `rss_bytes`, `pid`).
    """

    def __init__(
        self,
        *,
        subtask: SubtaskId,
        link: MasterLink,
        transport: Transport,
        io: IoPool,
        open_store: OpenStore,
        wake: Callable[[], None],
        host_statistics: Callable[[], dict[str, Any]] = dict,
        async_runner: AsyncRunner = EventLoopCalls,
        disk: Disk | None = None,
        collect_garbage: Callable[[], Any] = lambda: None,
    ) -> None:
        self._subtask = subtask
        self._host_statistics = host_statistics
        self._master = Correspondence(subtask, link)
        self._transport = transport
        self._io = io
        self._open_store = open_store
        self._wake = wake
        self._async_runner = async_runner
        self._disk: Disk = LocalDisk() if disk is None else disk
        self._memory = MemoryKeeper(warn=self._warn, wake=wake, collect=collect_garbage)
        self._mail: deque[Mail] = deque()
        self._inbox: deque[Arrived] = deque()
        self._fence = AttemptFence(Attempt(0))
        self._deploy: Deploy | None = None
        self._config = JobConfig()
        self._task: Task | None = None
        self._state = "CREATED"
        # The task's; there is one where there is a task.
        self._uploads: Uploads | None = None
        self._now_ms = 0
        # What the current attempt's task had counted when it was closed.
        self._past: dict[str, Any] = {}
        self.stale_messages = 0

    # ------------------------------------------------------------------------------- any thread

    def accepts(self, message: ToSubtask) -> bool:
        """Return whether a control message that has just come from the master is to be posted: in the order in which
        they come, each message once. What is not accepted is known already, or will come again."""
        return self._master.accepts(message)

    def report(self, message: FromSubtask) -> None:
        """Send to the master; it will have it, unless one of the two dies."""
        self._master.report(message)

    def post(self, message: ToSubtask) -> None:
        """Take a control message that is accepted. A heartbeat is answered here and now: it asks whether the process
        lives, and a task thread in a long call must not seem dead."""
        if isinstance(message, Heartbeat):
            self._master.answer(message, self.statistics)
            return
        self._mail.append(message)
        self._wake()

    def on_frame(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """Take a frame from the transport."""
        self._inbox.append((attempt, channel, frame))
        self._wake()

    def on_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """Take a credit from the transport."""
        self._inbox.append((attempt, channel, credit))
        self._wake()

    def on_channel_broken(self, attempt: Attempt, channel: ChannelId, reason: str) -> None:
        """Take the transport's word that a channel is gone."""
        self._mail.append(ChannelBroke(attempt, channel, reason))
        self._wake()

    def statistics(self) -> dict[str, Any]:
        """Return what `HeartbeatAnswered` carries."""
        task = self._task
        return {
            "state": self._state,
            "attempt": self._fence.attempt,
            "checkpoint": self._checkpoint_phase(task),
            "stale_messages": self.stale_messages,
            **self._host_statistics(),
            **(self._past if task is None else task.statistics()),
        }

    def memory_pressed(self, command: HostCommand) -> None:
        """Take what the host has found about the size of the process."""
        self._memory.press(command)

    @property
    def memory_limit(self) -> tuple[int, bool]:
        """What the process may take, and whether that is firm."""
        return limit_of(self._deploy, self._config)

    @property
    def is_running(self) -> bool:
        """Whether an attempt runs here, restored and started."""
        return self._state in ("RUNNING", "ENDED")

    def memory_use(self) -> MemoryUse:
        """Return where the memory of the process goes, as far as is known."""
        return use_of(self._task)

    def waiting_for(self) -> Activity:
        """Why the last step made no progress."""
        task = self._task
        if task is None:
            return "idle"
        # Whoever waits for its own calls is what holds the stream up, however little its thread has to do.
        return "backpressured" if task.backpressured else "busy" if task.blocked else "idle"

    # ------------------------------------------------------------------------------- task thread

    def step(self, now_ms: int) -> StepResult:
        """Serve control, take in what arrived, let the task do one thing. Never raises, never blocks."""
        self._now_ms = now_ms
        progressed = False
        while self._mail:
            self._guard(self._serve, self._mail.popleft())
            progressed = True
        for _ in range(_FRAMES_PER_STEP):
            if not self._inbox:  # also where a frame made the task fail, which empties it
                break
            self._guard(self._take_in, *self._inbox.popleft())
            progressed = True
        if self._task is not None and self._memory.has_work(now_ms):
            progressed |= self._guard(self._keep_memory, self._task)
        if self._task is not None:
            progressed |= self._guard(self._work, self._task)
        wake_at_ms = None if self._task is None else self._task.wake_at_ms(now_ms)
        return StepResult(progressed, wake_at_ms)

    def close(self) -> None:
        """Drop the task and its channels; the engine is done."""
        self._end_attempt()

    def _work(self, task: Task) -> bool:
        progressed = task.advance(self._now_ms)
        self._report_committed(task)
        if self._deploy is not None and task.wants_splits():
            self._master.report(
                SplitsRequested(*self._here(), self._deploy.graph.vertex(self._deploy.subtask.vertex).id)
            )
        progress = task.split_progress(self._now_ms)
        if progress is not None:
            self._master.report(SplitsProgressed(*self._here(), progress.uid, progress.watermark))
        return progressed

    def _keep_memory(self, task: Task) -> bool:
        return self._memory.advance(task, self._config, lambda: self.memory_limit, self._now_ms)

    def _guard(self, do: Callable[..., Any], *args: Any) -> bool:
        try:
            return bool(do(*args))
        except Exception as error:
            self._fail(error)
            return True

    def _take_in(self, attempt: Attempt, channel: ChannelId, item: Frame | CreditFrame) -> None:
        if self._task is None or attempt != self._fence.attempt:
            self.stale_messages += 1
        elif isinstance(item, CreditFrame):
            self._task.on_credit(channel, item)
        else:
            self._task.on_frame(channel, item)

    # ------------------------------------------------------------------------------- control

    def _serve(self, message: Mail) -> None:
        if isinstance(message, Deploy):
            self._on_deploy(message)
            return
        if message.attempt != self._fence.attempt or self._deploy is None:
            self.stale_messages += 1
            return
        match message:
            case StateRead():
                self._on_state_read(message)
            case Start():
                self._on_start()
            case TriggerCheckpoint(_, checkpoint_id, aligned):
                if self._task is not None:
                    self._task.trigger(checkpoint_id, aligned, self._now_ms)
            case CheckpointCompleted(_, checkpoint_id):
                self._on_completed(checkpoint_id)
            case CheckpointAborted(_, checkpoint_id):
                self._on_aborted(checkpoint_id)
            case AssignSplits():
                if self._task is not None:
                    self._task.assign(message)
            case SaltKeys(_, uid, keys):
                if self._task is not None:
                    self._task.salt(uid, keys)
            case ChannelBroke(_, channel, reason):
                self._master.report(PeerLost(*self._here(), channel, reason))
            case Cancel():
                self._stop("CANCELLED")
            case Finish():
                self._stop("FINISHED")

    def _on_deploy(self, deploy: Deploy) -> None:
        if deploy.attempt <= self._fence.attempt:
            return
        self._end_attempt()
        self._past = {}
        self._fence.advance(deploy.attempt)
        self._deploy = deploy
        self._state = "DEPLOYING"
        self._config = JobConfig.from_flat(deploy.config)
        info, attempt = deploy.restore, deploy.attempt
        if info is None:
            self._on_state_read(StateRead(attempt, RestoredState(), None))
            return
        options, own = self._config.storage_options, own_key_groups(deploy)
        on_disk, folder = self._config.state_backend == "disk", self._config.state_dir

        def read() -> RestoredState:
            spool = self._disk.spool(folder) if on_disk else None
            return restore(self._open_store, options, info, own, spool, self._config.managed_bytes)

        self._io.submit(
            read,
            lambda state, error: self._mailed(StateRead(attempt, state or RestoredState(), error)),
        )

    def _on_state_read(self, message: StateRead) -> None:
        deploy = self._deployment()
        if message.error is not None:
            raise message.error
        attempt, transport = deploy.attempt, self._transport
        parts = Assembly(
            deploy,
            self._config,
            send=lambda channel, frame: transport.send(attempt, channel, frame),
            grant=lambda channel, credit: transport.send_credit(attempt, channel, credit),
            now_ms=lambda: self._now_ms,
            open_async_calls=lambda: self._async_runner(self._wake),
            warn=lambda type, message: self._master.report(Warned(self._subtask, attempt, type, message)),
            run_in_background=self._run_in_background,
            disk=self._disk,
        ).build()
        self._memory.begin()
        uploads = Uploads(
            deploy,
            self._config,
            io=self._io,
            open_store=self._open_store,
            report=self._master.report,
            now_ms=lambda: self._now_ms,
        )
        task = Task(
            parts, on_snapshot=uploads.begin, on_caught_up=self._on_caught_up, on_ended=self._on_ended
        )
        self._task, self._uploads = task, uploads
        task.open(message.state, self._now_ms)
        transport.listen(self, attempt, input_channels(deploy.graph, deploy.subtask))
        self._state = "DEPLOYED"
        self._master.report(Deployed(deploy.subtask, attempt, task.catching_up))

    def _on_start(self) -> None:
        if self._task is None or self._state != "DEPLOYED":
            return
        deploy = self._deployment()
        outputs = {c: deploy.peers[c.consumer] for c in output_channels(deploy.graph, deploy.subtask)}
        self._transport.connect(deploy.attempt, outputs, self)
        self._state = "RUNNING"
        self._task.start()

    def _on_completed(self, checkpoint_id: CheckpointId) -> None:
        if self._task is None or self._uploads is None:
            return
        deploy = self._deployment()
        self._uploads.completed(checkpoint_id)
        self._task.notify_complete(CommitPermit(deploy.job_id, deploy.attempt, checkpoint_id))
        self._report_committed(self._task)

    def _on_aborted(self, checkpoint_id: CheckpointId) -> None:
        if self._task is not None and self._uploads is not None:
            self._uploads.aborted(checkpoint_id)
            self._task.cancel_checkpoint(checkpoint_id)

    def _report_committed(self, task: Task) -> None:
        committed = task.committed()
        if committed is not None:
            self._master.report(Committed(*self._here(), committed))

    def _run_in_background(
        self, work: Callable[[], Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        def over(result: Any, error: BaseException | None) -> None:
            done(result, error)
            self._wake()

        self._io.submit(work, over)

    def _on_caught_up(self) -> None:
        self._master.report(CaughtUp(*self._here()))

    def _on_ended(self) -> None:
        self._state = "ENDED"
        self._master.report(InputsEnded(*self._here()))

    def _stop(self, state: str) -> None:
        self._end_attempt()
        self._state = state
        self._master.report(Stopped(*self._here(), self.statistics()))

    # ------------------------------------------------------------------------------- helpers

    def _fail(self, error: Exception) -> None:
        _log.warning("attempt %s failed here: %s", self._fence.attempt, error, exc_info=error)
        self._end_attempt()
        self._state = "FAILED"
        if self._deploy is None:
            return
        self._master.report(failure_of(error, self._deploy.subtask, self._fence.attempt))

    def _end_attempt(self) -> None:
        task, self._task = self._task, None
        self._inbox.clear()
        self._uploads = None
        if task is not None:
            self._past = dict(task.statistics())
            for error in task.close():
                _log.warning("closing attempt %s: %s", self._fence.attempt, error, exc_info=error)
        self._transport.close_channels(self._fence.attempt)

    def _mailed(self, message: Mail) -> None:
        self._mail.append(message)
        self._wake()

    def _deployment(self) -> Deploy:
        assert self._deploy is not None, "only called while deployed"
        return self._deploy

    def _warn(self, type: str, message: str) -> None:
        self._master.report(Warned(*self._here(), type, message))

    def _here(self) -> tuple[SubtaskId, Attempt]:
        return self._subtask, self._fence.attempt

    def _checkpoint_phase(self, task: Task | None) -> dict[str, Any] | None:
        uploads = self._uploads
        uploading = None if uploads is None else uploads.phase()
        if uploading is not None:
            return uploading
        aligning = None if task is None else task.aligning()
        if aligning is not None:
            return {"id": aligning[0], "phase": "aligning", "since_ms": aligning[1]}
        return None
