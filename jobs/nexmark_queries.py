"""NEXMark's queries. Each takes the `Streams` and returns the stream of its rows.

Columns keep the benchmark's spelling. Prices are whole cents; `event_order` is an event's place in the whole sequence
and decides what came first where times or prices are equal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal

import pyarrow as pa

import rayflow as rf
from rayflow import col


@dataclass(frozen=True)
class Streams:
    """What a query may read: the three streams, and what the command line says."""

    env: rf.StreamEnvironment
    read: Callable[[str], rf.DataStream]
    side: str | None
    time: Literal["event", "processing"]

    @property
    def persons(self) -> rf.DataStream:
        """event_order, id, name, emailAddress, creditCard, city, state, dateTime, extra."""
        return self.read("person")

    @property
    def auctions(self) -> rf.DataStream:
        """event_order, id, itemName, description, initialBid, reserve, dateTime, expires, seller, category, extra."""
        return self.read("auction")

    @property
    def bids(self) -> rf.DataStream:
        """event_order, auction, bidder, price, channel, url, dateTime, extra."""
        return self.read("bid")


BID = ("auction", "bidder", "price", "dateTime", "extra")
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
    name = col("channel").utf8_lower()
    of_url = col("url").extract_regex(pattern="[?&]channel_id=(?P<id>[^&]*)").struct_field("id")
    channel_id = (
        rf.when(name == "apple").then("0").when(name == "google").then("1").when(name == "facebook").then("2")
    )
    return s.bids.select(
        "auction",
        "bidder",
        "price",
        "channel",
        channel_id=channel_id.when(name == "baidu").then("3").otherwise(of_url),
    ).filter(col("channel_id").is_valid())


def q22(s: Streams) -> rf.DataStream:
    """Url directories: its parts 3, 4 and 5, counted from 0; null where it has fewer."""
    slashes = col("url").count_substring(pattern="/")
    parts = (col("url") + "/////").split_pattern(pattern="/", max_splits=6)

    def part(number: int) -> rf.Expr:
        return rf.when(slashes >= number).then(parts.list_element(number))

    return s.bids.select("auction", "bidder", "price", "channel", dir1=part(3), dir2=part(4), dir3=part(5))


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
    return s.bids.with_columns(day=DAY).key_by("day").aggregate(**STATISTICS)


def q16(s: Streams) -> rf.DataStream:
    """Channel statistics: as q15, per channel and day, with the latest minute."""
    return (
        s.bids.with_columns(day=DAY, minute=MINUTE)
        .key_by("channel", "day")
        .aggregate(minute=col("minute").max(), **STATISTICS)
    )


def q17(s: Streams) -> rf.DataStream:
    """Auction statistics: per auction and day, bids by rank of price, and what prices were."""
    return (
        s.bids.with_columns(day=DAY)
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


APPEND: dict[str, Any] = {}
UPSERT: dict[str, Any] = {"mode": "upsert"}

QUERIES: dict[str, tuple[Callable[[Streams], rf.DataStream], dict[str, Any]]] = {
    "q0": (q0, APPEND),
    "q1": (q1, APPEND),
    "q2": (q2, APPEND),
    "q10": (q10, {"partition_by": ["dt", "hm"]}),
    "q14": (q14, APPEND),
    "q15": (q15, UPSERT),
    "q16": (q16, UPSERT),
    "q17": (q17, UPSERT),
    "q21": (q21, APPEND),
    "q22": (q22, APPEND),
}
"""Each query, and how its rows are written."""
