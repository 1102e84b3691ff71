"""The simulated ports of the engines: transport, worker pool, master link."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cloudpickle

from rayflow.graph.plan import Resources
from rayflow.model.ids import Attempt, ChannelId, SubtaskId
from rayflow.operators.async_calls import Completion, Coroutine
from rayflow.runtime.messages import CreditFrame, DataFrame, Deploy, Frame, FromSubtask, ToSubtask
from rayflow.runtime.ports import FrameReceiver, WorkerEvents
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.state.storage import open_store
from rayflow.testing.world import Node, World

_DETECTION_MS = 1_100
_START_MS = 3_000


@dataclass(slots=True)
class _Channel:
    producer: SimWorker
    consumer: SimWorker


class SimNetwork:
    """All open channels. Frames and credits of a channel are under way in queues of the world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.listening: dict[str, tuple[Attempt, frozenset[ChannelId], SimWorker]] = {}
        self.channels: dict[tuple[Attempt, ChannelId], _Channel] = {}

    def close(self, worker: SimWorker, up_to: Attempt) -> None:
        """Close the worker's channels of `up_to` and earlier attempts."""
        self._remove(
            [k for k, c in self.channels.items() if k[0] <= up_to and worker in (c.producer, c.consumer)]
        )

    def crashed(self, worker: SimWorker) -> None:
        """The worker's process is gone: the other ends see their streams break."""
        self.listening.pop(worker.name, None)
        keys = [k for k, c in self.channels.items() if worker in (c.producer, c.consumer)]
        for attempt, channel_id in keys:
            channel = self.channels[attempt, channel_id]
            other = channel.consumer if channel.producer is worker else channel.producer
            if other is not worker and other.alive:
                self.world.post(
                    ("broken", attempt, str(channel_id)),
                    f"broken {channel_id}",
                    partial(other.engine.on_channel_broken, attempt, channel_id, "peer died"),
                )
        self._remove(keys)

    def _remove(self, keys: list[tuple[Attempt, ChannelId]]) -> None:
        gone = {(a, str(c)) for a, c in keys}
        for key in keys:
            del self.channels[key]
        self.world.drop(lambda q: q[0] not in ("frame", "credit") or (q[1], q[2]) not in gone)


class SimTransport:
    """`Transport` of one simulated worker."""

    def __init__(self, network: SimNetwork, worker: SimWorker) -> None:
        self._network = network
        self._worker = worker

    def listen(self, receiver: FrameReceiver, attempt: Attempt, inputs: list[ChannelId]) -> None:
        """Expect these input channels."""
        self._network.listening[self._worker.name] = (attempt, frozenset(inputs), self._worker)

    def connect(self, attempt: Attempt, outputs: dict[ChannelId, str], receiver: FrameReceiver) -> None:
        """Open these output channels."""
        for channel, address in outputs.items():
            found = self._network.listening.get(address)
            if found is None or found[0] != attempt or channel not in found[1]:
                self._network.world.post(
                    ("broken", attempt, str(channel)),
                    f"refused {channel}",
                    partial(receiver.on_channel_broken, attempt, channel, "nobody listens"),
                )
            else:
                self._network.channels[attempt, channel] = _Channel(self._worker, found[2])

    def send(self, attempt: Attempt, channel: ChannelId, frame: Frame) -> None:
        """Put a frame under way."""
        opened = self._network.channels.get((attempt, channel))
        if opened is not None:
            name = f"{type(frame).__name__}{frame.seq if isinstance(frame, DataFrame) else ''}"
            self._network.world.post(
                ("frame", attempt, str(channel)),
                f"{name} {channel} a{attempt}",
                lambda: opened.consumer.engine.on_frame(attempt, channel, frame),
            )

    def send_credit(self, attempt: Attempt, channel: ChannelId, credit: CreditFrame) -> None:
        """Put a credit under way."""
        opened = self._network.channels.get((attempt, channel))
        if opened is not None:
            self._network.world.post(
                ("credit", attempt, str(channel)),
                f"credit {credit.batches}/{credit.nbytes} {channel} a{attempt}",
                lambda: opened.producer.engine.on_credit(attempt, channel, credit),
            )

    def close_channels(self, attempt: Attempt) -> None:
        """Close the channels of `attempt` and before."""
        self._network.close(self._worker, attempt)


