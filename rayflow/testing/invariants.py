"""Invariants of the engines that hold whatever the job: checked while a simulation runs, and at its end.

I7   no credit is made or lost: for every open channel, what the consumer has granted and not yet got back as
     queued frames is what the producer holds, plus what is under way in either direction, in frames and in bytes;
     for every gate, what its channels use above their shares and what nobody uses is all that floats. And it has
     recorded nothing but for a snapshot that is not whole (I2).
     And no gate's buffers, counted frame by frame, outgrow its budget by more than a frame a channel.
I10  a finished job leaves on storage its metadata, its attempts' claims, and at most `checkpoint.retained` complete
     checkpoints, with the files that their manifests name, and no others. (What a process wrote after it had been given
     up is nobody's to clean: it is passed over.)
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from inspect import signature
from typing import TYPE_CHECKING

from rayflow.model.config import JobConfig
from rayflow.model.ids import ChannelId
from rayflow.protocol.credit import CreditReceiver
from rayflow.runtime.gate import InputGate
from rayflow.runtime.master.closing import NOT_SWEPT
from rayflow.runtime.messages import CreditFrame, DataFrame
from rayflow.runtime.subtask import SubtaskEngine
from rayflow.runtime.task import Task
from rayflow.state.storage import ObjectStore
from rayflow.testing.network import Channel
from rayflow.testing.storage import file_path

if TYPE_CHECKING:
    from rayflow.testing.simulation import SimJob, Simulation

_FLOATING_BATCHES = signature(CreditReceiver).parameters["floating_batches"].default
_METADATA = ("job.json", "events.jsonl", "graph.pkl")


def check_credit(sim: Simulation) -> None:
    """I7, for every open channel."""
    tasks = _tasks(sim)
    for channel in sim.network.outgoing.values():
        producer = tasks.get((channel.producer.name, channel.attempt))
        consumer = tasks.get((channel.consumer.name, channel.attempt))
        if producer is not None and consumer is not None and consumer._gate is not None:
            _check_channel(channel, producer, consumer._gate)
    for (name, _), task in tasks.items():
        if task._gate is not None:
            _check_floating(name, task._gate)
            unfinished = task._barriers._unfinished
            assert not task._gate._recorded or (unfinished is not None and unfinished.recording), (
                f"I2: {name} keeps rows that it recorded for a checkpoint that is over: the next would have them too"
            )


def _check_channel(channel: Channel, producer: Task, gate: InputGate) -> None:
    name = channel.id
    out = producer._parts.channels.get(name)
    if out is None or name not in gate._queues:
        return
    granted, granted_bytes = gate._credit.granted(name)
    first = gate._first_grants.get(name)
    if first is not None:
        granted, granted_bytes = granted - first.batches, granted_bytes - first.nbytes
    frames, frame_bytes = channel.data.frames, channel.data.nbytes
    for arrived_on, frame in _arrived(channel.consumer.engine, gate):
        if arrived_on == name:
            frames, frame_bytes = frames + 1, frame_bytes + frame.nbytes
    credit, credit_bytes = channel.credit.frames, channel.credit.nbytes
    for attempt, arrived_on, item in channel.producer.engine._inbox:
        if arrived_on == name and attempt == channel.attempt and isinstance(item, CreditFrame):
            credit, credit_bytes = credit + item.batches, credit_bytes + item.nbytes
    held, held_bytes = out._credit.outstanding
    spent = (held + frames + credit, held_bytes + frame_bytes + credit_bytes)
    assert (granted, granted_bytes) == spent, (
        f"I7: {name}: {granted} frames and {granted_bytes} bytes granted, but {held} and {held_bytes} held, "
        f"{frames} and {frame_bytes} under way, {credit} and {credit_bytes} of credit under way"
    )


def _check_floating(name: str, gate: InputGate) -> None:
    credit, books = gate._credit, gate._credit._channels.values()
    batches, nbytes = credit.floating
    batches += sum(max(0, b.batches + b.queued_batches - credit._share_batches) for b in books)
    nbytes += sum(max(0, b.nbytes + b.queued_bytes - b.share_bytes) for b in books)
    all_bytes = gate.budget.gate_bytes - sum(b.share_bytes for b in books)
    assert (batches, nbytes) == (_FLOATING_BATCHES, all_bytes), (
        f"I7: {name}: {batches} batches and {nbytes} bytes float, of {_FLOATING_BATCHES} and {all_bytes}"
    )


def check_memory(sim: Simulation) -> None:
    """I7, for every gate, of the frames themselves and not of the books: what is queued, in its inbox or under way to
    it stays within its budget and one frame a channel, and so does what it records (G4)."""
    buffered: dict[str, int] = {}
    allowed: dict[str, int] = {}
    gates: dict[str, InputGate] = {}
    intact: Counter[str] = Counter()
    tasks = _tasks(sim)
    for channel in sim.network.incoming.values():
        task = tasks.get((channel.consumer.name, channel.attempt))
        if task is None or task._gate is None or channel.id not in task._gate._queues:
            continue
        name, gate = channel.consumer.name, task._gate
        gates[name] = gate
        intact[name] += 1
        buffered[name] = (
            buffered.get(name, 0) + channel.data.nbytes + _data_bytes(gate._queues[channel.id].frames)
        )
        allowed[name] = allowed.get(name, gate.budget.gate_bytes) + channel.largest_bytes
    for name, gate in gates.items():
        inbox = _arrived(sim.workers[name].engine, gate)
        found, limit = buffered[name] + sum(frame.nbytes for _, frame in inbox), allowed[name]
        assert found <= limit, f"I7: {name} has {found} bytes buffered or under way to it, {limit} allowed"
        if intact[name] < len(gate.channels):
            continue  # what was recorded of a broken channel goes with its attempt
        held = (frames for of, frames in gate._recorded.items() if of not in gate.never_held_back)
        recorded = sum(_data_bytes(frames) for frames in held)
        limit += gate.budget.recorded_bytes
        assert recorded <= limit, (
            f"I7: {name} has recorded {recorded} bytes of rows in flight, {limit} allowed"
        )


def _arrived(engine: SubtaskEngine, gate: InputGate) -> list[tuple[ChannelId, DataFrame]]:
    """The data frames that wait to be taken into the gate, but for those that came before."""
    if not engine._inbox:
        return []
    expected: dict[ChannelId, int] = {}
    found = []
    for attempt, channel, frame in engine._inbox:
        if (
            not isinstance(frame, DataFrame)
            or attempt != engine._fence.attempt
            or channel not in gate._queues
        ):
            continue
        if frame.seq >= expected.setdefault(channel, gate._queues[channel].sequence.expected):
            expected[channel] = frame.seq + 1
            found.append((channel, frame))
    return found


def _data_bytes(frames: Iterable[object]) -> int:
    return sum(frame.nbytes for frame in frames if isinstance(frame, DataFrame))


def _tasks(sim: Simulation) -> dict[tuple[str, int], Task]:
    """Every task there is, by its worker's name and its attempt."""
    found = ((worker, worker.engine._task) for worker in sim.workers.values() if worker.process.alive)
    return {(w.name, w.engine._fence.attempt): task for w, task in found if task is not None}


