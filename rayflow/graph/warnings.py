"""What a plan warns about: settings that work, but are known to work badly.

The rules on checkpoints are those of the talk that rayflow follows: intervals of 1 to 5 minutes, 20 to 30 s
where precision matters; a timeout of about half the interval. Defaults are never warned about.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from typing import Any

from rayflow.graph.plan import StreamNode
from rayflow.model.config import JobConfig
from rayflow.model.durations import format_duration_ns
from rayflow.model.error_policy import SideOutput

MIN_INTERVAL_MS = 20_000
MAX_INTERVAL_MS = 300_000
MAX_TIMEOUT_SHARE = 0.75
"""Above this share of the interval a timeout counts as long; half is advised."""


def config_warnings(settings: Mapping[str, Any]) -> list[str]:
    """Return the warnings about a job's flat configuration, which names only what was set."""
    config = JobConfig.from_flat(settings)
    interval_ms = config.checkpoint_interval_ms
    if interval_ms is None:
        return []
    found = []
    if "checkpoint.interval" in settings and not MIN_INTERVAL_MS <= interval_ms <= MAX_INTERVAL_MS:
        found.append(
            f"checkpoint.interval is {_text(interval_ms)}: normal are 1m to 5m, 20s to 30s where precision "
            "matters; shorter costs throughput, longer costs recovery time"
        )
    asked = {"checkpoint.interval", "checkpoint.timeout"} & settings.keys()
    if asked and config.checkpoint_timeout_ms > MAX_TIMEOUT_SHARE * interval_ms:
        found.append(
            f"checkpoint.timeout is {_text(config.checkpoint_timeout_ms)} at an interval of "
            f"{_text(interval_ms)}: about half the interval is advised, so that a stuck checkpoint gives way"
        )
    return found


def poison_warnings(nodes: Iterable[StreamNode], read: Container[tuple[int, str | None]]) -> list[str]:
    """Return the warnings about rows that are put aside for nobody; `read` are (node, tag) of what is read."""
    found = []
    for node in nodes:
        policy = node.spec.errors
        if isinstance(policy, SideOutput) and (node.id, policy.tag) not in read:
            found.append(
                f"nothing reads the rows that {node.spec.name!r} ({node.spec.location or 'unknown line'}) puts aside "
                f"under {policy.tag!r} where it raises, so they are dropped: read .side_output({policy.tag!r}), "
                'or say on_error="skip"'
            )
    return found


def _text(millis: int) -> str:
    return format_duration_ns(millis * 1_000_000)
