"""What NEXMark's queries read: the three streams, wherever they come from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import rayflow as rf


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
