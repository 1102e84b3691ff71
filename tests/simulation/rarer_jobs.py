"""More small jobs, of a fifth of the seeds: operators that the jobs of `jobs.py` have not, and what comes of two that
follow one another in event time. They are drawn apart, so what the other seeds run does not move with them."""

from __future__ import annotations

import datetime as dt
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.api.streams import DataStream
from tests.simulation.external import SCHEMA, Row
from tests.simulation.jobs import JOIN_MS, TIMER_MS, Shape, compare, look_up, milliseconds, schema_of, timed

GAP_MS = 90
SETTLED_MS = 150
TOP = 3
LATE_DELAY_MS = 20
"""Less than the rows' disorder: some come late."""

_SUM = {"n": rf.count(), "total": col("value").sum()}


# ------------------------------------------------------------------------------------------ functions


class Settled(rf.KeyedProcessFunction):
    """Gathers the rows of a key until none has come for `SETTLED_MS` of event time: one timer, which is set anew."""

    due = rf.ValueState("timestamp[ms]")
    rows = rf.ListState("int64")

    def process(self, row: dict[str, Any], ctx: Any) -> None:
        due = row["time"] + dt.timedelta(milliseconds=SETTLED_MS)
        if self.due.value is None or due > self.due.value:
            if self.due.value is not None:
                ctx.delete_event_timer(self.due.value)
            self.due.value = due
            ctx.register_event_timer(due)
        self.rows.append(_number(row["split"], row["pos"]))

    def on_timer(self, ts: dt.datetime, ctx: Any) -> Iterable[Any]:
        for number in self.rows:
            yield {"key": ctx.current_key, "at": milliseconds(ts), "row": number}
        self.rows.clear()
        self.due.clear()


class AlarmAgain(rf.KeyedProcessFunction):
    """Sets a timer `TIMER_MS` after each row; when it fires there is a row of that time."""

    def process(self, row: dict[str, Any], ctx: Any) -> None:
        ctx.register_event_timer(row["time"] + dt.timedelta(milliseconds=TIMER_MS))

    def on_timer(self, ts: dt.datetime, ctx: Any) -> Iterable[Any]:
        yield {"key": ctx.current_key, "time": ts}


class Ruled(rf.CoProcessFunction):
    """Says with each row how many rules there were, which all subtasks know."""

    rules = rf.MapState("int64", "int64", broadcast=True)

    def process1(self, row: dict[str, Any], ctx: Any) -> Iterable[Any]:
        yield {"key": row["key"], "row": _number(row["split"], row["pos"]), "rules": len(self.rules)}

    def process2(self, row: dict[str, Any], ctx: Any) -> None:
        self.rules[_number(row["split"], row["pos"])] = row["value"]


def checked(row: dict[str, Any]) -> dict[str, Any]:
    """Raises on every tenth value."""
    if _is_poison(row["value"]):
        raise ValueError(f"poison: {row['value']}")
    return row


def _is_poison(value: int) -> bool:
    return value % 10 == 3


def _number(split: int, pos: int) -> int:
    return split * 1_000 + pos


# ------------------------------------------------------------------------------------------ builders


def _sessions(s: Sequence[DataStream]) -> Any:
    asked = (
        s[0]
        .rebalance()
        .map_async(
            look_up,
            capacity=4,
            ordered=False,
            timeout="500ms",
            retries=5,
            retry_delay="20ms",
            returns=SCHEMA,
        )
        .uid("look-up")
    )
    return asked.key_by("key").window(rf.Session(f"{GAP_MS}ms")).aggregate(**_SUM).uid("session")


def _paired(s: Sequence[DataStream]) -> Any:
    pairs = (
        s[0]
        .key_by("key")
        .interval_join(s[1].key_by("key"), f"-{JOIN_MS}ms", f"{JOIN_MS}ms")
        .uid("join")
        .select("key", "time", "value")
    )
    return pairs.key_by("key").window(rf.Tumbling("100ms")).aggregate(**_SUM).uid("window")


def _alarmed(s: Sequence[DataStream]) -> Any:
    times = schema_of({"key": pa.int64(), "time": pa.timestamp("ms")})
    alarms = s[0].key_by("key").process(AlarmAgain(), returns=times).uid("alarm")
    return alarms.key_by("key").window(rf.Tumbling("200ms")).aggregate(n=rf.count()).uid("window")


