"""Skewed keys: a keyed sum and a windowed count over Zipf(1.5) keys, with each setting of `rf.Skew`, beside the same
jobs on uniform keys.

`python tests/benchmarks/bench_skew.py [--rows N] [--rounds N] [--parallelism 2 4] [--jobs sum count]
[--settings plain auto …] [--local] [--limit SECONDS] [--write tests/benchmarks/README.md] [--json FILE]`

Real Ray actors (`--local`: threads of this process), a million keys, rows of 24 bytes, drawn beforehand into a file
that the sources map into memory; a checkpoint every second. A round runs all settings once; medians over rounds. A job
that has not ended after `--limit` is cancelled, and its row says so.

*M rows/s* are counted from `attempt_running` to `job_finished`; *M rows/CPU s* in processor time of the job's processes
(on Ray as seen every 20 ms; locally of this process), which other processes on the machine hardly change. *of uniform*:
both in proportion to the same job with the same parallelism on uniform keys, without `skew=`, in the same round.

*busiest/least*: of the subtasks that get rows over an exchange, the most rows that one got by the fewest; of the worst
operator of those that got at least 1 % of all rows so received. *sent* is rows over exchanges for each row read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import rayflow as rf
from rayflow import col
from rayflow.runtime.local import run_local

KEYS = 1_000_000
POOL, BATCH_ROWS = 32, 65_536
ROWS_PER_SECOND_OF_EVENT_TIME = 1_000_000
MARKERS = "<!-- bench_skew -->", "<!-- /bench_skew -->"

SETTINGS: dict[str, tuple[float, rf.Skew | None]] = {
    "uniform": (0.0, None),
    "plain": (1.5, None),
    "local": (1.5, rf.Skew()),
    "salted": (1.5, rf.Skew(local_aggregation=False, salt=8)),
    "auto": (1.5, rf.Skew(salt="auto")),
    "auto without local": (1.5, rf.Skew(local_aggregation=False, salt="auto")),
    "uniform, local": (0.0, rf.Skew()),
    "uniform, auto": (0.0, rf.Skew(salt="auto")),
    "uniform, auto without local": (0.0, rf.Skew(local_aggregation=False, salt="auto")),
}
SHOWN = ["uniform", "plain", "local", "salted", "auto", "auto without local"]
MEANINGS = """\
`uniform`: uniform keys; all others Zipf(1.5). `uniform`, `plain`: no `skew=`; `local`: `rf.Skew()`; `salted`:
`rf.Skew(local_aggregation=False, salt=8)`; `auto`: `rf.Skew(salt="auto")`; `auto without local`: that with
`local_aggregation=False`. *busiest/least*: of the subtasks that get rows over an exchange, all of the run, the most
rows by the fewest, of the worst operator with at least 1 % of the rows so received; *sent*: rows over exchanges for
each row read; *CPU*: processor time of the job's processes; *of uniform*: in proportion to `uniform`, same round."""


