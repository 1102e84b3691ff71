"""NEXMark over generated events in Parquet: events a second of each query, beside the floors it is held to.

`python tests/benchmarks/bench_nexmark.py [--events N] [--rounds N] [--parallelism N] [--queries q0 …] [--local]
[--json FILE]`

The events (5 million unless told otherwise) are written once into a temporary folder. Each job checkpoints every
second and writes Parquet. Its time runs from the moment when all its subtasks run until it has finished: so the last
checkpoint and the commit are in it, and the start of processes is not. *Events* are those of all three streams, as
is usual, though most queries read the bids (92 %) only. `--local`: inside one process, without Ray. Medians over
rounds; q12 by event time, so that it does the same in each round.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs"))

import rayflow as rf
from rayflow.runtime.local import run_local

nexmark = importlib.import_module("nexmark")
nexmark_events = importlib.import_module("nexmark_events")
nexmark_queries = importlib.import_module("nexmark_queries")

FLOORS = {
    **dict.fromkeys(nexmark_queries.QUERIES, 300_000),
    **dict.fromkeys(("q0", "q1", "q2", "q14", "q22"), 3_000_000),
    **dict.fromkeys(("q5", "q12"), 1_500_000),
    **dict.fromkeys(("q7", "q8", "q17"), 1_000_000),
}
SIDE_KEYS = 10_000


def run(query: str, folder: Path, options: argparse.Namespace) -> float:
    """Run one job; return its seconds."""
    with tempfile.TemporaryDirectory() as scratch:
        config = {"checkpoint.interval": "1s", "checkpoint.storage": f"file://{scratch}/checkpoints"}
        env = rf.StreamEnvironment(name=f"bench-{query}", parallelism=options.parallelism, config=config)
        nexmark.build(
            env,
            query=query,
            input=str(folder),
            output=f"{scratch}/out",
            side=str(folder / "side.csv"),
            time="event",
        )
        events = _local_events(env) if options.local else _ray_events(env)
    at = {event["type"]: datetime.fromisoformat(event["at"]) for event in events}
    if "job_finished" not in at:
        raise SystemExit(f"{query} did not finish: {events[-1]['message']}")
    return (at["job_finished"] - at["attempt_running"]).total_seconds()


def _local_events(env: rf.StreamEnvironment) -> list[dict[str, Any]]:
    return run_local(env.plan(), env.config).events


def _ray_events(env: rf.StreamEnvironment) -> list[dict[str, Any]]:
    job = env.submit()
    job.wait()
    return job.events()


def main() -> int:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=5_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--parallelism", type=int, default=2)
    parser.add_argument(
        "--queries", nargs="+", default=list(nexmark_queries.QUERIES), choices=nexmark_queries.QUERIES
    )
    parser.add_argument("--local", action="store_true")
    parser.add_argument("--json", help="write all measurements to this file")
    options = parser.parse_args()
    if not options.local:
        _start_ray()
    rates: dict[str, list[float]] = {query: [] for query in options.queries}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        nexmark_events.write(folder, options.events, files=4)
        side = "".join(f"{key},value {key}\n" for key in range(SIDE_KEYS))
        (folder / "side.csv").write_text("key,value\n" + side)
        for _ in range(options.rounds):
            for query in options.queries:
                seconds = run(query, folder, options)
                rates[query].append(options.events / seconds)
                print(f"{query:>4} {seconds:7.2f} s {rates[query][-1] / 1e6:6.2f} M events/s", flush=True)
    _print_table(rates)
    if options.json:
        shown = {"options": vars(options), "events_per_s": rates, "floors": FLOORS}
        Path(options.json).write_text(json.dumps(shown, indent=1))
    return 0


def _start_ray() -> None:
    import ray

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=1 << 30)
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def _print_table(rates: dict[str, list[float]]) -> None:
    print("\n| query | M events/s | floor | of the floor |\n|---|---|---|---|")
    for query, measured in rates.items():
        rate, floor = statistics.median(measured), FLOORS[query]
        print(f"| {query} | {rate / 1e6:.2f} | {floor / 1e6:.1f} | {rate / floor:.0%} |")


if __name__ == "__main__":
    sys.exit(main())