def _windowed_twice(s: Sequence[DataStream]) -> Any:
    """The results of the first have their windows' starts as times: so long ago that sessions of then would be over."""
    windows = s[0].key_by("key").window(rf.Tumbling("300ms")).aggregate(**_SUM).uid("window")
    again = {"n": col("n").sum(), "total": col("total").sum()}
    sums = windows.select("key", "n", "total", time=col("window_start")).key_by("key")
    return sums.window(rf.Session(f"{GAP_MS}ms")).aggregate(**again).uid("session")


def _deduplicated(s: Sequence[DataStream]) -> Any:
    read = s[0].map(checked, returns=SCHEMA).uid("checked").on_error(rf.SideOutput("poison"))
    first = read.key_by("key").deduplicate().uid("first")
    return first.union(read.side_output("poison").select(*SCHEMA.names))


def _late(s: Sequence[DataStream]) -> Any:
    windows = (
        s[0]
        .key_by("key")
        .window(rf.Tumbling("100ms"))
        .allowed_lateness("0s", late_to="late")
        .aggregate(**_SUM)
        .uid("window")
    )
    late = windows.side_output("late").select(key=col("key"), n=rf.lit(1), total=col("value"))
    return windows.select("key", "n", "total").union(late)


# ------------------------------------------------------------------------------------------ judgements


