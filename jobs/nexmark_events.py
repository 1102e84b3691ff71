"""NEXMark's persons, auctions and bids, made by number: row i of a stream is always the same row.

Theory of operation
-------------------
Events are numbered; of each 50 in a row the first is a person, the next three are auctions, the other 46 bids. So
the number of a row within its stream gives the number of its event, that gives its time and which persons and
auctions exist, and a hash of both gives whatever is left to chance. No row depends on another: any range can be made
by anyone, which is what `env.generate` asks for.

As in the public generator (Beam's and Flink's): the proportions, ids from 1000, event times that grow with the rate
(10,000 events/s), hot auctions (half of the bids), hot bidders and sellers (three quarters), how far back and ahead ids
are drawn, prices (10^[0, 6) · 100), how long auctions are open, categories 10 to 14, the lists of names, cities and
states, four hot channels (half of the bids) and 10,000 others with a url each, nine in ten with a `channel_id`, and
how long texts are.

Not so: the sequence of random numbers is another, so single rows differ; free texts (`itemName`, `description`,
`extra`) are cut from a text that is random but repeats, e-mail addresses come from a list of 10,000; `extra` fills a
row up to its average size, not this row's; times start at 2015-07-15 and have milliseconds.

Written to Parquet by `python jobs/nexmark_events.py DIR --events N`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

Numbers = Any
"""A NumPy array of whole numbers, one a row."""

PERSONS, AUCTIONS, BIDS = 1, 3, 46
EPOCH = PERSONS + AUCTIONS + BIDS
FIRST_ID = 1000
FIRST_CATEGORY, CATEGORIES = 10, 5
IN_FLIGHT_AUCTIONS, AUCTION_LEAD = 100, 10
ACTIVE_PEOPLE, PERSON_LEAD = 1000, 10
HOT_BLOCK = 100  # every hundredth id is hot, while it is among the newest hundred
CHANNELS = 10_000
EMAILS = 10_000
START_MS = 1_436_918_400_000  # 2015-07-15 00:00:00 UTC
DEFAULT_RATE = 10_000.0

HOT_CHANNELS = ("Google", "Facebook", "Baidu", "Apple")
STATES = ("AZ", "CA", "ID", "OR", "WA", "WY")
CITIES = (
    "Phoenix", "Los Angeles", "San Francisco", "Boise", "Portland", "Bend", "Redmond", "Seattle", "Kent", "Cheyenne",
)  # fmt: skip
FIRST_NAMES = (
    "Peter", "Paul", "Luke", "John", "Saul", "Vicky", "Kate", "Julie", "Sarah", "Deiter", "Walter",
)  # fmt: skip
LAST_NAMES = ("Shultz", "Abrams", "Spencer", "White", "Bartels", "Walton", "Smith", "Jones", "Noris")

TIME = pa.timestamp("ms")


@dataclass(frozen=True, slots=True)
class Stream:
    """One of the three streams: `make(start, count, rate)` gives its rows number start … start+count−1.

    `share`: how many of 50 events are its; `first`: which is the first of them.
    """

    name: str
    first: int
    share: int
    make: Callable[[int, int, float], pa.RecordBatch]

    def rows(self, events: int) -> int:
        """Return how many of the first `events` events belong to this stream."""
        epochs, rest = divmod(events, EPOCH)
        return epochs * self.share + min(max(rest - self.first, 0), self.share)

    def generator(self, rate: float = DEFAULT_RATE) -> Callable[[int, int], pa.RecordBatch]:
        """Return what `env.generate` takes, for events whose times are 1/rate seconds apart."""
        return partial(self.make, rate=rate)


def persons(start: int, count: int, rate: float) -> pa.RecordBatch:
    """Return rows of the person stream."""
    row = np.arange(start, start + count, dtype=np.int64)
    event = row * EPOCH
    dice = _Dice(row, stream=1)
    return pa.record_batch(
        {
            "event_order": event,
            "id": row + FIRST_ID,
            "name": _names().take(pa.array(dice.below(len(FIRST_NAMES) * len(LAST_NAMES)))),
            "emailAddress": _emails().take(pa.array(dice.below(EMAILS))),
            "creditCard": _credit_cards(dice),
            "city": pa.array(CITIES).take(pa.array(dice.below(len(CITIES)))),
            "state": pa.array(STATES).take(pa.array(dice.below(len(STATES)))),
            "dateTime": pa.array(_time_ms(event, rate), TIME),
            "extra": _PERSON_EXTRA.rows(start, count),
        }
    )


def auctions(start: int, count: int, rate: float) -> pa.RecordBatch:
    """Return rows of the auction stream."""
    row = np.arange(start, start + count, dtype=np.int64)
    epoch = row // AUCTIONS
    event = epoch * EPOCH + PERSONS + row % AUCTIONS
    time = _time_ms(event, rate)
    dice = _Dice(row, stream=2)
    initial_bid = _prices(dice)
    # An auction is open, on average, until a hundred more have begun.
    horizon = _time_ms(event + IN_FLIGHT_AUCTIONS * EPOCH // AUCTIONS, rate) - time
    hot = dice.below(4) > 0
    seller = np.where(hot, epoch // HOT_BLOCK * HOT_BLOCK, _somebody(dice, epoch))
    return pa.record_batch(
        {
            "event_order": event,
            "id": row + FIRST_ID,
            "itemName": _ITEM_NAME.rows(start, count),
            "description": _DESCRIPTION.rows(start, count),
            "initialBid": initial_bid,
            "reserve": initial_bid + _prices(dice),
            "dateTime": pa.array(time, TIME),
            "expires": pa.array(time + 1 + dice.below(np.maximum(horizon * 2, 1)), TIME),
            "seller": seller + FIRST_ID,
            "category": dice.below(CATEGORIES) + FIRST_CATEGORY,
            "extra": _AUCTION_EXTRA.rows(start, count),
        }
    )


def bids(start: int, count: int, rate: float) -> pa.RecordBatch:
    """Return rows of the bid stream."""
    row = np.arange(start, start + count, dtype=np.int64)
    epoch = row // BIDS
    event = row + epoch * (EPOCH - BIDS) + PERSONS + AUCTIONS
    newest = epoch * AUCTIONS + AUCTIONS - 1
    oldest = np.maximum(newest - IN_FLIGHT_AUCTIONS, 0)
    dice = _Dice(row, stream=3)
    hot_auction, hot_bidder, hot_channel = dice.below(2) > 0, dice.below(4) > 0, dice.below(2) > 0
    auction = np.where(
        hot_auction,
        newest // HOT_BLOCK * HOT_BLOCK,
        oldest + dice.below(newest - oldest + 1 + AUCTION_LEAD),
    )
    bidder = np.where(hot_bidder, epoch // HOT_BLOCK * HOT_BLOCK + 1, _somebody(dice, epoch))
    # The hot channels stand behind the others in the table.
    channel = pa.array(np.where(hot_channel, CHANNELS + dice.below(len(HOT_CHANNELS)), dice.below(CHANNELS)))
    channels, urls = _channels()
    return pa.record_batch(
        {
            "event_order": event,
            "auction": auction + FIRST_ID,
            "bidder": bidder + FIRST_ID,
            "price": _prices(dice),
            "channel": channels.take(channel),
            "url": urls.take(channel),
            "dateTime": pa.array(_time_ms(event, rate), TIME),
            "extra": _BID_EXTRA.rows(start, count),
        }
    )


STREAMS = {
    "person": Stream("person", 0, PERSONS, persons),
    "auction": Stream("auction", PERSONS, AUCTIONS, auctions),
    "bid": Stream("bid", PERSONS + AUCTIONS, BIDS, bids),
}


# ---------------------------------------------------------------------------------------------- numbers


class _Dice:
    """Numbers drawn for each row: hashes of the row, the stream and how often was drawn before (SplitMix64)."""

    def __init__(self, row: Numbers, stream: int) -> None:
        self._seed = row.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        self._draws = stream << 32

    def bits(self) -> Numbers:
        """Return 64 random bits a row."""
        self._draws += 1
        z = self._seed + np.uint64(self._draws * 0xD1B54A32D192ED03 % 2**64)
        z ^= z >> np.uint64(30)
        z *= np.uint64(0xBF58476D1CE4E5B9)
        z ^= z >> np.uint64(27)
        z *= np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
        return z

    def below(self, bound: int | Numbers) -> Numbers:
        """Return whole numbers from 0 to `bound` − 1; a bound is at most 2³¹."""
        bound = bound if isinstance(bound, int) else bound.astype(np.uint64)
        return ((self.bits() >> np.uint64(32)) * np.asarray(bound, np.uint64) >> np.uint64(32)).astype(
            np.int64
        )

    def fraction(self) -> Numbers:
        """Return numbers from 0 up to, not including, 1."""
        return (self.bits() >> np.uint64(11)) * 2.0**-53


def _time_ms(event: Numbers, rate: float) -> Numbers:
    return START_MS + (event * (1000.0 / rate)).astype(np.int64)


def _prices(dice: _Dice) -> Numbers:
    return np.rint(np.exp(dice.fraction() * (6 * np.log(10.0))) * 100).astype(np.int64)


def _somebody(dice: _Dice, newest: Numbers) -> Numbers:
    """Return one of the thousand newest persons, or one of the ten that come next."""
    active = np.minimum(newest + 1, ACTIVE_PEOPLE)
    return newest + 1 - active + dice.below(active + PERSON_LEAD)


# ------------------------------------------------------------------------------------------------ texts


@dataclass(frozen=True, slots=True)
class _Texts:
    """Texts of `shortest` up to, not including, `longest` characters, cut from one long text.

    Lengths repeat after `period` rows, and each period begins at another place of the text, so that a range of rows
    is a stretch of it: nothing is copied.
    """

    seed: int
    shortest: int
    longest: int
    period: int
    spaces: bool = False
    _made: list[Any] = field(default_factory=list, compare=False, repr=False)

    _PLACES = 1 << 16

    def rows(self, start: int, count: int) -> pa.Array:
        """Return the texts of rows number start … start+count−1."""
        offsets, text = self._cut()
        parts, at, stop = [], start, start + count
        while at < stop or not parts:
            period, first = divmod(at, self.period)
            length = min(stop - at, self.period - first)
            place = period * 40_503 % self._PLACES
            buffers = [None, offsets, text.slice(place)]
            parts.append(pa.StringArray.from_buffers(length, buffers[1], buffers[2], offset=first))
            at += length
        return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)

    def _cut(self) -> Any:
        if not self._made:
            rng = np.random.default_rng(self.seed)
            lengths = rng.integers(self.shortest, self.longest, self.period)
            offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            make = _letters_and_spaces if self.spaces else _letters
            self._made.append(
                (pa.py_buffer(offsets), pa.py_buffer(make(rng, int(offsets[-1]) + self._PLACES)))
            )
        return self._made[0]


def _letters(rng: np.random.Generator, count: int) -> Numbers:
    """Return characters around `a`: runs of six of the letters from it on, or of what stands before it."""
    signs = np.repeat(rng.choice([-1, 1], -(-count // 6)), 6)[:count]
    return (ord("a") + signs * rng.integers(0, 26, count)).astype(np.uint8)


def _letters_and_spaces(rng: np.random.Generator, count: int) -> Numbers:
    letters = rng.integers(ord("a"), ord("z") + 1, count)
    return np.where(rng.integers(0, 13, count) == 0, ord(" "), letters).astype(np.uint8)


_ITEM_NAME = _Texts(seed=1, shortest=3, longest=20, period=8192, spaces=True)
_DESCRIPTION = _Texts(seed=2, shortest=3, longest=100, period=8192, spaces=True)
_AUCTION_EXTRA = _Texts(seed=3, shortest=314, longest=470, period=8192)
_PERSON_EXTRA = _Texts(seed=4, shortest=109, longest=163, period=8192)
_BID_EXTRA = _Texts(seed=5, shortest=54, longest=82, period=65_536)


@cache
def _names() -> pa.Array:
    return pa.array([f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES])


@cache
def _emails() -> pa.Array:
    rng = np.random.default_rng(6)
    return pa.array([f"{_word(rng, 7)}@{_word(rng, 5)}.com" for _ in range(EMAILS)])


@cache
def _channels() -> tuple[pa.Array, pa.Array]:
    """Return names and urls of the channels: 10,000 of no name, then the hot ones."""
    rng = np.random.default_rng(7)
    names, urls = [], []
    for number in range(CHANNELS):
        reversed_bits = int(f"{number:032b}"[::-1], 2)
        channel_id = min(reversed_bits, 2**32 - reversed_bits)  # as abs() of a signed number of 32 bits
        names.append(f"channel-{number}")
        urls.append(_url(rng) + (f"&channel_id={channel_id}" if rng.integers(10) else ""))
    return pa.array([*names, *HOT_CHANNELS]), pa.array([*urls, *(_url(rng) for _ in HOT_CHANNELS)])


def _url(rng: np.random.Generator) -> str:
    path = "/".join(_word(rng, 5, special="_") for _ in range(3))
    return f"https://www.nexmark.com/{path}/item.htm?query=1"


def _word(rng: np.random.Generator, longest: int, special: str = " ") -> str:
    letters = rng.integers(0, 26, rng.integers(3, longest))
    return "".join(special if rng.integers(13) == 0 else chr(97 + int(letter)) for letter in letters).strip()


def _credit_cards(dice: _Dice) -> pa.Array:
    """Return four groups of four digits, with a space between them."""
    groups = [dice.below(10_000) for _ in range(4)]
    shown = np.full((len(groups[0]), 19), ord(" "), np.uint8)
    for group, number in enumerate(groups):
        for place in range(4):
            shown[:, group * 5 + place] = ord("0") + number // 10 ** (3 - place) % 10
    offsets = np.arange(0, shown.size + 1, 19, dtype=np.int32)
    return pa.StringArray.from_buffers(len(shown), pa.py_buffer(offsets), pa.py_buffer(shown))


# ---------------------------------------------------------------------------------------------- writing


def write(directory: str | Path, events: int, rate: float = DEFAULT_RATE, files: int = 1) -> None:
    """Write the first `events` events as Parquet: `directory/{person,auction,bid}/part-000.parquet`, …"""
    for name, stream in STREAMS.items():
        folder, rows = Path(directory) / name, stream.rows(events)
        folder.mkdir(parents=True, exist_ok=True)
        for file in range(files):
            start, stop = rows * file // files, rows * (file + 1) // files
            schema = stream.make(0, 1, rate).schema
            with pq.ParquetWriter(folder / f"part-{file:03}.parquet", schema) as writer:
                for at in range(start, stop, 1 << 17):
                    writer.write_batch(stream.make(at, min(1 << 17, stop - at), rate))


def main() -> None:
    """Write a data set."""
    parser = argparse.ArgumentParser(description="Write NEXMark's events as Parquet.")
    parser.add_argument("directory")
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--rate", type=float, default=DEFAULT_RATE, help="events per second of event time")
    parser.add_argument("--files", type=int, default=1, help="per stream")
    options = parser.parse_args()
    write(options.directory, options.events, options.rate, options.files)


if __name__ == "__main__":
    main()
