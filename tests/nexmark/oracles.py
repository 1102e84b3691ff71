"""What each NEXMark query must give, as DuckDB SQL over the same files.

Each text is the definition of QUERIES.md and nothing of how the jobs compute it. `person`, `auction`, `bid` are views
of the Parquet files, `side` of the side table. `event_order` says what came first. Processing time has no oracle:
q12 stands for its event-time form.
"""

from __future__ import annotations

from pathlib import Path

import duckdb
import pyarrow as pa

STREAMS = ("person", "auction", "bid")

_RANKS = {
    "total": "true",
    "rank1": "price < 10000",
    "rank2": "price >= 10000 and price < 1000000",
    "rank3": "price >= 1000000",
}


def _by_rank(name: str, aggregate: str) -> str:
    """Return `aggregate` in all and in the three ranks of price, as total_…, rank1_…, rank2_…, rank3_…."""
    return ", ".join(f"{aggregate} filter ({rank}) {key}_{name}" for key, rank in _RANKS.items())


_STATISTICS = ", ".join(
    (
        _by_rank("bids", "count(*)"),
        _by_rank("bidders", "count(distinct bidder)"),
        _by_rank("auctions", "count(distinct auction)"),
    )
)

# A window's start: 10 s long, aligned to the epoch.
_WINDOW = "time_bucket(interval 10 seconds, {}, timestamp '1970-01-01')"
_BID_WINDOW = _WINDOW.format("dateTime")

# Bids that count for their auction.
_VALID = "bid b join auction a on b.auction = a.id and b.dateTime between a.dateTime and a.expires"

_WINNING = f"""
    select a.id, a.itemName, a.description, a.initialBid, a.reserve, a.dateTime, a.expires, a.seller, a.category,
        a.extra, b.auction, b.bidder, b.price, b.dateTime bid_dateTime, b.extra bid_extra,
        a.event_order auction_order
    from {_VALID}
    qualify row_number() over (partition by a.id order by b.price desc, b.dateTime, b.event_order) = 1"""

_CHANNELS = {"apple": 0, "google": 1, "facebook": 2, "baidu": 3}
_CHANNEL_ID = f"""case lower(channel) {" ".join(f"when '{k}' then '{v}'" for k, v in _CHANNELS.items())}
    else nullif(regexp_extract(url, '[?&](channel_id=[^&]*)', 1), '')[12:] end"""