def check_sessions(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I1, I2, I3. Rows that are the gap apart to the millisecond may be together, or not."""
    found: dict[int, list[Row]] = defaultdict(list)
    for key, start, end, n, total in got:
        found[key].append((milliseconds(start), milliseconds(end) - GAP_MS, n, total))
    for key, times in _times_and_values(rows).items():
        parts: list[list[Any]] = []
        for time, value in times:
            if not parts or time - parts[-1][1] >= GAP_MS:
                parts.append([time, time, 0, 0])
            parts[-1][1:] = time, parts[-1][2] + 1, parts[-1][3] + value
        for session in sorted(found.pop(key, [])):
            while parts and not complete and parts[0][0] < session[0]:
                parts.pop(0)
            whole = parts.pop(0) if parts else None
            while whole and parts and whole[1] < session[1] and parts[0][0] == whole[1] + GAP_MS:
                more = parts.pop(0)
                whole = [whole[0], more[1], whole[2] + more[2], whole[3] + more[3]]
            assert tuple(whole or ()) == session, f"I3: key {key}: session {session}, expected {whole}"
        assert not (complete and parts), f"I1: key {key}: no sessions of {parts}"
    assert not found, f"I2: sessions of keys that do not exist: {dict(found)}"


def check_pairs(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    left, right = ([r for part in rows for r in part if r[3] // 100 == side] for side in (0, 1))
    by_key: dict[int, list[int]] = defaultdict(list)
    for key, _, time, *_ in right:
        by_key[key].append(time)
    sums: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, value, time, *_ in left:
        others = sum(abs(other - time) <= JOIN_MS for other in by_key[key])
        if others:
            sums[key, time // 100] += [value] * others
    want = Counter((k, w, len(v), sum(v)) for (k, w), v in sums.items())
    compare(want, Counter((k, milliseconds(start) // 100, n, t) for k, start, _, n, t in got), complete)


def check_alarmed(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    fired = {(key, time + TIMER_MS) for part in rows for key, _, time, *_ in part}
    want = Counter((key, time // 200) for key, time in fired)
    compare(want, Counter({(k, milliseconds(start) // 200): n for k, start, _, n in got}), complete)
    assert len({(k, start) for k, start, *_ in got}) == len(got), "I2: a window came twice"


def check_windowed_twice(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    sums: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, value, time, *_ in (r for part in rows for r in part):
        sums[key, time // 300].append(value)
    want = Counter((k, w * 300, len(v), sum(v)) for (k, w), v in sums.items())
    compare(want, Counter((k, milliseconds(start), n, t) for k, start, _, n, t in got), complete)


def check_top(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I3: what the table by key and rank holds in the end."""
    every = {row for part in rows for row in timed(part)}
    table: dict[tuple[int, int], Row] = {}
    for *row, rank in got:
        assert tuple(row) in every, f"I3: {row} is of no row"
        table[row[0], rank] = tuple(row)
    if complete:
        best: dict[int, list[Row]] = defaultdict(list)
        for row in sorted(every, key=lambda r: (-r[1], r[3], r[4])):
            best[row[0]].append(row)
        want = {(key, i + 1): row for key, found in best.items() for i, row in enumerate(found[:TOP])}
        assert table == want, f"I3: {set(table.items()) ^ set(want.items())}"


def check_deduplicated(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    every = Counter(row for part in rows for row in timed(part))
    poison = Counter(row for row in every.elements() if _is_poison(row[1]))
    compare(poison, Counter(row for row in got if _is_poison(row[1])), complete)
    sound = [row for row in got if not _is_poison(row[1])]
    assert not Counter(sound) - every, f"I2: rows that do not exist: {Counter(sound) - every}"
    want = Counter({row[0] for row in every if not _is_poison(row[1])})
    compare(want, Counter(row[0] for row in sound), complete)


def check_settled(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I1, I2, and I9: a timer that was deleted does not fire."""
    due = {_number(r[3], r[4]): (r[0], r[2] + SETTLED_MS) for part in rows for r in part}
    compare(Counter((due[n][0], n) for n in due), Counter((key, number) for key, _, number in got), complete)
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for key, at, number in got:
        groups[key, at].append(due[number][1])
    for (key, at), own in groups.items():
        assert max(own) == at, f"I9: key {key}: a timer of {at} fired, the last row's was {max(own)}"


def check_ruled(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I3: no rule is forgotten."""
    want = Counter((r[0], _number(r[3], r[4])) for part in rows for r in part if r[3] < 100)
    compare(want, Counter((key, number) for key, number, _ in got), complete)
    known: dict[int, int] = defaultdict(int)
    for key, _, rules in got:
        assert rules >= known[key], f"I3: key {key}: {rules} rules after {known[key]}"
        known[key] = rules


def check_late(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I1, I2: each row is in its window, or aside."""
    for column in (1, 2):
        want, found = Counter[int](), Counter[int]()
        for part in rows:
            for key, value, *_ in part:
                want[key] += (1, value)[column - 1]
        for row in got:
            found[row[0]] += row[column]
        compare(want, found, complete)


def check_retracted(rows: list[list[Row]], got: list[Row], complete: bool) -> None:
    """I3: how many keys have so many rows, in the end; what is none is deleted."""
    table: dict[int, int] = {}
    for n, keys in got:
        table[n] = keys or 0
    if complete:
        counts = Counter(Counter(r[0] for part in rows for r in part).values())
        left = {n: keys for n, keys in table.items() if keys}
        assert left == counts, f"I3: keys by their rows: {left}, expected {dict(counts)}"


def _times_and_values(rows: list[list[Row]]) -> dict[int, list[tuple[int, int]]]:
    found: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for part in rows:
        for key, value, time, *_ in part:
            found[key].append((time, value))
    return {key: sorted(times) for key, times in found.items()}


# ------------------------------------------------------------------------------------------ shapes

RARER: dict[str, Shape] = {
    "sessions": Shape(build=_sessions, check=check_sessions),
    "paired": Shape(build=_paired, check=check_pairs, sources=2),
    "top": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .top_n(TOP, order_by=[("value", "desc"), ("split", "asc"), ("pos", "asc")], rank="rank")
            .uid("top")
        ),
        check=check_top,
    ),
    "alarmed": Shape(build=_alarmed, check=check_alarmed),
    "windowed_twice": Shape(build=_windowed_twice, check=check_windowed_twice),
    "deduplicated": Shape(build=_deduplicated, check=check_deduplicated),
    "settled": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .process(Settled(), returns=schema_of({"key": pa.int64(), "at": pa.int64(), "row": pa.int64()}))
            .uid("settled")
        ),
        check=check_settled,
    ),
    "ruled": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .connect(s[1].broadcast())
            .process(Ruled(), returns=schema_of({"key": pa.int64(), "row": pa.int64(), "rules": pa.int64()}))
            .uid("ruled")
        ),
        check=check_ruled,
        sources=2,
    ),
    "late": Shape(build=_late, check=check_late, delay_ms=LATE_DELAY_MS),
    "retracted": Shape(
        build=lambda s: (
            s[0]
            .key_by("key")
            .aggregate(n=rf.count())
            .uid("rows")
            .key_by("n")
            .aggregate(keys=rf.count())
            .uid("keys")
        ),
        check=check_retracted,
    ),
}
