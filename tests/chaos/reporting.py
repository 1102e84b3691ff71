"""The soak's report as a table, and which quantities must be flat."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rayflow.state.claims import KEPT
from tests.chaos.flatness import MIN_SAMPLES, Trend, trend
from tests.chaos.measuring import Sample

WARM_UP_S = 60.0

_MIB = 1 << 20
_FLAT = {
    # quantity → how much it may grow besides a tenth of what it was
    "rss_bytes": 32 * _MIB,
    "rss_manager_bytes": 16 * _MIB,
    "rss_largest_bytes": 16 * _MIB,
    "fds": 32,
    "plasma_bytes": _MIB,
    "checkpoint_files": 8,
    # One for each attempt and each job manager, until so many of either are there.
    "claim_files": 2 * KEPT,
    "checkpoint_bytes": _MIB,
    # Up to a file for each bucket that is upserted to between two checkpoints: many at one moment, few at the next.
    "pending_files": 128,
    "upsert_files": 8,
    "temporary_files": 2,
}


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """Judge every quantity that must be flat, over the samples of a whole and warm job; none if these are too few."""
    warm = [s for s in samples if s.whole and s.at_s >= WARM_UP_S]
    if len(warm) < MIN_SAMPLES:
        return []
    return [
        trend(name, [(s.at_s, getattr(s, name)) for s in warm], slack=slack) for name, slack in _FLAT.items()
    ]


def machine() -> str:
    """Say where and over which commit something was measured."""
    root = Path(__file__).parents[2]
    git = ["git", "-C", str(root), "log", "-1", "--format=%h"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return (
        f"commit {commit}, {datetime.now(timezone.utc):%Y-%m-%d}, {len(names)} × {names[0] if names else '?'}, "
        f"{platform.platform()}, Python {platform.python_version()}"
    )


def report_text(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    settings = report["settings"]
    lines = [
        f"{report['machine']}; a kill every {settings['every_s']:g} s, seed {settings['seed']}, "
        f"{settings['rate']:g} rows/s, {report['seconds'] / 60:.0f} min.",
        "",
        f"**{_headline(report)}**: job {report['state']}, {report['kills']} kills "
        f"({report['killed_managers']} of the job manager), {report['restarts']} restarts, "
        f"{report['checkpoints']['completed']} checkpoints.",
        *([f"Problem: {report['problem']}"] if report["problem"] else []),
        "",
        *_exactness_lines(report),
        "",
        *_recovery_lines(report["recovery"]),
        "",
        "| quantity | samples | first quarter | last quarter | slope per hour | allowed growth | flat |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {t['name']} | {t['samples']} | {_number(t['first'])} | {_number(t['last'])} | "
            f"{_number(t['slope_per_hour'])} | {_number(t['allowed'])} | {'yes' if t['flat'] else '**NO**'} |"
            for t in report["trends"]
        ),
        "",
    ]
    return "\n".join(lines)


def _headline(report: dict[str, Any]) -> str:
    if not report["passed"]:
        return "FAILED"
    return "Passed" if report["trends"] else "Exact (too short a run to say what is flat)"


def _exactness_lines(report: dict[str, Any]) -> list[str]:
    lines = [
        "| output | expected rows | found | lost | duplicated | differing |",
        "|---|---|---|---|---|---|",
    ]
    for name in ("rows", "counts"):
        verdict = report[name]
        if verdict is None:
            lines.append(f"| {name} | not judged | | | | |")
            continue
        numbers = (verdict[key] for key in ("expected", "found", "lost", "duplicated", "differing"))
        lines.append(f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
        lines += [f"<!-- {example} -->" for example in verdict["examples"]]
    return lines


def _recovery_lines(recovery: dict[str, Any]) -> list[str]:
    return [
        "| killed | times | median s to the first new row | p90 | max |",
        "|---|---|---|---|---|",
        *(
            f"| {kind} | {r['kills']} | {r['median_s']:.1f} | {r['p90_s']:.1f} | {r['max_s']:.1f} |"
            for kind, r in recovery.items()
        ),
    ]


def _number(value: float) -> str:
    return f"{value / _MIB:,.1f} Mi" if abs(value) >= _MIB else f"{value:,.1f}"
