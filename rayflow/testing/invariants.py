"""Invariants of the engines that hold whatever the job: checked while a simulation runs, and at its end.

I7   no credit is made or lost: for every open channel, what the consumer has granted and not yet got back as
     queued frames is what the producer holds, plus what is under way in either direction.
I10  a finished job leaves on storage its metadata, its attempts' claims, and at most `checkpoint.retained` complete
     checkpoints with no file that their manifests do not name. (What a process wrote after it had been given up is
     nobody's to clean: it is passed over.)
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from rayflow.model.config import JobConfig
from rayflow.runtime.messages import CreditFrame, DataFrame
from rayflow.runtime.task import Task
from rayflow.testing.network import Channel

if TYPE_CHECKING:
    from rayflow.testing.simulation import SimJob, Simulation
    from rayflow.testing.workers import SimWorker

_METADATA = ("job.json", "events.jsonl", "graph.pkl")


def check_credit(sim: Simulation) -> None:
    """I7, for every open channel."""
    for channel in sim.network.channels:
        _check_channel(sim, channel)


def _check_channel(sim: Simulation, channel: Channel) -> None:
    attempt, name = channel.attempt, channel.id
    producer, consumer = _task(channel.producer, attempt), _task(channel.consumer, attempt)
    if producer is None or consumer is None or consumer._gate is None:
        return
    gate, out = consumer._gate, producer._parts.channels.get(name)
    if out is None or name not in gate._queues:
        return
    first = gate._first_grants.get(name)
    granted = gate._credit.granted(name).batches - (0 if first is None else first.batches)
    frames = sum(isinstance(p.item, DataFrame) for p in sim.world.under_way(channel.frames))
    frames += sum(c == name and isinstance(item, DataFrame) for a, c, item in channel.consumer.engine._inbox)
    credits = sum(p.item.batches for p in sim.world.under_way(channel.credits))
    credits += sum(
        item.batches
        for a, c, item in channel.producer.engine._inbox
        if c == name and a == attempt and isinstance(item, CreditFrame)
    )
    held = out._credit.outstanding.batches
    assert granted == held + frames + credits, (
        f"I7: {name}: {granted} granted, but {held} held, {frames} frames and {credits} credits under way"
    )


def _task(worker: SimWorker, attempt: int) -> Task | None:
    engine = worker.engine
    return engine._task if worker.process.alive and engine._fence.attempt == attempt else None


def check_leftovers(sim: Simulation, job: SimJob) -> None:
    """I10, when `job` has finished. (Of one that was cut short the next attempt would sweep up.)"""
    store = sim.store()
    retained = JobConfig.from_flat(job.config).checkpoint_retained
    files: dict[str, set[str]] = {}
    for path in store.list(job.id):
        if f"{store.url}/{path}" in sim.storage.by_outsiders:
            continue
        below = path.removeprefix(f"{job.id}/")
        directory, _, name = below.partition("/")
        if directory.startswith("chk-"):
            files.setdefault(directory, set()).add(name)
        elif directory != "attempts" and below not in _METADATA:
            raise AssertionError(f"I10: {path} is left on storage")
    if sim.injector.corrupted or sim.storage.sweep_failed:
        return
    complete = [
        directory
        for directory, names in files.items()
        if "manifest.json" in names and f"{store.url}/{job.id}/{directory}" not in sim.storage.undeleted
    ]
    assert len(complete) <= retained, f"I10: {sorted(complete)} are kept where {retained} are retained"
    for directory, names in sorted(files.items()):
        if f"{store.url}/{job.id}/{directory}" in sim.storage.undeleted:
            continue
        assert "manifest.json" in names, (
            f"I10: {directory} has no manifest, and is left on storage: {sorted(names)}"
        )
        manifest = json.loads(store.read(f"{job.id}/{directory}/manifest.json"))
        extra = names - {"manifest.json"} - {file["path"] for file in manifest["files"]}
        assert not extra, f"I10: {directory} has files that its manifest does not name: {sorted(extra)}"
