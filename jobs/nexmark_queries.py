"""NEXMark's queries. Each takes the `Streams` and returns the stream of its rows. Those that join are
in nexmark_joins.py.

Columns keep the benchmark's spelling. Prices are whole cents; `event_order` is an event's place in the whole sequence
and decides what came first where times or prices are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import nexmark_joins
import pyarrow as pa
from nexmark_streams import Streams

import rayflow as rf
from rayflow import col

BID = ("auction", "bidder", "price", "dateTime", "extra")
WHOLE_BID = ("auction", "bidder", "price", "channel", "url", "dateTime", "extra")
DAY = col("dateTime").cast("date32").cast(str)
MINUTE = col("dateTime").strftime(format="%H:%M")
EUROS = col("price").cast(pa.decimal128(19)) * Decimal("0.908")  # decimal(23, 3)

RANK1 = col("price") < 10_000
RANK2 = (col("price") >= 10_000) & (col("price") < 1_000_000)
RANK3 = col("price") >= 1_000_000


# ------------------------------------------------------------------------------------------- row by row


def q0(s: Streams) -> rf.DataStream:
    """Pass through: every bid."""
    return s.bids.select(*BID)


def q1(s: Streams) -> rf.DataStream:
    """Currency conversion: every bid, in euros."""
    return s.bids.with_columns(price=EUROS).select(*BID)


def q2(s: Streams) -> rf.DataStream:
    """Selection: bids on some auctions."""
    return s.bids.filter(col("auction") % 123 == 0).select("auction", "price")


def q10(s: Streams) -> rf.DataStream:
    """Log to files: every bid, in folders by day and minute."""
    return s.bids.select(*BID, dt=DAY, hm=MINUTE)


def q14(s: Streams) -> rf.DataStream:
    """Calculation: bids of a medium price in euros, with a label for the hour and the number of letters c."""
    hour = col("dateTime").hour()
    label = (
        rf.when(hour.between(8, 18)).then("dayTime").when((hour <= 6) | (hour >= 20)).then("nightTime")
    ).otherwise("otherTime")
    return (
        s.bids.with_columns(price=EUROS)
        .filter((col("price") > 1_000_000) & (col("price") < 50_000_000))
        .select(
            "auction",
            "bidder",
            "price",
            "dateTime",
            "extra",
            bidTimeType=label,
            c_counts=col("extra").count_substring(pattern="c").cast(int),
        )
        .select("auction", "bidder", "price", "bidTimeType", "dateTime", "extra", "c_counts")
    )


def q21(s: Streams) -> rf.DataStream:
    """Channel id: of the big channels a number, of the others what the url says; without either, no row."""
    big = col("channel").utf8_lower().index_in(value_set=["apple", "google", "facebook", "baidu"])
    of_url = col("url").extract_regex(pattern="[?&]channel_id=(?P<id>[^&]*)").struct_field("id")
    return s.bids.select(
        "auction", "bidder", "price", "channel", channel_id=big.cast(str).coalesce(of_url)
    ).filter(col("channel_id").is_valid())


def q22(s: Streams) -> rf.DataStream:
    """Url directories: its parts 3, 4 and 5, counted from 0; null where it has fewer."""
    # Five parts more than there are, so that each can be asked for.
    bids = s.bids.with_columns(parts=(col("url") + "/////").split_pattern(pattern="/"))

    def part(number: int) -> rf.Expr:
        parts = col("parts")
        return rf.when(parts.list_value_length() > number + 5).then(parts.list_element(number))

    return bids.select("auction", "bidder", "price", "channel", dir1=part(3), dir2=part(4), dir3=part(5))


# ---------------------------------------------------------------------------------- running statistics


def _by_rank(name: str, aggregate: Any) -> dict[str, Any]:
    """Return an aggregate of all bids, and of those in each of three ranks of price."""
    return {
        f"total_{name}": aggregate,
        f"rank1_{name}": aggregate.filter(RANK1),
        f"rank2_{name}": aggregate.filter(RANK2),
        f"rank3_{name}": aggregate.filter(RANK3),
    }


STATISTICS = (
    _by_rank("bids", rf.count())
    | _by_rank("bidders", col("bidder").count_distinct())
    | _by_rank("auctions", col("auction").count_distinct())
)


def q15(s: Streams) -> rf.DataStream:
    """Bidding statistics: per day, bids and distinct bidders and auctions, by rank of price."""
    return s.bids.select("auction", "bidder", "price", day=DAY).key_by("day").aggregate(**STATISTICS)


def q16(s: Streams) -> rf.DataStream:
    """Channel statistics: as q15, per channel and day, with the latest minute."""
    return (
        s.bids.select("auction", "bidder", "price", "channel", day=DAY, minute=MINUTE)
        .key_by("channel", "day")
        .aggregate(minute=col("minute").max(), **STATISTICS)
    )


def q17(s: Streams) -> rf.DataStream:
    """Auction statistics: per auction and day, bids by rank of price, and what prices were."""
    return (
        s.bids.select("auction", "price", day=DAY)
        .key_by("auction", "day")
        .aggregate(
            **_by_rank("bids", rf.count()),
            min_price=col("price").min(),
            max_price=col("price").max(),
            prices=col("price").count(),
            sum_price=col("price").sum(),
        )
        .with_columns(avg_price=col("sum_price") // col("prices"))
        .select(
            "auction", "day", "total_bids", "rank1_bids", "rank2_bids", "rank3_bids",
            "min_price", "max_price", "avg_price", "sum_price",
        )
    )  # fmt: skip


# ---------------------------------------------------------------------------------------- best of a key


def q18(s: Streams) -> rf.DataStream:
    """Last bid of each bidder on each auction."""
    return (
        s.bids.key_by("bidder", "auction")
        .top_n(1, order_by=[col("dateTime").desc(), col("event_order").desc()])
        .select(*WHOLE_BID)
    )


def q19(s: Streams) -> rf.DataStream:
    """The ten highest bids of each auction, with their rank."""
    return (
        s.bids.key_by("auction")
        .top_n(10, order_by=[col("price").desc(), col("event_order").asc()], rank="rank_number")
        .select(*WHOLE_BID, "rank_number")
    )


# -------------------------------------------------------------------------------------------- windows


def q5(s: Streams) -> rf.DataStream:
    """Hot items: of each ten seconds, every two, the auctions with the most bids."""
    bids = s.bids.select("auction", "dateTime")
    counts = bids.key_by("auction").window(rf.Sliding("10s", "2s")).aggregate(num=rf.count())
    # The results of one sliding window are those with one start.
    each = rf.Tumbling("2s")
    most = counts.key_by("window_start").window(each).aggregate(num=col("num").max())
    return counts.join(most.select("window_start", "num"), on=["window_start", "num"], window=each).select(
        "auction", "num"
    )


def q7(s: Streams) -> rf.DataStream:
    """Highest bid: of each ten seconds, the bids at the highest price; one right at the end belongs to it as well."""
    bids = s.bids.select(*BID)
    ten_seconds = rf.Tumbling("10s")
    # First per auction, so that all subtasks have a share of the work.
    per_auction = (
        bids.select("auction", "price", "dateTime")
        .key_by("auction")
        .window(ten_seconds)
        .aggregate(price=col("price").max())
    )
    highest = per_auction.key_by("window_start").window(ten_seconds).aggregate(price=col("price").max())
    return (
        bids.key_by("price")
        .interval_join(highest.select("window_start", "price").key_by("price"), lower="-10s", upper="0s")
        .select("auction", "price", "bidder", "dateTime", "extra")
    )


def q11(s: Streams) -> rf.DataStream:
    """User sessions: bids of each bidder until ten seconds without one have passed."""
    return _bids_per_bidder(s, rf.Session("10s"))


def q12(s: Streams) -> rf.DataStream:
    """Bids of each bidder in ten seconds of the time at which they come."""
    return _bids_per_bidder(s, rf.Tumbling("10s", time=s.time))


def _bids_per_bidder(s: Streams, window: Any) -> rf.DataStream:
    counts = (
        s.bids.select("bidder", "dateTime").key_by("bidder").window(window).aggregate(bid_count=rf.count())
    )
    return counts.select("bidder", "bid_count", starttime=col("window_start"), endtime=col("window_end"))


APPEND: dict[str, Any] = {}
UPSERT: dict[str, Any] = {"mode": "upsert"}

QUERIES: dict[str, tuple[Callable[[Streams], rf.DataStream], dict[str, Any]]] = {
    "q0": (q0, APPEND),
    "q1": (q1, APPEND),
    "q2": (q2, APPEND),
    "q3": (nexmark_joins.q3, APPEND),
    "q4": (nexmark_joins.q4, UPSERT),
    "q5": (q5, APPEND),
    "q6": (nexmark_joins.q6, UPSERT),
    "q7": (q7, APPEND),
    "q8": (nexmark_joins.q8, APPEND),
    "q9": (nexmark_joins.q9, UPSERT),
    "q10": (q10, {"partition_by": ["dt", "hm"]}),
    "q11": (q11, APPEND),
    "q12": (q12, APPEND),
    "q13": (nexmark_joins.q13, APPEND),
    "q14": (q14, APPEND),
    "q15": (q15, UPSERT),
    "q16": (q16, UPSERT),
    "q17": (q17, UPSERT),
    "q18": (q18, UPSERT),
    "q19": (q19, UPSERT),
    "q20": (nexmark_joins.q20, APPEND),
    "q21": (q21, APPEND),
    "q22": (q22, APPEND),
}
"""Each query, and how its rows are written."""
