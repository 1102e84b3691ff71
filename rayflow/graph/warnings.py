"""What a plan warns about: what works, but is known to work badly. A warning has the operator, the line, a number, and
what to do instead.

| rule | warns where |
|---|---|
| checkpoint interval | it is set, and not from 20 s to 5 min |
| checkpoint timeout | it or the interval is set, and it is above three quarters of the interval |
| `uneven_splits` | a source's splits, dealt to its subtasks, keep some busy 10 % longer than an even share would |
| `kept_for_ever` | an operator keeps something of every key, and its input never ends |
| `many_windows` | a row belongs to more than 60 sliding windows |
| `json_on_hot_path` | a stream that never ends is read from, written to or parsed from JSON |
| `row_by_row` | a sink does something for each row alone: prints it, calls a system outside |

(Others are where only the API knows enough: streams and rows put aside that nobody reads, watermarks that wait for
files.) The rules on checkpoints are those of the talk that rayflow follows: intervals of 1 to 5 minutes, 20 to 30 s
where precision matters; a timeout of about half the interval. Defaults are never warned about, nor what ends soon
anyway: state, JSON and printing count only where the input is endless.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rayflow.graph.plan import StreamNode
from rayflow.model.config import JobConfig
from rayflow.model.durations import format_duration_ns
from rayflow.model.error_policy import SideOutput

MIN_INTERVAL_MS = 20_000
MAX_INTERVAL_MS = 300_000
MAX_TIMEOUT_SHARE = 0.75
"""Above this share of the interval a timeout counts as long; half is advised."""

MAX_WINDOWS_PER_ROW = 60
UNEVEN = 0.1
ENOUGH_SPLITS = 10
"""With so many splits a subtask they are even enough, whatever their number: 1 / 10 is `UNEVEN`."""


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


@dataclass(frozen=True, slots=True)
class Judged:
    """An operator before the rules. `endless`: rows may come for ever. `rebalanced`: a source whose rows are dealt out
    anew because its splits are uneven."""

    node: StreamNode
    parallelism: int
    endless: bool
    rebalanced: bool

    def says(self, text: str) -> str:
        """Return a warning about it."""
        return f"{self.node.spec.name} ({self.node.spec.location or 'unknown line'}): {text}"


def plan_warnings(
    nodes: Sequence[StreamNode], parallelism: Mapping[int, int], rebalanced: Iterable[int]
) -> list[str]:
    """Return what the rules say about `nodes`, inputs before consumers; the rest is by node id."""
    endless: set[int] = set()
    dealt_anew = frozenset(rebalanced)
    found = []
    for node in nodes:
        if node.traits.endless or any(edge.source in endless for edge in node.inputs):
            endless.add(node.id)
        judged = Judged(node, parallelism[node.id], node.id in endless, node.id in dealt_anew)
        found += [judged.says(text) for rule in RULES if (text := rule(judged)) is not None]
    return found


# ------------------------------------------------------------------------------------------- the rules


def uneven_splits(judged: Judged) -> str | None:
    """S1: splits should be a whole multiple of the subtasks that read them."""
    splits, subtasks = judged.node.traits.splits, judged.parallelism
    if judged.rebalanced or not are_uneven(splits, subtasks) or splits is None:
        return None
    if splits < subtasks:
        evenly = splits
        idle = subtasks - splits
        have = "has" if idle == 1 else "have"
        evidence = f"{_count(splits, 'split')} for {subtasks} subtasks: {idle} of them {have} nothing to read"
    else:
        evenly = max(number for number in range(1, subtasks) if splits % number == 0)
        least, more = divmod(splits, subtasks)
        evidence = (
            f"{splits} splits for {subtasks} subtasks, which is no whole multiple: {more} of them "
            f"{'reads' if more == 1 else 'read'} {least + 1} and the others {least}, so reading takes "
            f"{unevenness(splits, subtasks):.0%} longer than with even shares"
        )
    steps = (
        [] if judged.node.rebalance else ['rebalance="auto" deals its rows out evenly to what is behind it']
    )
    if 2 * evenly >= subtasks and evenly > 1:
        steps.append(f".with_parallelism({evenly}) reads evenly")
    steps.append("more splits (files, row groups, partitions) even out")
    return f"{evidence}; {', '.join(steps)}"


def kept_for_ever(judged: Judged) -> str | None:
    """T1: state of a stream that never ends needs an end of its own."""
    traits = judged.node.traits
    if not judged.endless or not traits.keeps:
        return None
    return (
        f"keeps {traits.keeps} for ever, and an input never ends, so its state grows as long as new ones come; "
        f"{traits.instead}"
    )


def many_windows(judged: Judged) -> str | None:
    """D3f: small slides of large windows multiply the work."""
    window = judged.node.traits.sliding_ns
    if window is None or window[0] <= MAX_WINDOWS_PER_ROW * window[1]:
        return None
    size, slide = window
    return (
        f"windows of {format_duration_ns(size)} every {format_duration_ns(slide)}: each row belongs to "
        f"{-(-size // slide)} windows, and each key has a result every {format_duration_ns(slide)}; a slide of "
        f"{format_duration_ns(-(-size // MAX_WINDOWS_PER_ROW))} or more is advised"
    )


def json_on_hot_path(judged: Judged) -> str | None:
    """D3a: (de)serialisation, of JSON above all, is what most metrics do not show."""
    does = judged.node.traits.json
    if not judged.endless or not does:
        return None
    return (
        f"{does} JSON on a stream that never ends, which costs many times what columns do and shows in no metric; "
        "Parquet files or Arrow batches need no parsing"
    )


def row_by_row(judged: Judged) -> str | None:
    """D3d, T4: what is called for each row alone is slow."""
    does = judged.node.traits.per_row
    limited = judged.node.spec.rate_limit is not None
    if not does or (judged.node.traits.per_row_if_endless and (limited or not judged.endless)):
        return None
    return does


Rule = Callable[[Judged], "str | None"]
RULES: tuple[Rule, ...] = (uneven_splits, kept_for_ever, many_windows, json_on_hot_path, row_by_row)


# ------------------------------------------------------------------------------------------- arithmetic


def unevenness(splits: int, subtasks: int) -> float:
    """Return how much longer than with even shares it takes to read `splits` (from 1) equal ones: 0 at a multiple."""
    return -(-splits // subtasks) * subtasks / splits - 1


def are_uneven(splits: int | None, subtasks: int) -> bool:
    """Return whether some subtasks read noticeably more than others; not where the number is not known."""
    return bool(splits) and splits is not None and unevenness(splits, subtasks) > UNEVEN


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _text(millis: int) -> str:
    return format_duration_ns(millis * 1_000_000)
