"""Invariants that are checked after every turn of a simulation."""

from __future__ import annotations

import re
from collections import Counter

from rayflow.runtime.messages import CreditFrame, DataFrame
from rayflow.testing.cluster import SimPool, SimWorker
from rayflow.testing.world import World

_CREDIT = re.compile(r"credit (\d+)/(\d+) ")


def check_credit(pool: SimPool, world: World) -> None:
    """I7: no credit is made or lost. For every open channel, what the consumer has granted and not yet got back as
    queued frames is what the producer holds plus what is under way in either direction."""
    for (attempt, channel), ends in pool.network.channels.items():
        producer, consumer = ends.producer.engine._task, ends.consumer.engine._task
        if producer is None or consumer is None or consumer._gate is None:
            continue
        gate, out = consumer._gate, producer._parts.channels.get(channel)
        if out is None or channel not in gate._queues:
            continue
        first = gate._first_grants.get(channel)
        granted = gate._credit.granted(channel).batches - (0 if first is None else first.batches)
        held = out._credit.outstanding.batches
        frames = Counter(
            label.split(" ")[0].startswith("DataFrame")
            for label in world.under_way(("frame", attempt, str(channel)))
        )[True]
        credits = sum(
            int(m[1])
            for label in world.under_way(("credit", attempt, str(channel)))
            if (m := _CREDIT.match(label))
        )
        frames += _in_inbox(ends.consumer, channel, DataFrame)
        credits += sum(
            item.batches
            for a, c, item in ends.producer.engine._inbox
            if c == channel and isinstance(item, CreditFrame)
        )
        assert granted == held + frames + credits, (
            f"I7: {channel}: {granted} granted, but {held} held, {frames} frames and {credits} credits under way"
        )


def _in_inbox(worker: SimWorker, channel: object, kind: type) -> int:
    return sum(1 for _, c, item in worker.engine._inbox if c == channel and isinstance(item, kind))