class Drawn:
    """A generator function over keys and values that lie in a file, by batch."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self.mapped: Any = None

    def __call__(self, start: int, count: int) -> pa.RecordBatch:
        if self.mapped is None:
            self.mapped = np.load(self.path, mmap_mode="r")
        number = start // BATCH_ROWS % POOL
        keys, values = (pa.array(column[number, :count]) for column in self.mapped)
        micros = np.arange(start, start + count) * (1_000_000 // ROWS_PER_SECOND_OF_EVENT_TIME)
        return pa.RecordBatch.from_arrays(
            [keys, values, pa.array(micros).cast(pa.timestamp("us"))], names=["key", "value", "at"]
        )


def draw(path: Path, zipf: float) -> Path:
    """Write keys of which the k-th has a share in proportion to k ** -zipf, and values, of shape (2, batch, row)."""
    random = np.random.default_rng(1)
    shares = np.cumsum(np.arange(1, KEYS + 1, dtype=np.float64) ** -zipf)
    keys = np.searchsorted(shares, random.random((POOL, BATCH_ROWS)) * shares[-1])
    np.save(path, np.stack([keys, random.integers(0, 100, (POOL, BATCH_ROWS))]))
    return path


def environment(job: str, setting: str, folder: Path, parallelism: int, rows: int) -> rf.StreamEnvironment:
    """Return a job, not begun, whose keys `draw` has written into `folder`."""
    zipf, skew = SETTINGS[setting]
    config = {
        "batch.rows": BATCH_ROWS,
        "checkpoint.interval": "1s",
        "checkpoint.storage": f"file://{folder}/checkpoints",
        "heartbeat.interval": "250ms",
    }
    env = rf.StreamEnvironment(name=f"bench-{job}", parallelism=parallelism, config=config)
    drawn = env.generate(Drawn(folder / f"{zipf}.npy"), rows=rows)
    if job == "count":
        keyed = drawn.assign_watermarks(rf.Watermark("at", delay="100ms")).key_by("key", skew=skew)
        keyed.window(rf.Tumbling("1s")).aggregate(n=rf.count()).discard()
    else:
        drawn.key_by("key", skew=skew).aggregate(total=col("value").sum()).discard()
    return env


class ProcessorTime:
    """Watches how much processor time processes take, until `stop`."""

    def __init__(self, pids: Iterable[int]) -> None:
        self._begun: dict[int, float] = {pid: _cpu_s(pid) or 0.0 for pid in pids}
        self._last = dict(self._begun)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        # They may end before anybody asks.
        while not self._over.wait(0.02):
            for pid in self._last:
                self._last[pid] = _cpu_s(pid) or self._last[pid]

    def stop(self) -> float:
        """Return the seconds."""
        self._over.set()
        self._thread.join()
        return sum(self._last.values()) - sum(self._begun.values())


def _cpu_s(pid: int) -> float | None:
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return None


def run_on_ray(env: rf.StreamEnvironment, limit_s: float) -> tuple[list[Any], Any, float] | None:
    """Return events, metrics and processor time (s); None where it took too long."""
    until_s = time.monotonic() + limit_s
    try:
        handle = env.submit()
    except rf.TransientError as error:
        print(error, file=sys.stderr)
        return None
    watched: ProcessorTime | None = None
    while handle.status() not in ("FINISHED", "FAILED", "CANCELLED") and time.monotonic() < until_s:
        if watched is None:
            described = handle.describe()
            pids = [s["pid"] for s in described["subtasks"]] + [described["job_manager"]["pid"]]
            if described["state"] == "RUNNING" and all(pids):
                watched = ProcessorTime(pids)
        time.sleep(0.05)
    cpu_s = 0.0 if watched is None else watched.stop()
    try:
        handle.wait(timeout=0)
    except TimeoutError:
        handle.cancel()
        with suppress(rf.JobFailed, TimeoutError):
            handle.wait(timeout=30)
        return None
    return handle.events(), handle.metrics(), cpu_s


def run(
    job: str, setting: str, parallelism: int, options: argparse.Namespace, drawn: Path
) -> dict[str, float] | None:
    """Run one job; return what the table shows, None where it took too long."""
    with tempfile.TemporaryDirectory(dir=drawn) as scratch:
        folder = Path(scratch)
        for file in drawn.glob("*.npy"):
            (folder / file.name).symlink_to(file)
        env = environment(job, setting, folder, parallelism, options.rows)
        if options.local:
            began_s = time.process_time()
            result = run_local(env.plan(), env.config)
            events, metrics, cpu_s = result.events, result.metrics, time.process_time() - began_s
        elif (found := run_on_ray(env, options.limit)) is None:
            return None
        else:
            events, metrics, cpu_s = found
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in events}
    seconds = (at["job_finished"] - at["attempt_running"]).total_seconds()
    received: dict[str, list[int]] = {}
    for subtask in metrics["subtasks"]:
        if not subtask["operator"].startswith("generate"):
            received.setdefault(subtask["operator"], []).append(subtask["rows_in"])
    sent = sum(map(sum, received.values()))
    return {
        "rows_per_s": options.rows / seconds,
        "rows_per_cpu_s": options.rows / cpu_s if cpu_s else 0.0,
        "busiest_to_least": max(
            (max(rows) / max(1, min(rows)) for rows in received.values() if sum(rows) >= sent / 100),
            default=1.0,
        ),
        "sent": sent / options.rows,
    }


Found = dict[tuple[str, int, str], list[dict[str, float] | None]]


def table(found: Found) -> str:
    """Return what was measured, one row for each job, parallelism and setting."""
    lines = [
        "| job | parallelism | setting | M rows/s | of uniform | M rows/CPU s | of uniform | busiest/least | sent |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (job, parallelism, setting), rounds in found.items():
        ended = [one for one in rounds if one is not None]
        head = f"| {job} | {parallelism} | {setting} |"
        if not ended:
            lines.append(f"{head} not within the limit | | | | | |")
            continue
        pairs = [
            (one, base)
            for one, base in zip(rounds, found.get((job, parallelism, "uniform"), []))
            if one is not None and base is not None
        ]
        cells = []
        for key in ("rows_per_s", "rows_per_cpu_s"):
            cells.append(f"{statistics.median(one[key] for one in ended) / 1e6:.2f}")
            ratios = [one[key] / base[key] for one, base in pairs if base[key]]
            cells.append(f"{statistics.median(ratios):.0%}" if ratios else "–")
        cells += [
            f"{statistics.median(one[key] for one in ended):.2f}" for key in ("busiest_to_least", "sent")
        ]
        late = len(rounds) - len(ended)
        cells[-1] += f" ({late} of {len(rounds)} not within the limit)" if late else ""
        lines.append(f"{head} {' | '.join(cells)} |")
    return "\n".join(lines)


def report(found: Found, options: argparse.Namespace) -> str:
    """Return the table, and what is to be known of it."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent,
    ).stdout.strip()
    where = "threads of one process" if options.local else "Ray"
    return (
        f"{options.rows:,} rows, {KEYS:,} keys, {options.rounds} round(s), medians; {where}, {os.cpu_count()} cores, "
        f"commit {commit}, {datetime.now():%Y-%m-%d}, load {os.getloadavg()[2]:.1f} over the last 15 min.\n"
        f"{MEANINGS}\n\n{table(found)}"
    )


