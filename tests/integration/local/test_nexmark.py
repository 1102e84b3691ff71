"""Every NEXMark query against its oracle, on small awkward data: as it lies and shuffled, at any parallelism."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import rayflow as rf
from tests.nexmark.data import write_awkward, write_shuffled, write_side_table
from tests.nexmark.oracles import difference, oracle
from tests.nexmark.running import QUERIES, SHARED, nexmark, nexmark_events, run

Expected = Callable[[str], pa.Table]

EVENTS = 16_000
RATE = 500.0  # events per second of event time: 32 s, so that windows of 10 s come and go


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Awkward events, the same shuffled, and a side table."""
    folder = tmp_path_factory.mktemp("nexmark")
    write_awkward(folder / "ordered", EVENTS, RATE)
    write_shuffled(folder / "ordered", folder / "shuffled")
    write_side_table(folder / "side.csv")
    return folder


@pytest.fixture(scope="module")
def expected(data: Path) -> Expected:
    """What a query must give."""
    return cache(lambda query: oracle(query, data / "ordered", data / "side.csv"))


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_equals_its_oracle(query: str, data: Path, expected: Expected, tmp_path: Path) -> None:
    # Spread over parallelism 1, 2 and 4; batches are small, so that there are many.
    parallelism = (1, 2, 4)[QUERIES.index(query) % 3]
    outcome = run(
        query,
        data / "ordered",
        tmp_path / "out",
        parallelism=parallelism,
        side=data / "side.csv",
        batch__rows=1000,
    )
    assert difference(expected(query), outcome.rows) is None


@pytest.mark.parametrize("query", QUERIES)
def test_shuffled_rows_and_a_dead_subtask_change_nothing(
    query: str, data: Path, expected: Expected, tmp_path: Path
) -> None:
    index = QUERIES.index(query)
    outcome = run(
        query,
        data / "shuffled",
        tmp_path / "out",
        parallelism=(2, 4, 1)[index % 3],
        side=data / "side.csv",
        delay="10s",
        kills=1,
        seed=index,
        batch__rows=500,
        source__rate_limit=40_000,  # half a second, so that the subtask dies in the midst of its work
        checkpoint__interval="20ms",
    )
    assert difference(expected(query), outcome.rows) is None
    assert outcome.restarts == 1


@pytest.mark.skipif(not SHARED.exists(), reason=f"the shared data set is not at {SHARED}")
@pytest.mark.parametrize("query", ["q2", "q3", "q5", "q7", "q8", "q15"])
def test_what_flink_computed_over_the_shared_data_comes_out(query: str, tmp_path: Path) -> None:
    outcome = run(query, SHARED, tmp_path / "out", parallelism=2)
    assert difference(pq.read_table(SHARED / "expected" / f"{query}.parquet"), outcome.rows) is None


def test_windows_of_processing_time_count_every_bid_once(data: Path, tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    nexmark.build(env, query="q12", input=str(data / "shuffled"), output=str(tmp_path / "out"))
    env.execute(local=True)
    counts = pq.read_table(tmp_path / "out")
    assert counts.column_names == ["bidder", "bid_count", "starttime", "endtime"]
    bids = pq.read_table(data / "ordered" / "bid")
    by_bidder = counts.group_by("bidder").aggregate([("bid_count", "sum")])
    assert dict(zip(*by_bidder.to_pydict().values(), strict=True)) == Counter(bids["bidder"].to_pylist())


def test_events_are_made_without_files(tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    nexmark.build(env, query="q2", events=EVENTS, output=str(tmp_path / "made"))
    env.execute(local=True)
    nexmark_events.write(tmp_path / "data", EVENTS)
    assert difference(oracle("q2", tmp_path / "data"), pq.read_table(tmp_path / "made")) is None


def test_the_rate_is_shared_among_the_streams_and_sets_event_times(tmp_path: Path) -> None:
    env = rf.StreamEnvironment()
    nexmark.build(env, query="q0", events=EVENTS, rate=100_000.0, output=str(tmp_path / "made"))
    env.execute(local=True)
    times = pq.read_table(tmp_path / "made")["dateTime"].to_pylist()
    assert (max(times) - min(times)).total_seconds() == pytest.approx(EVENTS / 100_000, abs=0.01)


def test_input_or_events_must_be_given() -> None:
    with pytest.raises(rf.PlanError, match="either --input DIR or --events N"):
        nexmark.build(rf.StreamEnvironment(), query="q0")


@pytest.mark.parametrize("stream", nexmark_events.STREAMS)
def test_a_generated_row_is_the_same_in_any_range(stream: str) -> None:
    make = nexmark_events.STREAMS[stream].generator()
    whole = make(0, 70_000)
    whole.validate(full=True)
    cuts = [0, 1, 8_191, 8_193, 30_000, 65_535, 65_536, 65_537, 70_000]
    parts = [make(start, stop - start) for start, stop in pairwise(cuts)]
    assert pa.Table.from_batches(parts).combine_chunks() == pa.Table.from_batches([whole])


def test_generated_streams_are_one_sequence_in_the_published_proportions() -> None:
    streams = nexmark_events.STREAMS
    for events in (0, 1, 3, 4, 49, 50, 51, 12_345):
        made = [stream.make(0, stream.rows(events), 1000.0) for stream in streams.values()]
        orders = sorted(order for batch in made for order in batch["event_order"].to_pylist())
        assert orders == list(range(events))
    assert [stream.share for stream in streams.values()] == [1, 3, 46]


def test_half_of_the_generated_bids_go_to_hot_auctions_and_most_to_auctions_that_are_open() -> None:
    bids = nexmark_events.STREAMS["bid"].make(0, 100_000, 1000.0)
    hot = sum(auction % 100 == 0 for auction in bids["auction"].to_pylist()) / bids.num_rows
    hot_bidder = sum(bidder % 100 == 1 for bidder in bids["bidder"].to_pylist()) / bids.num_rows
    channels = sum(not name.startswith("channel-") for name in bids["channel"].to_pylist()) / bids.num_rows
    assert 0.49 < hot < 0.53
    assert 0.74 < hot_bidder < 0.78
    assert 0.49 < channels < 0.51
