"""Random kills for an hour: memory, plasma, file descriptors and files stay flat, and the output is exact.

`python -m tests.chaos.soak --minutes 60 --every 20s [--seed S] [--rate R] [--nodes N] [--out DIR] [--report FILE.md]`

Starts a cluster of its own, with a data folder of its own, and on it the job of `soak_job` (an endless source of R rows
per second; keyed state). Every `--every` a random subtask's process is killed, each tenth time on average the job
manager's. Every 10 s everything is measured (`measuring`). At the end the source is told where to stop, the job
finishes, and its output is compared with what it must be (`exactness`). Ctrl-C ends it early, in the same way.

DIR gets `samples.csv` and `kills.csv` as they come, and in the end `report.json` and `report.md`. Exit code 1 if
something grew, or the output is not exact.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

import rayflow as rf
from rayflow.client import local_cluster
from rayflow.client.handle import ENDED
from rayflow.client.processes import is_alive, started_at
from rayflow.model.durations import parse_duration_ms
from rayflow.model.errors import RayflowError, TransientError
from tests.chaos import soak_job
from tests.chaos.exactness import Verdict, check_counts, check_rows
from tests.chaos.measuring import Sample, take_sample
from tests.chaos.reporting import machine, report_text, trends

SAMPLE_EVERY_S = 10.0
END_WITHIN_S = 600
MANAGER_SHARE = 0.1
_POLL_S = 0.2

CONFIG = {
    "checkpoint.interval": "2s",
    "restart.strategy": "fixed",
    "restart.max_attempts": 1_000_000,
    "heartbeat.interval": "500ms",
    "batch.linger": "100ms",
}


class Kills:
    """Kills a process of the job every now and then, on a thread of its own; one JobHandle is its own."""

    def __init__(self, job_id: str, seed: int, every_s: float, log: Path) -> None:
        self._job_id = job_id
        self._random = random.Random(seed)
        self._every_s = every_s
        self._log = log
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kills", daemon=True)
        self.done: list[dict[str, Any]] = []
        self.failure: BaseException | None = None

    def begin(self) -> None:
        """Start killing."""
        self._thread.start()

    def end(self) -> None:
        """Kill no more."""
        self._over.set()
        self._thread.join(120)

    def _run(self) -> None:
        try:
            handle = rf.connect().job(self._job_id)
            while not self._over.wait(self._every_s):
                # A manager that was killed answers when it is up again; how long that takes is not the matter here.
                with suppress(TransientError):
                    self._kill(handle)
        except Exception as error:
            self.failure = error

    def _kill(self, handle: rf.JobHandle) -> None:
        description = handle.describe()
        manager = self._random.random() < MANAGER_SHARE
        pids = [s["pid"] for s in description["subtasks"] if s["pid"] is not None]
        names = [f"{s['operator']}[{s['index']}]" for s in description["subtasks"] if s["pid"] is not None]
        choice = self._random.randrange(1_000_000)
        if manager:
            target, pid = "job manager", description["job_manager"]["pid"]
        elif not pids:
            return  # not up again after the last one
        else:
            target, pid = names[choice % len(pids)], pids[choice % len(pids)]
        start = started_at(pid)
        title = _title(pid)
        if start is None or not title.startswith(("ray::SubtaskActor", "ray::JobManagerActor")):
            return  # it is gone already, of an earlier kill
        if is_alive(pid, start):
            os.kill(pid, signal.SIGKILL)
        kill = {"at_ms": time.time_ns() // 1_000_000, "target": target, "pid": pid}
        self.done.append({**kill, "state": description["state"], "attempt": description["attempt"]})
        _append(self._log, self.done[-1])


class Soak:
    """One run. `folder` is emptied first."""

    def __init__(self, folder: Path, *, minutes: float, every_s: float, seed: int, rate: float) -> None:
        self._folder = folder
        self._minutes, self._every_s, self._seed, self._rate = minutes, every_s, seed, rate
        self._until = folder / "until"
        self._stop = threading.Event()
        self.samples: list[Sample] = []
        self.problem: str | None = None

    def stop(self, *_: Any) -> None:
        """End early."""
        self._stop.set()

    def run(self, cluster: local_cluster.LocalCluster) -> dict[str, Any]:
        """Run on the recorded cluster, and return the report."""
        job = self._submit()
        kills = Kills(job.id, self._seed, self._every_s, self._folder / "kills.csv")
        begun_s = time.monotonic()
        try:
            self._await_first_checkpoint(job)
            kills.begin()
            self._watch(job, cluster, kills, begun_s)
            kills.end()
            state = self._finish(job)
        finally:
            kills.end()
            with suppress(RayflowError):
                job.cancel()
        if kills.failure is not None:
            self.problem = f"the kills ended: {type(kills.failure).__name__}: {kills.failure}"
        return self._report(job, kills, state, time.monotonic() - begun_s)

    def _submit(self) -> rf.JobHandle:
        config = {
            **CONFIG,
            "checkpoint.storage": str(self._folder / "checkpoints"),
            "source.rate_limit": self._rate,
        }
        env = rf.StreamEnvironment(name="soak", parallelism=2, config=config)
        soak_job.build(env, output=str(self._folder / "out"), until=str(self._until))
        return env.submit()

    def _await_first_checkpoint(self, job: rf.JobHandle) -> None:
        deadline_s = time.monotonic() + 180
        while not job.describe()["checkpoints"]["completed"]:
            if time.monotonic() > deadline_s or job.status() in ENDED:
                raise RuntimeError(f"no checkpoint completed; the job is {job.status()}: {job.describe()}")
            time.sleep(_POLL_S)

    def _watch(
        self, job: rf.JobHandle, cluster: local_cluster.LocalCluster, kills: Kills, begun_s: float
    ) -> None:
        next_s = begun_s
        while time.monotonic() - begun_s < self._minutes * 60 and not self._stop.is_set():
            if self._stop.wait(max(0.0, next_s - time.monotonic())):
                return
            next_s = max(next_s + SAMPLE_EVERY_S, time.monotonic())
            try:
                description = job.describe()
            except RayflowError as error:
                print(f"no sample: {error}", flush=True)
                continue
            if description["state"] in ENDED:
                self.problem = f"the job ended as {description['state']}: {description['failure']}"
                return
            sample = take_sample(
                time.monotonic() - begun_s,
                description,
                cluster,
                self._folder,
            )
            self.samples.append(sample)
            _append(self._folder / "samples.csv", sample.to_json())
            if len(self.samples) % 6 == 1:
                print(_line(sample, len(kills.done)), flush=True)

    def _finish(self, job: rf.JobHandle) -> str:
        """Tell the source where to stop: beyond whatever it can have read, so that every row of every split counts."""
        if self.problem is not None:
            return str(job.status())
        last = soak_job.tell_end(self._folder / "out", self._until, self._rate)
        print(f"each split ends after {last:,} rows", flush=True)
        try:
            return job.wait(timeout=END_WITHIN_S).state
        except (RayflowError, TimeoutError) as error:
            self.problem = str(error)
            return str(job.status())

    def _report(self, job: rf.JobHandle, kills: Kills, state: str, seconds: float) -> dict[str, Any]:
        description = job.describe()
        rows, counts = self._judge(state)
        found = trends(self.samples)
        report = {
            "machine": machine(),
            "settings": {
                "minutes": self._minutes,
                "every_s": self._every_s,
                "seed": self._seed,
                "rate": self._rate,
            },
            "seconds": round(seconds),
            "state": state,
            "problem": self.problem,
            "kills": len(kills.done),
            "killed_managers": sum(k["target"] == "job manager" for k in kills.done),
            "restarts": description["restarts_total"],
            "checkpoints": description["checkpoints"],
            "recovery": recoveries(kills.done, self._folder / "out" / "rows"),
            "trends": [{**vars(t), "flat": t.flat} for t in found],
            "rows": None if rows is None else rows.to_json(),
            "counts": None if counts is None else counts.to_json(),
        }
        passed = self.problem is None and state == "FINISHED" and all(t.flat for t in found)
        exact = rows is not None and counts is not None and rows.exact and counts.exact
        return {**report, "passed": passed and exact}

    def _judge(self, state: str) -> tuple[Verdict | None, Verdict | None]:
        if state != "FINISHED":
            return None, None
        last = int(self._until.read_text())
        tables = [
            ds.dataset(self._folder / "out" / name, format="parquet").to_table()
            for name in ("rows", "counts")
        ]
        return check_rows(tables[0], last), check_counts(tables[1], last)


def recoveries(kills: Sequence[dict[str, Any]], rows: Path) -> dict[str, Any]:
    """Return how long it took from each kill until a row was processed that was committed in the end, by kind."""
    files = ds.dataset(rows, format="parquet").to_table(columns=["at_ms"])["at_ms"].to_numpy()
    files.sort()
    found: dict[str, list[float]] = {"subtask": [], "job manager": []}
    for kill in kills:
        at = files.searchsorted(kill["at_ms"], side="right")
        kind = "job manager" if kill["target"] == "job manager" else "subtask"
        if at < len(files):
            found[kind].append((int(files[at]) - kill["at_ms"]) / 1000)
    return {
        kind: {
            "kills": len(times),
            "median_s": sorted(times)[len(times) // 2],
            "p90_s": sorted(times)[int(len(times) * 0.9)],
            "max_s": max(times),
        }
        for kind, times in found.items()
        if times
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", default="20s", help="time between kills (default: 20s)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rate", type=float, default=400, help="rows per second (default: 400)")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out/soak"))
    parser.add_argument("--report", type=Path, help="write the table to this file too")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.nice(options.nice)
    os.environ["RAYFLOW_HOME"] = str(folder / "home")
    (folder / "tmp").mkdir()
    os.environ["TMPDIR"] = str(folder / "tmp")
    os.environ.pop("RAY_ADDRESS", None)
    soak = Soak(
        folder,
        minutes=options.minutes,
        every_s=parse_duration_ms(options.every) / 1000,
        seed=options.seed,
        rate=options.rate,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, soak.stop)
    try:
        report = soak.run(local_cluster.up(options.nodes))
    finally:
        local_cluster.down()
    (folder / "report.json").write_text(json.dumps(report, indent=2))
    text = report_text(report)
    for path in filter(None, (folder / "report.md", options.report)):
        path.write_text(text)
    print(text)
    return 0 if report["passed"] else 1


def _line(sample: Sample, kills: int) -> str:
    return (
        f"{sample.at_s / 60:5.1f} min  {kills:4d} kills  attempt {sample.attempt:4d}  {sample.state:<10}  "
        f"{sample.processes} processes  {sample.rss_bytes >> 20} MiB  {sample.fds} fds  "
        f"plasma {sample.plasma_bytes >> 10} KiB  {sample.checkpoint_files} checkpoint files"
    )


def _title(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    return ""


def _append(path: Path, row: dict[str, Any]) -> None:
    new = not path.exists()
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, row.keys())
        if new:
            writer.writeheader()
        writer.writerow(row)


if __name__ == "__main__":
    sys.exit(main())