def write(path: Path, text: str) -> None:
    """Put `text` between the markers in a file."""
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    assert rest, f"{path} has no {MARKERS[0]}"
    path.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def measure(options: argparse.Namespace, say: Callable[[str], None]) -> Found:
    """Run everything, round by round."""
    found: Found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for zipf in sorted({SETTINGS[setting][0] for setting in options.settings}):
            draw(Path(scratch) / f"{zipf}.npy", zipf)
        for number in range(options.rounds):
            for parallelism in options.parallelism:
                for job in options.jobs:
                    for setting in options.settings:
                        began_s = time.monotonic()
                        one = run(job, setting, parallelism, options, Path(scratch))
                        found.setdefault((job, parallelism, setting), []).append(one)
                        took_s = time.monotonic() - began_s
                        say(f"round {number + 1}: {job}, {parallelism}, {setting}: {took_s:.1f} s, {one}")
    return found


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--parallelism", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--jobs", nargs="+", default=["sum", "count"], choices=["sum", "count"])
    parser.add_argument("--settings", nargs="+", default=SHOWN, choices=SETTINGS)
    parser.add_argument("--local", action="store_true", help="threads of this process instead of Ray")
    parser.add_argument("--limit", type=float, default=180, help="seconds that one job on Ray may take")
    parser.add_argument("--write", type=Path, help="put the table into this file, between its markers")
    parser.add_argument("--json", type=Path, help="write all measurements to this file")
    options = parser.parse_args()
    if not options.local:
        import ray

        ray.init(include_dashboard=False, logging_level="warning", log_to_driver=False)
    found = measure(options, lambda line: print(line, file=sys.stderr, flush=True))
    text = report(found, options)
    print(text)
    if options.write is not None:
        write(options.write, text)
    if options.json is not None:
        options.json.write_text(json.dumps([[*key, rounds] for key, rounds in found.items()], indent=1))


if __name__ == "__main__":
    main()