class SimWorker:
    """One simulated subtask process."""

    def __init__(self, pool: SimPool, subtask: SubtaskId, incarnation: int) -> None:
        self.pool = pool
        self.subtask = subtask
        self.name = f"{subtask}/{incarnation}"
        self.alive = True
        world = pool.world
        self.engine = SubtaskEngine(
            subtask=subtask,
            link=self,
            transport=SimTransport(pool.network, self),
            io=self,
            open_store=open_store,
            wake=lambda: world.wake(self.name),
            async_runner=lambda wake: SimCalls(self, wake),
        )

    def submit(self, work: Any, done: Any) -> None:
        """`IoPool`: like the world's, but a dead process neither starts nor hears of its work."""
        self.pool.world.submit(
            lambda: work() if self.alive else None, lambda r, e: done(r, e) if self.alive else None
        )

    def report(self, message: FromSubtask) -> None:
        """`MasterLink`."""
        events = self.pool.events
        self.pool.world.post(
            ("from", self.name),
            f"{type(message).__name__} from {self.name}",
            lambda: events.on_message(message) if events is not None else None,
        )

    def receive(self, message: ToSubtask) -> None:
        """A message of the master arrived."""
        if self.alive:
            # What crosses a process is a copy.
            self.engine.post(
                cloudpickle.loads(cloudpickle.dumps(message)) if isinstance(message, Deploy) else message
            )


class SimCalls:
    """`AsyncCalls` of one simulated worker: each call is answered at some later turn, in any order, or, one in
    `HANGING`, never. Coroutines must not wait for anything else."""

    HANGING = 40

    def __init__(self, worker: SimWorker, wake: Callable[[], None]) -> None:
        self._worker = worker
        self._wake = wake
        self._running: set[int] = set()
        self._completed: list[Completion] = []

    def start(self, calls: Sequence[tuple[int, Coroutine]]) -> None:
        """Begin these calls."""
        world = self._worker.pool.world
        for call, make in calls:
            self._running.add(call)
            if call < 0 or world.rng.randrange(self.HANGING):
                world.post(
                    ("async", self._worker.name, id(self), call),
                    f"answer {call} to {self._worker.name}",
                    partial(self._answer, call, make),
                )

    def _answer(self, call: int, make: Coroutine) -> None:
        if call not in self._running or not self._worker.alive:
            return
        self._running.remove(call)
        try:
            make().send(None)  # type: ignore[attr-defined]
        except StopIteration as returned:
            self._completed.append(Completion(call, returned.value, None))
        except Exception as error:
            self._completed.append(Completion(call, None, error))
        self._wake()

    def cancel(self, call: int) -> None:
        """Forget a call."""
        self._running.discard(call)

    @property
    def ready(self) -> bool:
        """Whether something has completed."""
        return bool(self._completed)

    def completed(self) -> list[Completion]:
        """Return what has completed since the last time."""
        done, self._completed = self._completed, []
        return done

    def close(self, last: Coroutine | None) -> None:
        """Forget all calls."""
        self._running.clear()


class SimPool:
    """`WorkerPool` of the simulated master."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.network = SimNetwork(world)
        self.workers: dict[SubtaskId, SimWorker] = {}
        self.events: WorkerEvents | None = None
        self._incarnation = 0
        world.crash = self.crash_any

    def ensure(self, subtask: SubtaskId, resources: Resources) -> None:
        """Start a worker; it is ready after a while."""
        self._incarnation += 1
        worker = SimWorker(self, subtask, self._incarnation)
        self.workers[subtask] = worker

        def ready() -> None:
            if worker.alive and self.events is not None:
                self.world.add(Node(worker.name, worker.engine.step))
                self.events.on_worker_ready(subtask, worker.name, "node-1", self._incarnation)

        self.world.post(
            ("start", worker.name), f"ready {worker.name}", ready, self.world.rng.randrange(_START_MS)
        )

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Put a message under way."""
        worker = self.workers.get(subtask)
        if worker is not None:
            self.world.post(
                ("to", worker.name),
                f"{type(message).__name__} to {worker.name}",
                lambda: worker.receive(message),
            )

    def kill(self, subtask: SubtaskId) -> None:
        """End the worker."""
        worker = self.workers.pop(subtask, None)
        if worker is not None:
            self._end(worker)

    def shutdown(self) -> None:
        """End all workers."""
        for subtask in list(self.workers):
            self.kill(subtask)

    def crash_any(self) -> bool:
        """A random worker's process dies; the master hears of it later."""
        running = [w for _, w in sorted(self.workers.items()) if w.alive and w.name in self.world.nodes]
        if not running:
            return False
        worker = running[self.world.rng.randrange(len(running))]
        self.world.trace.add(f"{self.world.now} fault crash {worker.name}")
        self._end(worker)
        self.world.post(
            ("from", worker.name),
            f"lost {worker.name}",
            lambda: self._tell_lost(worker),
            self.world.rng.randrange(_DETECTION_MS),
        )
        return True

    def _tell_lost(self, worker: SimWorker) -> None:
        if self.events is not None and self.workers.get(worker.subtask) is worker:
            del self.workers[worker.subtask]
            self.events.on_worker_lost(worker.subtask, "simulated crash")

    def _end(self, worker: SimWorker) -> None:
        worker.alive = False
        self.world.nodes.pop(worker.name, None)
        self.network.crashed(worker)
        # Reports already sent may arrive or not: what a dead process had in its socket is nobody's promise.
        if self.world.rng.random() < 0.5:
            self.world.drop(lambda q: q != ("from", worker.name))
