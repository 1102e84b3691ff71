"""The long run: kills, stalls, partitions, lost heads on real clusters, all from one seed; nothing lost or twice.

`python -m tests.chaos --long [--seed S] [--kills 200] [--partitions 20] [--only PART …] [--out DIR] [--write FILE]`

Two clusters, one after the other: three real nodes of `rayflow cluster up`, and three hosts of
`cluster/namespaces.py` (root; else those rounds are left out: the table says so, and the exit code is 1). On each,
rounds of `rounds`: a job with keyed state, faults drawn from the seed, the output judged row by row. DIR gets a
folder per round and `report.json`; FILE (say tests/chaos/README.md) gets the table between its two markers. Exit code
1 if a round fails. `--only` runs some parts.
Without `--long` it is a short one of each part.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rayflow.client import local_cluster
from rayflow.client.ray_session import close_session
from rayflow.model.errors import ConfigError
from tests.chaos import rounds
from tests.chaos.namespace_effects import load_namespaces
from tests.chaos.reporting import machine
from tests.chaos.rounds import Round, run_on_cluster, run_on_namespaces, run_on_s3

PARTS = ("processes", "nodes", "stalls", "storage", "partitions", "head")
MARKERS = ("<!-- long run -->", "<!-- end of long run -->")
KILLS_A_ROUND, PARTITIONS_A_ROUND = 20, 7


def planned(options: argparse.Namespace) -> Iterator[tuple[str, Round]]:
    """Yield the rounds, each with the kind of cluster it needs."""
    seed, only = options.seed, options.only
    kills = options.kills if options.long else 3
    parts = options.partitions if options.long else 2
    node_kills = max(1, kills // 10)
    if "processes" in only:
        for i, times in enumerate(_cut(kills - node_kills, KILLS_A_ROUND)):
            yield "cluster", Round(f"processes {i + 1}", rounds.processes, 12_000, times, seed + i)
    if "nodes" in only:
        for i, times in enumerate(_cut(node_kills, 5)):
            yield "cluster", Round(f"nodes {i + 1}", rounds.nodes, 40_000, times, seed + 100 + i)
    if "stalls" in only:
        for i in range(3 if options.long else 1):
            times = 10 if options.long else 2
            yield "cluster", Round(f"stalls {i + 1}", rounds.stalls, 40_000, times, seed + 200 + i)
    if "storage" in only:
        yield "s3", Round("storage", rounds.storage, 40_000, 10 if options.long else 2, seed + 250)
    if "partitions" in only:
        for i, times in enumerate(_cut(parts, PARTITIONS_A_ROUND)):
            yield "namespaces", Round(f"partitions {i + 1}", rounds.partitions, 60_000, times, seed + 300 + i)
    if "head" in only:
        yield "namespaces", Round("head", rounds.head, 120_000, 3 if options.long else 1, seed + 400)


_ON_CLUSTER = {"cluster": run_on_cluster, "s3": run_on_s3}


def run_all(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Run the rounds; a kind of cluster at a time."""
    done: list[dict[str, Any]] = []
    todo = list(planned(options))
    if any(kind in _ON_CLUSTER for kind, _ in todo):
        local_cluster.up(3)
        try:
            done += [_run(_ON_CLUSTER[kind], r, folder) for kind, r in todo if kind in _ON_CLUSTER]
        finally:
            close_session()
            local_cluster.down()
    if any(kind == "namespaces" for kind, _ in todo):
        namespaces = load_namespaces()
        try:
            namespaces.require()
        except ConfigError as error:
            left_out = [r for kind, r in todo if kind == "namespaces"]
            return done + [{"name": r.name, "seed": r.seed, "left_out": str(error)} for r in left_out]
        for kind, round_ in todo:
            if kind == "namespaces":
                namespaces.up(3)
                try:
                    done.append(_run(run_on_namespaces, round_, folder, namespaces))
                finally:
                    namespaces.down()
    return done