def check_leftovers(sim: Simulation, job: SimJob) -> None:
    """I10, when `job` has finished. (Of one that was cut short the next attempt would sweep up.)"""
    store = sim.store()
    retained = JobConfig.from_flat(job.config).checkpoint_retained
    files: dict[str, set[str]] = {}
    paths = store.list(job.id)
    for path in paths:
        if f"{store.url}/{path}" in sim.storage.by_outsiders:
            continue
        below = path.removeprefix(f"{job.id}/")
        directory, _, name = below.partition("/")
        if directory.startswith("chk-"):
            files.setdefault(directory, set()).add(name)
        elif directory != "attempts" and below not in _METADATA:
            raise AssertionError(f"I10: {path} is left on storage")
    if sim.storage.sweep_failed or _says_it_was_not_swept(job):
        return
    # A damaged checkpoint is kept for whoever wants to know what happened to it; of one that was published behind its
    # back the last manager may not know, and of one whose manifest came when all was over nobody does.
    published = {path for path in sim.storage.by_outsiders if path.endswith("/manifest.json")}
    excused = (
        sim.storage.undeleted
        | sim.storage.late
        | {path.rpartition("/")[0] for path in sim.storage.damaged | published}
    )
    files = {d: names for d, names in files.items() if f"{store.url}/{job.id}/{d}" not in excused}
    complete = [directory for directory, names in files.items() if "manifest.json" in names]
    # What came when all was over may be built on any that was there: then all are kept.
    built_on = JobConfig.from_flat(job.config).state_backend == "disk" and any(
        url.startswith(f"{store.url}/{job.id}/") for url in sim.storage.late
    )
    # Nor is anything deleted that may help where the newest one's manifest got lost.
    newest = max((_number(directory) for directory in complete), default=0)
    lost = any(_number(d) > newest for d in _damaged_manifests(sim, job))
    assert built_on or lost or len(complete) <= retained, (
        f"I10: {sorted(complete)} are kept where {retained} are retained"
    )
    named = _named(store, job.id, files)
    damaged = {path.removeprefix(f"{store.url}/{job.id}/") for path in sim.storage.damaged}
    missing = named - damaged - {path.removeprefix(f"{job.id}/") for path in paths}
    assert not missing, f"I10: manifests name what is not there: {sorted(missing)}"
    # Those as well that the last manager did not publish: they may be built on files of others.
    manifests = (
        path.removeprefix(f"{job.id}/").split("/") for path in paths if path.endswith("/manifest.json")
    )
    named |= _named(store, job.id, {directory: {name} for directory, name in manifests})
    for directory, names in sorted(files.items()):
        extra = {f"{directory}/{name}" for name in names - {"manifest.json"}} - named
        assert not extra, f"I10: no manifest names {sorted(extra)}"


def _damaged_manifests(sim: Simulation, job: SimJob) -> list[str]:
    below = f"{sim.storage_url}/{job.id}/"
    paths = (path.removeprefix(below) for path in sim.storage.damaged if path.startswith(f"{below}chk-"))
    return [path.partition("/")[0] for path in paths if path.endswith("/manifest.json")]


def _number(directory: str) -> int:
    return int(directory.removeprefix("chk-"))


def _says_it_was_not_swept(job: SimJob) -> bool:
    events = [] if job.manager is None else job.manager.master.events()
    return any(NOT_SWEPT in event["message"] for event in events)


def _named(store: ObjectStore, job_id: str, directories: Mapping[str, set[str]]) -> set[str]:
    """Return what the manifests in these directories name; of a torn one nothing."""
    found: set[str] = set()
    for directory, names in directories.items():
        if "manifest.json" in names:
            with suppress(ValueError, KeyError):
                files = json.loads(store.read(f"{job_id}/{directory}/manifest.json"))["files"]
                found |= {file_path(directory, file) for file in files}
    return found
