"""Functions of whole windows, in whole jobs: `.window(…).process(fn)`."""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import PlanError, col

EPOCH = datetime(1970, 1, 1)
KEYS = ["a", "b", "c", None]


def make_rows(count: int = 3000) -> list[dict[str, Any]]:
    rng = random.Random(5)
    return [
        {"k": rng.choice(KEYS), "t": EPOCH + timedelta(milliseconds=10 * n + rng.randrange(40)), "v": n}
        for n in range(count)
    ]


ROWS = make_rows()


def stream(env: rf.StreamEnvironment, delay: str = "100ms", **options: Any) -> rf.DataStream:
    def batches() -> Iterator[pa.RecordBatch]:
        schema = pa.schema({"k": pa.string(), "t": pa.timestamp("ms"), "v": pa.int64()})
        for begin in range(0, len(ROWS), 100):
            yield pa.RecordBatch.from_pylist(ROWS[begin : begin + 100], schema=schema)

    return env.from_batches(batches, **options).assign_watermarks(rf.Watermark("t", delay=delay))


class Digest(TypedDict):
    rows: int
    checksum: int


def digest(rows: list[dict[str, Any]], ctx: Any) -> Digest:
    """Depends on every row and on their order."""
    checksum = 0
    for row in rows:
        assert row["k"] == ctx.current_key
        checksum = (31 * checksum + row["v"]) % 1_000_007
    return {"rows": len(rows), "checksum": checksum}


def expected(windows: dict[Any, list[dict[str, Any]]]) -> Counter[Any]:
    found: Counter[Any] = Counter()
    for (key, start), rows in windows.items():
        in_order = sorted(rows, key=lambda row: row["t"])
        checksum = 0
        for row in in_order:
            checksum = (31 * checksum + row["v"]) % 1_000_007
        found[key, start, len(rows), checksum] += 1
    return found


def tumbling() -> Counter[Any]:
    windows = defaultdict(list)
    for row in ROWS:
        windows[row["k"], EPOCH + (row["t"] - EPOCH) // timedelta(seconds=1) * timedelta(seconds=1)].append(
            row
        )
    return expected(windows)


def sliding() -> Counter[Any]:
    windows = defaultdict(list)
    for row in ROWS:
        last = EPOCH + (row["t"] - EPOCH) // timedelta(milliseconds=200) * timedelta(milliseconds=200)
        for back in range(5):
            windows[row["k"], last - back * timedelta(milliseconds=200)].append(row)
    return expected(windows)


def sessions() -> Counter[Any]:
    windows: dict[Any, list[dict[str, Any]]] = {}
    latest: dict[Any, Any] = {}
    for row in sorted(ROWS, key=lambda row: row["t"]):
        key = row["k"]
        if key not in latest or row["t"] - windows[key, latest[key]][-1]["t"] > timedelta(milliseconds=90):
            latest[key] = row["t"]
            windows[key, row["t"]] = []
        windows[key, latest[key]].append(row)
    return expected(windows)


def in_order(lab: Any, table: pa.Table) -> Counter[Any]:
    assert table.schema.names == ["k", "window_start", "window_end", "rows", "checksum"]
    found: Counter[Any] = lab.bag(table.select(["k", "window_start", "rows", "checksum"]))
    return found


@pytest.mark.parametrize(
    ("window", "model"),
    [(rf.Tumbling("1s"), tumbling), (rf.Sliding("1s", "200ms"), sliding), (rf.Session("90ms"), sessions)],
)
@pytest.mark.parametrize("parallelism", [1, 2])
def test_each_window_gets_all_of_its_rows(lab: Any, window: Any, model: Any, parallelism: int) -> None:
    env = rf.StreamEnvironment(parallelism=parallelism)
    found = stream(env).key_by("k").window(window).process(digest).execute_and_collect(local=True)
    assert in_order(lab, found) == model()
    assert found.num_rows > 8


def test_rows_of_open_windows_survive_crashes(lab: Any, tmp_path: Path) -> None:
    env = rf.StreamEnvironment(parallelism=2, config={"restart.delay": "1ms"})
    digests = stream(env).key_by("k").window(rf.Session("90ms")).process(digest)
    digests.write_parquet(str(tmp_path / "out"))
    watcher = lab.crashing(env, 1, seed=1, every=2)
    lab.finish(env, on_start=watcher, checkpoint__interval="5ms", source__rate_limit=6000)
    assert len(watcher.stop()) == 1
    assert in_order(lab, lab.read(tmp_path / "out")) == sessions()