def _run(how: Any, round_: Round, folder: Path, *arguments: Any) -> dict[str, Any]:
    print(f"{round_.name}: {round_.times} faults, seed {round_.seed}", flush=True)
    place = folder / round_.name.replace(" ", "-")
    place.mkdir()
    try:
        report: dict[str, Any] = how(round_, place, *arguments)
    except Exception as error:
        # The other rounds are worth running all the same.
        report = {"name": round_.name, "seed": round_.seed, "passed": False, "problem": f"{error!r}"}
    (place / "report.json").write_text(json.dumps(report, indent=1))
    print(_row(report), flush=True)
    return report


def table(reports: list[dict[str, Any]]) -> str:
    """Return the results as Markdown."""
    complete = [r for r in reports if "rows" in r]
    counts = ", ".join(f"{n} × {name}" for name, n in rounds.counted(complete))
    wrong = {key: sum(r["rows"][key] + r["counts"][key] for r in complete) for key in _WRONG}
    ran = [r for r in reports if "left_out" not in r]
    outcome = "All rounds passed" if all(r["passed"] for r in ran) else "NOT all rounds passed"
    if len(ran) < len(reports):
        outcome += f" of those that ran; {len(reports) - len(ran)} were left out"
    lines = [
        f"{machine()}; seed of the first round {reports[0]['seed'] if reports else '–'}.",
        "",
        f"**{outcome}**: "
        + ", ".join(f"{n} {key}" for key, n in wrong.items())
        + f" of {sum(r['rows']['expected'] for r in complete):,} rows. Faults: {counts}.",
        "",
        "| round | seed | faults | restarts | recovery: median / max s | lost | duplicated | differing | job | min |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *map(_row, reports),
    ]
    return "\n".join(lines)


_WRONG = ("lost", "duplicated", "differing")


def _row(report: dict[str, Any]) -> str:
    if "left_out" in report:
        return f"| {report['name']} | {report['seed']} | left out: {report['left_out']} | | | | | | | |"
    if "rows" not in report:
        return f"| {report['name']} | {report['seed']} | **{report['problem']}** | | | | | | | |"
    times = ", ".join(
        f"{name} {_s(group['median_ms'])} / {_s(group['max_ms'])}"
        for name, group in sorted(report["recovery"].items())
    )
    wrong = " | ".join(f"{report['rows'][key] + report['counts'][key]}" for key in _WRONG)
    state = report["state"] if report["passed"] else f"**{report['state']}: {report['problem']}**"
    skipped = f" ({report['skipped']} skipped)" if report["skipped"] else ""
    return (
        f"| {report['name']} | {report['seed']} | {report['injected']}{skipped} | {report['restarts']} | {times} | "
        f"{wrong} | {state} | {report['seconds'] / 60:.0f} |"
    )


def _s(ms: int | None) -> str:
    return "–" if ms is None else f"{ms / 1000:.1f}"


def _cut(total: int, size: int) -> Iterator[int]:
    while total > 0:
        yield min(total, size)
        total -= size


def _write(path: Path, text: str) -> None:
    before, _, rest = path.read_text(encoding="utf-8").partition(MARKERS[0])
    after = rest.partition(MARKERS[1])[2]
    path.write_text(f"{before}{MARKERS[0]}\n{text}\n{MARKERS[1]}{after}", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--partitions", type=int, default=20)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("out/chaos"))
    parser.add_argument("--write", type=Path, help="put the table into this file, between its markers")
    options = parser.parse_args(arguments)
    folder = options.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    os.nice(options.nice)
    os.environ["RAYFLOW_HOME"] = str(folder / "home")
    os.environ.pop("RAY_ADDRESS", None)
    begun_s = time.monotonic()
    reports = run_all(options, folder)
    (folder / "report.json").write_text(json.dumps(reports, indent=1))
    text = f"{table(reports)}\n\n{(time.monotonic() - begun_s) / 60:.0f} min in all."
    print(text)
    if options.write is not None:
        _write(options.write, text)
    # What was asked for and did not run has not passed.
    return 0 if reports and all(report.get("passed", False) for report in reports) else 1


if __name__ == "__main__":
    sys.exit(main())
