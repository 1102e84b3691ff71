"""NEXMark, the public benchmark of stream processing: an auction site's persons, auctions and bids, and 23 queries.

    rayflow run jobs/nexmark.py --query q5 --input DIR --output out/q5
    rayflow run jobs/nexmark.py --query q5 --events 1000000 --output out/q5

`DIR/{person,auction,bid}/*.parquet` are the events, with timestamps of any unit, at most `--delay` out of order;
`--events N` makes them instead (nexmark_events.py says how), `--rate` of them a second. The queries are in
nexmark_queries.py. Updating ones give their final rows.
"""

from functools import partial
from typing import Literal

import nexmark_events
import nexmark_queries
from nexmark_streams import Streams

import rayflow as rf


def build(
    env: rf.StreamEnvironment,
    *,
    query: Literal[tuple(nexmark_queries.QUERIES)],  # type: ignore[valid-type]
    input: str | None = None,
    output: str = "out/nexmark",
    delay: str = "4s",
    time: Literal["event", "processing"] | None = None,
    side: str | None = None,
    events: int | None = None,
    rate: float | None = None,
) -> None:
    """Run one NEXMark query over Parquet files, or over generated events.

    `time`: what q12's windows go by; processing time unless told otherwise. `side`: q13's table, a CSV with the
    columns key and value.
    """
    if (input is None) == (events is None):
        raise rf.PlanError("give either --input DIR or --events N")
    if input is None:
        read = partial(_generated, env, rf.Watermark("dateTime", delay=delay), events, rate)
    else:
        read = partial(_from_files, env, rf.Watermark("dateTime", delay=delay), input, rate)
    streams = Streams(env=env, read=read, side=side, time=time or "processing")
    define, write_options = nexmark_queries.QUERIES[query]
    define(streams).write_parquet(output, if_exists="overwrite", **write_options)


def _from_files(
    env: rf.StreamEnvironment, watermark: rf.Watermark, input: str, rate: float | None, name: str
) -> rf.DataStream:
    return env.read_parquet(f"{input}/{name}", watermark=watermark, rate_limit=_share(rate, name))


def _generated(
    env: rf.StreamEnvironment, watermark: rf.Watermark, events: int, rate: float | None, name: str
) -> rf.DataStream:
    stream = nexmark_events.STREAMS[name]
    return env.generate(
        stream.generator(rate or nexmark_events.DEFAULT_RATE),
        rows=stream.rows(events),
        watermark=watermark,
        rate_limit=_share(rate, name),
    )


def _share(rate: float | None, name: str) -> float | None:
    """Return how many of `rate` events a second are of this stream."""
    return None if rate is None else rate * nexmark_events.STREAMS[name].share / nexmark_events.EPOCH


if __name__ == "__main__":
    rf.run(build)
