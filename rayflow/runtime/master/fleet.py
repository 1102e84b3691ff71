"""The workers of a job: which are ready, where they listen, whether they still answer.

Theory of operation. `ensure` asks the pool for whatever worker is missing. A ready worker gets a heartbeat every
`interval_ms`; one that has not answered for `timeout_ms` is *overdue*, and its master treats it as lost. A process
that loads the job's code may be slow to answer, on a machine where many do so at a time: until it is known to have
been deployed it has `LOADING_FACTOR` times as long, which is less than its lease. (That it died, Ray tells.) If
the master itself was held up (a busy machine, a stopped process), nobody could answer meanwhile: the time it was
away counts against no one.

Messages that are lost while heartbeats go through are sent again (`protocol.delivery`). Where that does not help for
`timeout_ms` (heartbeats pass, and larger messages do not; more was lost than is kept) the worker is overdue as well.

A worker whose stream broke is *suspect*: dead, most likely, with whoever else was on its node, long before anybody
says so. It is asked at once, and overdue if it has not answered that within `SUSPECT_MS`; until it has, it
counts as missing.

Invariants:

1. A message is sent only to a ready worker.
2. A worker is asked for only while none is starting or ready, so each is told ready once.
3. What one worker was sent is never sent to another one in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rayflow.model.ids import Attempt, SubtaskId
from rayflow.protocol.delivery import Incoming, Outgoing
from rayflow.runtime.correspondence import numbered
from rayflow.runtime.master.job import Job
from rayflow.runtime.messages import FromSubtask, Heartbeat, HeartbeatAnswered, Numbered, ToSubtask
from rayflow.runtime.ports import WorkerPool

LOADING_FACTOR = 2
_LOADING = ("CREATED", "DEPLOYING")
SUSPECT_MS = 1_000
_HURRY_MS = 100


@dataclass(slots=True)
class Worker:
    """A ready worker. `deployed` says whether it ran an attempt before (then it is reset in place), `loaded` whether
    it has told that it was deployed once, `lacks` whether something it sent is lost, `lacking_ms` since when something
    from it or to it has been."""

    address: str
    node_id: str
    pid: int
    answered_ms: int
    deployed: bool = False
    loaded: bool = False
    lacks: bool = False
    lacking_ms: int | None = None
    statistics: dict[str, Any] = field(default_factory=dict)
    outgoing: Outgoing[ToSubtask] = field(default_factory=lambda: Outgoing(numbered))


class Fleet:
    """The job's workers, one per subtask."""

    def __init__(self, pool: WorkerPool, job: Job) -> None:
        self._pool = pool
        self._job = job
        self._interval_ms = job.config.heartbeat_interval_ms
        self._timeout_ms = job.config.heartbeat_timeout_ms
        self._starting: set[SubtaskId] = set()
        self._sequence = 0
        self._next_beat_ms: int | None = None
        self.ready: dict[SubtaskId, Worker] = {}
        self._ended: dict[SubtaskId, Worker] = {}
        # Also of who is lost by now: its last words may be under way.
        self._incoming: defaultdict[SubtaskId, Incoming] = defaultdict(Incoming)
        # The heartbeat whose answer clears a suspect, and until when that must come.
        self._suspects: dict[SubtaskId, tuple[int, int]] = {}
        self._hurry_until_ms = 0

    def ensure(self) -> None:
        """Ask for every worker that is missing."""
        for subtask in self._job.subtasks:
            if subtask not in self.ready and subtask not in self._starting:
                self._starting.add(subtask)
                self._pool.ensure(subtask, self._job.vertex_of(subtask).resources)

    @property
    def missing(self) -> list[SubtaskId]:
        """The subtasks whose worker is not ready, or suspect."""
        return [s for s in self._job.subtasks if s not in self.ready or s in self._suspects]

    def worker_ready(self, subtask: SubtaskId, address: str, node_id: str, pid: int, now_ms: int) -> None:
        """A worker has come up."""
        self._starting.discard(subtask)
        self.ready[subtask] = Worker(address, node_id, pid, now_ms)
        if self._next_beat_ms is None:
            self._next_beat_ms = now_ms

    def worker_lost(self, subtask: SubtaskId) -> Worker | None:
        """A worker is gone. Return what it was, None if it had not even come up."""
        self._starting.discard(subtask)
        self._suspects.pop(subtask, None)
        return self.ready.pop(subtask, None)

    def end(self, subtask: SubtaskId, *, unreachable: bool = False) -> None:
        """End a worker for good; the next `ensure` asks for another, which if this one was `unreachable` better be
        elsewhere."""
        self.worker_lost(subtask)
        self._pool.kill(subtask, unreachable=unreachable)

    def send(self, subtask: SubtaskId, message: ToSubtask) -> None:
        """Send, if the worker is there (invariant 1)."""
        worker = self.ready.get(subtask)
        if worker is not None:
            self._pool.send(subtask, worker.outgoing.add(message.attempt, message))

    def broadcast(self, message: ToSubtask, to: Iterable[SubtaskId] | None = None) -> None:
        """Send to all, or to `to`."""
        for subtask in self._job.subtasks if to is None else to:
            self.send(subtask, message)

    def accepts(self, message: FromSubtask) -> bool:
        """Return whether a message of the current attempt is to be handled: in order, each once."""
        number = message.number if isinstance(message, Numbered) else 0
        return self._incoming[message.subtask].accepts(message.attempt, number)

    def heard(self, answer: HeartbeatAnswered, now_ms: int) -> None:
        """A worker answered a heartbeat: send again what it lacks."""
        subtask, attempt = answer.subtask, answer.attempt
        worker = self.ready.get(subtask)
        if worker is None:
            return
        self.answered(subtask, answer.statistics, now_ms, answer.sequence)
        for message in worker.outgoing.arrived(attempt, answer.arrived, answer.lacks):
            self._pool.send(subtask, message)
        worker.lacks = self._incoming[subtask].lacks(attempt, answer.sent)
        if not (worker.lacks or answer.lacks):
            worker.lacking_ms = None
        elif worker.lacking_ms is None:
            worker.lacking_ms = now_ms

    def answered(
        self, subtask: SubtaskId, statistics: dict[str, Any], now_ms: int, sequence: int | None = None
    ) -> None:
        """A worker told how it stands, in answer to heartbeat `sequence` or of its own accord (None)."""
        worker = self.ready.get(subtask)
        if worker is not None:
            worker.answered_ms = now_ms
            worker.statistics = statistics
            worker.loaded |= statistics.get("state", "CREATED") not in _LOADING
            if sequence is None or sequence >= self._suspects.get(subtask, (0, 0))[0]:
                self._suspects.pop(subtask, None)

    def suspect(self, subtask: SubtaskId, attempt: Attempt, now_ms: int) -> None:
        """Its stream broke: ask it, now."""
        if subtask in self.ready and subtask not in self._suspects:
            self.probe(attempt)
            self._suspects[subtask] = self._sequence, now_ms + SUSPECT_MS

    def hurry(self, until_ms: int) -> None:
        """Send heartbeats quickly until then."""
        self._hurry_until_ms = until_ms
        if self._next_beat_ms is not None:
            self._next_beat_ms = min(self._next_beat_ms, until_ms)

    def probe(self, attempt: Attempt) -> None:
        """Send a heartbeat to all now: a pool finds out about a dead worker when it sends to it."""
        self._sequence += 1
        for subtask in self._job.subtasks:
            worker = self.ready.get(subtask)
            if worker is not None:
                sent, arrived = worker.outgoing.sent(attempt), self._incoming[subtask].arrived(attempt)
                self._pool.send(subtask, Heartbeat(attempt, self._sequence, sent, arrived, worker.lacks))

    def take_survivors(self) -> list[SubtaskId]:
        """Return the workers that ran an attempt before; from now on all of them have."""
        survivors = [s for s in self._job.subtasks if s in self.ready and self.ready[s].deployed]
        for worker in self.ready.values():
            worker.deployed = True
        return survivors

    def is_silent(self, subtask: SubtaskId, attempt: Attempt) -> bool:
        """Whether nothing shows that the worker has taken note of `attempt` (it may be restoring)."""
        worker = self.ready.get(subtask)
        return worker is not None and worker.statistics.get("attempt") != attempt

    def beat(self, attempt: Attempt, now_ms: int) -> list[SubtaskId]:
        """Send heartbeats if they are due; return the overdue workers."""
        if self._next_beat_ms is None or now_ms < self._next_beat_ms:
            return self._overdue_suspects(now_ms)
        held_up_ms = now_ms - self._next_beat_ms
        if held_up_ms > self._interval_ms:
            # What has been heard since it goes on again is as new as it looks.
            for worker in self.ready.values():
                worker.answered_ms = min(worker.answered_ms + held_up_ms, now_ms)
                if worker.lacking_ms is not None:
                    worker.lacking_ms = min(worker.lacking_ms + held_up_ms, now_ms)
            latest_ms = now_ms + SUSPECT_MS
            self._suspects = {
                s: (n, min(at + held_up_ms, latest_ms)) for s, (n, at) in self._suspects.items()
            }
        interval_ms = self._interval_ms
        if now_ms < self._hurry_until_ms:
            interval_ms = min(interval_ms, _HURRY_MS)
        self._next_beat_ms = now_ms + interval_ms
        overdue = [
            s for s in self._job.subtasks if s in self.ready and self._is_overdue(self.ready[s], now_ms)
        ]
        self.probe(attempt)
        return [*overdue, *(s for s in self._overdue_suspects(now_ms) if s not in overdue)]

    def _is_overdue(self, worker: Worker, now_ms: int) -> bool:
        if worker.lacking_ms is not None and now_ms - worker.lacking_ms > self._timeout_ms:
            return True
        patience_ms = self._timeout_ms * (1 if worker.loaded else LOADING_FACTOR)
        return now_ms - worker.answered_ms > patience_ms

    def complaint(self, subtask: SubtaskId, now_ms: int) -> str:
        """Say why a worker that `beat` returned is overdue."""
        worker = self.ready[subtask]
        if worker.lacking_ms is not None and now_ms - worker.lacking_ms > self._timeout_ms:
            return f"heartbeats are answered, but other messages have been lost for {self._timeout_ms} ms"
        return f"no heartbeat answered for {self._timeout_ms} ms"

    def _overdue_suspects(self, now_ms: int) -> list[SubtaskId]:
        return [s for s in self._job.subtasks if s in self._suspects and now_ms >= self._suspects[s][1]]

    @property
    def next_beat_ms(self) -> int | None:
        """When `beat` has something to do, None while there is no worker."""
        if self._next_beat_ms is None:
            return None
        return min([self._next_beat_ms, *(at for _, at in self._suspects.values())])

    def known(self, subtask: SubtaskId) -> Worker | None:
        """Return the worker, also after `shutdown`; None where there is none, or was none then. For reports."""
        return self.ready.get(subtask) or self._ended.get(subtask)

    def shutdown(self) -> None:
        """End all workers."""
        self._ended = dict(self.ready)
        self.ready.clear()
        self._starting.clear()
        self._suspects.clear()
        self._next_beat_ms = None
        self._pool.shutdown()