QUERIES = {
    "q0": "select auction, bidder, price, dateTime, extra from bid",
    "q1": """select auction, bidder, cast(price * 0.908 as decimal(23, 3)) price, dateTime, extra from bid""",
    "q2": "select auction, price from bid where auction % 123 = 0",
    "q3": """select name, city, state, a.id from auction a join person p on a.seller = p.id
        where category = 10 and state in ('OR', 'ID', 'CA')""",
    "q4": f"""select category, cast(sum(top) // count(top) as bigint) final from (
        select a.id, a.category, max(b.price) top from {_VALID} group by all) group by all""",
    "q5": """with counts as (
            select auction, w, count(*) num from (
                select auction, unnest([time_bucket(interval 2 seconds, dateTime, timestamp '1970-01-01')
                    - i * interval 2 seconds for i in range(5)]) w from bid) group by all)
        select auction, num from counts qualify num = max(num) over (partition by w)""",
    "q6": f"""select seller, avg(price) avg_price from (
            select seller, price from ({_WINNING})
            qualify row_number() over (partition by seller order by expires desc, auction_order desc) <= 10)
        group by all""",
    "q7": f"""with tops as (select {_BID_WINDOW} w, max(price) price from bid group by all)
        select auction, price, bidder, dateTime, extra from bid join tops using (price)
        where dateTime between w and w + interval 10 seconds""",
    "q8": f"""select distinct p.id, p.name, {_WINDOW.format("p.dateTime")} stime
        from person p join auction a on a.seller = p.id
            and {_WINDOW.format("a.dateTime")} = {_WINDOW.format("p.dateTime")}""",
    "q9": f"select * exclude auction_order from ({_WINNING})",
    "q10": """select auction, bidder, price, dateTime, extra,
        strftime(dateTime, '%Y-%m-%d') dt, strftime(dateTime, '%H:%M') hm from bid""",
    "q11": """with marked as (
            select bidder, dateTime, coalesce(dateTime - lag(dateTime) over by_time > interval 10 seconds, true) new
            from bid window by_time as (partition by bidder order by dateTime)),
        numbered as (select *, sum(new::int) over (partition by bidder order by dateTime) session from marked)
        select bidder, count(*) bid_count, min(dateTime) starttime, max(dateTime) + interval 10 seconds endtime
        from numbered group by bidder, session""",
    "q12": f"""select bidder, count(*) bid_count, {_BID_WINDOW} starttime,
        {_BID_WINDOW} + interval 10 seconds endtime from bid group by all""",
    "q13": """select auction, bidder, price, dateTime, value from bid join side on auction % 10000 = key""",
    "q14": """select auction, bidder, cast(price * 0.908 as decimal(23, 3)) price,
            case when hour(dateTime) between 8 and 18 then 'dayTime'
                when hour(dateTime) <= 6 or hour(dateTime) >= 20 then 'nightTime' else 'otherTime' end bidTimeType,
            dateTime, extra, len(extra) - len(replace(extra, 'c', '')) c_counts
        from bid where price * 0.908 > 1000000 and price * 0.908 < 50000000""",
    "q15": f"select strftime(dateTime, '%Y-%m-%d') as day, {_STATISTICS} from bid group by 1",
    "q16": f"""select channel, strftime(dateTime, '%Y-%m-%d') as day, max(strftime(dateTime, '%H:%M')) as minute,
        {_STATISTICS} from bid group by 1, 2""",
    "q17": f"""select auction, strftime(dateTime, '%Y-%m-%d') as day, {_by_rank("bids", "count(*)")},
            min(price) min_price, max(price) max_price, cast(sum(price) // count(price) as bigint) avg_price,
            cast(sum(price) as bigint) sum_price
        from bid group by 1, 2""",
    "q18": """select auction, bidder, price, channel, url, dateTime, extra from bid
        qualify row_number() over (partition by bidder, auction order by dateTime desc, event_order desc) = 1""",
    "q19": """select auction, bidder, price, channel, url, dateTime, extra, row_number() over by_price rank_number
        from bid window by_price as (partition by auction order by price desc, event_order)
        qualify rank_number <= 10""",
    "q20": """select b.auction, b.bidder, b.price, b.channel, b.url, b.dateTime bid_dateTime, b.extra bid_extra,
            a.itemName, a.description, a.initialBid, a.reserve, a.dateTime auction_dateTime, a.expires, a.seller,
            a.category, a.extra auction_extra
        from bid b join auction a on b.auction = a.id where a.category = 10""",
    "q21": f"""select auction, bidder, price, channel, {_CHANNEL_ID} channel_id from bid
        where channel_id is not null""",
    "q22": """select auction, bidder, price, channel, parts[4] dir1, parts[5] dir2, parts[6] dir3
        from (select *, string_split(url, '/') parts from bid)""",
}


def oracle(query: str, data: Path, side: Path | None = None) -> pa.Table:
    """Return the rows of `query` over the files under `data`, in no order. q13 needs the `side` table, a CSV."""
    connection = duckdb.connect()
    connection.execute("set timezone = 'UTC'")
    for stream in STREAMS:
        connection.execute(f"create view {stream} as from read_parquet('{data}/{stream}/*.parquet')")
    if side is not None:
        columns = "{'key': 'bigint', 'value': 'varchar'}"
        connection.execute(f"create view side as from read_csv('{side}', header = true, columns = {columns})")
    return connection.sql(QUERIES[query]).to_arrow_table()


def difference(expected: pa.Table, actual: pa.Table) -> str | None:
    """Return what tells two results apart as multisets of rows, column by column by name; None if nothing does.

    Times are compared to the nanosecond, whatever their unit; other types must be the same.
    """
    if expected.column_names != actual.column_names:
        return f"columns: expected {expected.column_names}, got {actual.column_names}"
    expected, actual = _in_ns(expected), _in_ns(actual)
    for field, found in zip(expected.schema, actual.schema):
        if field.type != found.type:
            return f"column {field.name}: expected {field.type}, got {found.type}"
    connection = duckdb.connect()
    connection.register("expected", expected)
    connection.register("actual", actual)
    missing = connection.execute("from expected except all from actual").fetchall()
    extra = connection.execute("from actual except all from expected").fetchall()
    if not missing and not extra:
        return None
    return (
        f"{len(missing)} rows missing, such as {missing[:3]}; {len(extra)} rows too many, such as {extra[:3]} "
        f"({expected.num_rows} expected)"
    )


def _in_ns(table: pa.Table) -> pa.Table:
    fields = [
        field.with_type(pa.timestamp("ns")) if pa.types.is_timestamp(field.type) else field
        for field in table.schema
    ]
    return table.cast(pa.schema([field.with_nullable(True) for field in fields]))
