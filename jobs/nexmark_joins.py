"""NEXMark's queries over two streams, or a stream and a table. See nexmark_queries.py."""

from __future__ import annotations

from collections.abc import Sequence

from nexmark_streams import Streams

import rayflow as rf
from rayflow import col


def q3(s: Streams) -> rf.DataStream:
    """Local item suggestion: auctions of a category whose sellers are from some states."""
    auctions = s.auctions.filter(col("category") == 10).select("id", "seller")
    sellers = s.persons.filter(col("state").is_in(["OR", "ID", "CA"])).select(
        "name", "city", "state", seller=col("id")
    )
    return auctions.join(sellers, on="seller").select("name", "city", "state", "id")


def q8(s: Streams) -> rf.DataStream:
    """New users: persons who opened an auction in the ten seconds in which they registered."""
    ten_seconds = rf.Tumbling("10s")
    persons = s.persons.select("id", "name", "dateTime").key_by("id", "name")
    sellers = s.auctions.select("seller", "dateTime").key_by("seller")
    registered = persons.window(ten_seconds).aggregate(persons=rf.count()).drop("window_end")
    opened = sellers.window(ten_seconds).aggregate(auctions=rf.count()).drop("window_end")
    on = {"id": "seller", "window_start": "window_start"}
    return registered.join(opened, on=on, window=ten_seconds).select("id", "name", stime=col("window_start"))


def q13(s: Streams) -> rf.DataStream:
    """Bounded side input: bids with a value from a table."""
    if s.side is None:
        raise rf.PlanError("q13 needs --side FILE.csv, a table with the columns key and value")
    table = s.env.read_csv(s.side, schema={"key": int, "value": str})
    bids = s.bids.select("auction", "bidder", "price", "dateTime", key=col("auction") % 10_000)
    return bids.broadcast_join(table, on="key").select("auction", "bidder", "price", "dateTime", "value")


def q20(s: Streams) -> rf.DataStream:
    """Expand bids with their auction, for a category."""
    bids = s.bids.select(
        "auction",
        "bidder",
        "price",
        "channel",
        "url",
        bid_dateTime=col("dateTime"),
        bid_extra=col("extra"),
    )
    auctions = s.auctions.filter(col("category") == 10).select(
        "itemName",
        "description",
        "initialBid",
        "reserve",
        "expires",
        "seller",
        "category",
        auction=col("id"),
        auction_dateTime=col("dateTime"),
        auction_extra=col("extra"),
    )
    return bids.join(auctions, on="auction").select(
        "auction", "bidder", "price", "channel", "url", "bid_dateTime", "bid_extra",
        "itemName", "description", "initialBid", "reserve", "auction_dateTime", "expires", "seller",
        "category", "auction_extra",
    )  # fmt: skip


# ------------------------------------------------------------------------------------- winners and after


def _bids_in_time(s: Streams, of_bids: Sequence[str], of_auctions: Sequence[str]) -> rf.DataStream:
    """Return each bid that came while its auction was open, beside the auction, with these columns of theirs."""
    bids = s.bids.select(
        "auction",
        "bidder",
        "price",
        bid_order=col("event_order"),
        bid_dateTime=col("dateTime"),
        bid_extra=col("extra"),
    ).select("auction", "price", "bid_dateTime", *of_bids)
    auctions = s.auctions.select("dateTime", "expires", *of_auctions, auction=col("id"))
    return bids.join(auctions, on="auction").filter(
        (col("bid_dateTime") >= col("dateTime")) & (col("bid_dateTime") <= col("expires"))
    )


def _winning_bids(s: Streams, of_bids: Sequence[str], of_auctions: Sequence[str]) -> rf.DataStream:
    """Return auctions with their highest bid, of equal ones the first."""
    best = [col("price").desc(), col("bid_dateTime").asc(), col("bid_order").asc()]
    return _bids_in_time(s, ["bid_order", *of_bids], of_auctions).key_by("auction").top_n(1, order_by=best)


def q4(s: Streams) -> rf.DataStream:
    """Average price per category: of the auctions' highest bids, without the fraction."""
    return (
        _bids_in_time(s, [], ["category"])
        .key_by("auction", "category")
        .aggregate(price=col("price").max())
        .key_by("category")
        .aggregate(prices=col("price").sum(), auctions=col("price").count())
        .select("category", final=col("prices") // col("auctions"))
    )


def q6(s: Streams) -> rf.DataStream:
    """Average selling price: per seller, over the ten auctions that closed last."""
    return (
        _winning_bids(s, [], ["seller", "event_order"])
        .select("auction", "seller", "price", "expires", "event_order")
        .key_by("seller")
        .top_n(10, order_by=[col("expires").desc(), col("event_order").desc()])
        .key_by("seller")
        .aggregate(avg_price=col("price").mean())
    )


def q9(s: Streams) -> rf.DataStream:
    """Winning bids: every auction with its highest bid, of equal ones the first."""
    auction = ("itemName", "description", "initialBid", "reserve", "seller", "category", "extra")
    return _winning_bids(s, ["bidder", "bid_extra"], auction).select(
        col("auction").alias("id"), "itemName", "description", "initialBid", "reserve", "dateTime", "expires",
        "seller", "category", "extra", "auction", "bidder", "price", "bid_dateTime", "bid_extra",
    )  # fmt: skip