def test_count_and_global_windows(lab: Any) -> None:
    def widths(rows: Any, ctx: Any) -> Iterator[int]:
        assert ctx.window_start == min(row["t"] for row in rows)
        yield len(rows)

    by_key = Counter(row["k"] for row in ROWS)
    env = rf.StreamEnvironment()
    sevens = stream(env).key_by("k").window(rf.CountWindow(7)).process(widths, returns={"n": int})
    assert sevens.execute_and_collect(local=True)["n"].to_pylist() == [7] * sum(
        n // 7 for n in by_key.values()
    )
    whole = stream(env).key_by("k").window(rf.GlobalWindow()).process(widths, returns={"n": int})
    found = whole.execute_and_collect(local=True)
    assert dict(zip(found["k"].to_pylist(), found["n"].to_pylist())) == by_key


@pytest.mark.parametrize("mode", ["lateness", "trigger"])
@pytest.mark.parametrize(
    ("window", "model"),
    [(rf.Tumbling("1s"), tumbling), (rf.Sliding("1s", "200ms"), sliding), (rf.Session("90ms"), sessions)],
)
def test_updated_windows_end_as_if_all_rows_had_come_in_time(
    lab: Any, tmp_path: Path, window: Any, model: Any, mode: str
) -> None:
    env = rf.StreamEnvironment(parallelism=2)
    windows = stream(env, delay="0s").key_by("k").window(window).allowed_lateness("1m")
    windows = windows.trigger(rf.OnCount(2)) if mode == "trigger" else windows
    digests = windows.process(digest)
    digests.write_parquet(str(tmp_path / "out"), mode="upsert")
    lab.finish(env, checkpoint__interval="20ms")
    assert in_order(lab, lab.read(tmp_path / "out")) == model()
    with pytest.raises(PlanError, match="upsert"):
        digests.write_parquet(str(tmp_path / "append"))


def test_several_rows_of_an_updated_window_go_and_come_together(lab: Any, tmp_path: Path) -> None:
    def each(rows: list[dict[str, Any]], ctx: Any) -> Iterator[dict[str, Any]]:
        for row in rows:
            yield {"v": row["v"], "window_start": len(rows)}

    env = rf.StreamEnvironment(parallelism=2)
    windows = stream(env, delay="0s").key_by("k").window(rf.Session("90ms")).allowed_lateness("1m")
    rows = windows.process(each, returns={"v": int, "window_start": int})
    rows.write_parquet(str(tmp_path / "out"), mode="upsert")
    lab.finish(env, checkpoint__interval="20ms")
    found = lab.read(tmp_path / "out")
    assert found.schema.names == ["k", "window_start", "window_end", "v"]
    assert sorted(found["v"].to_pylist()) == list(range(len(ROWS)))
    assert set(found["window_start"].to_pylist()) == {count for _, _, count, _ in sessions()}


def test_side_outputs_of_the_function_and_of_the_window(lab: Any, tmp_path: Path) -> None:
    def note_long(rows: Any, ctx: Any) -> None:
        if len(rows) > 3:
            ctx.output("long", {"key": ctx.current_key, "rows": len(rows)})

    env = rf.StreamEnvironment()
    windows = (
        stream(env, delay="0s").key_by("k").window(rf.Session("5ms")).allowed_lateness("0s", late_to="late")
    )
    results = windows.process(note_long, returns={"n": int})
    results.discard()
    results.side_output("long", returns={"key": str, "rows": int}).write_parquet(str(tmp_path / "long"))
    results.side_output("late").write_parquet(str(tmp_path / "late"))
    lab.finish(env, batch__rows=100, batch__linger="0s")
    assert min(lab.read(tmp_path / "long")["rows"].to_pylist()) == 4
    assert lab.read(tmp_path / "late").schema.names == ["k", "t", "v"]


def test_results_have_the_event_time_of_their_windows() -> None:
    def seconds(rows: Any, ctx: Any) -> int:
        return len(rows)

    env = rf.StreamEnvironment()
    per_second = stream(env).key_by("k").window(rf.Tumbling("1s")).process(seconds, returns={"n": int})
    per_ten = per_second.key_by("k").window(rf.Tumbling("10s")).aggregate(n=col("n").sum())
    found = per_ten.execute_and_collect(local=True)
    assert sum(found["n"].to_pylist()) == len(ROWS)


def test_mistakes_are_found_when_the_plan_is_built() -> None:
    windows = stream(rf.StreamEnvironment()).key_by("k").window(rf.Session("1s"))
    with pytest.raises(PlanError, match=r"a function of \(rows, ctx\)"):
        windows.process("sum")
    with pytest.raises(PlanError, match=r"a class with __call__\(self, rows, ctx\)"):
        windows.process(object)
    with pytest.raises(PlanError, match="batch_format 'arrow'"):
        windows.process(digest, batch_format="arrow")
    with pytest.raises(PlanError, match="returns="):
        windows.process(lambda rows, ctx: None).select("n")
    with pytest.raises(PlanError, match="unknown column 'm'"):
        windows.process(digest).select("m")
