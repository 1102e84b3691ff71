"""How the rows of each keyed operator lie on its subtasks and keys: put together from what its senders tell.

Senders tell it with every heartbeat (`OutputEdge.keyed_traffic`); here their counts are added, their sketches merged.
An operator that is skewed gets one event `skew_found` in a job's life, with the evidence and what to do next.
"""

from __future__ import annotations

from typing import Any

from rayflow.batch.heavy_hitters import HeavyHitter, HeavyHitters
from rayflow.graph.describe import is_keyed
from rayflow.graph.plan import JobVertex
from rayflow.model.ids import SubtaskId, VertexId
from rayflow.observe.imbalance import WINDOW_MS, Imbalance, RecentRows
from rayflow.protocol.key_groups import subtask_of_key_group
from rayflow.runtime.master.context import Context

EVENT = "skew_found"
SETTLING_MS = 2 * WINDOW_MS
"""For so long an operator whose hot keys are salted is not judged: they must be found first, and what was sent
before leave the window."""
HOT_KEYS_SHOWN = 8
HOT_SHARE_OF_FAIR = 0.5
"""A key with more than this part of a subtask's fair share is hot: no other placing of keys could mend that."""

Told = dict[str, Any]


class KeySkew:
    """What is known of every keyed operator in the current attempt. On the master's thread."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        graph = ctx.job.graph
        self._vertices = {vertex.id: vertex for vertex in graph.vertices if is_keyed(graph, vertex)}
        self._targets = {edge.id: edge.target for edge in graph.edges}
        self._told: dict[VertexId, dict[tuple[SubtaskId, int], Told]] = {}
        self._recent: dict[VertexId, RecentRows] = {}
        # Those that get part of their rows from behind a salted exchange.
        salted = {edge.target for edge in graph.edges if edge.exchange.salts}
        self._settling = {edge.target for edge in graph.edges if edge.source in salted}
        self._began_ms = 0
        self.begin_attempt()

    def begin_attempt(self) -> None:
        """Senders count from 0 again."""
        now_ms = self._began_ms = self._ctx.now_ms
        self._told = {vertex: {} for vertex in self._vertices}
        self._recent = {v.id: RecentRows(v.parallelism, now_ms) for v in self._vertices.values()}

    def end_attempt(self) -> None:
        """All have told how they stand for the last time."""
        for vertex in self._vertices.values():
            self._warn(vertex, ended=True)

    def heard(self, subtask: SubtaskId, statistics: dict[str, Any]) -> None:
        """A subtask told how it stands."""
        if statistics.get("attempt") != self._ctx.attempt:
            return
        for told in statistics.get("keyed_traffic", ()):
            vertex = self._targets[told["edge"]]
            senders = self._told[vertex]
            senders[subtask, told["edge"]] = told
            rows = [sum(counts) for counts in zip(*(sender["rows"] for sender in senders.values()))]
            self._recent[vertex].note(rows, self._ctx.now_ms)
            self._warn(self._vertices[vertex], ended=False)

    def warnings(self) -> list[str]:
        """Return what was warned about in the job's life."""
        return [event["message"] for event in self._found()]

    def report(self, vertex: VertexId, groups: int | None = None) -> dict[str, Any] | None:
        """Return, as JSON data, how an operator's rows lie, with its `groups` busiest key groups (all that are known
        without); None of an operator that is not keyed, or has had no rows.

        `rows`: queued for each subtask in this attempt. Of the last seconds (`span_ms`; None where none came):
        `busiest` subtask, `busiest_to_mean`, `busiest_to_least` (None where one got none). `hot_keys`, of the last
        seconds too: `key`, `hash`, `share` of the rows, and `share_least`, what it is at the least. `key_groups`: the
        busiest with `subtask` and `share` of the attempt's rows. Keys and groups are estimated from a sample."""
        senders = self._told.get(vertex)
        if not senders:
            return None
        imbalance = self._recent[vertex].imbalance()
        return {
            "rows": [sum(counts) for counts in zip(*(told["rows"] for told in senders.values()))],
            "span_ms": None if imbalance is None else imbalance.span_ms,
            "busiest": None if imbalance is None else imbalance.busiest,
            "busiest_to_mean": None if imbalance is None else round(imbalance.to_mean, 3),
            "busiest_to_least": _rounded(None if imbalance is None else imbalance.to_least),
            "hot_keys": [_key_json(entry, total) for entry, total in self._hot_keys(vertex)[:HOT_KEYS_SHOWN]],
            "key_groups": self._key_groups(self._vertices[vertex])[:groups],
        }

    def _hot_keys(self, vertex: VertexId) -> list[tuple[HeavyHitter, float]]:
        """Return the keys with the most rows, each with the number of all rows."""
        merged: HeavyHitters | None = None
        for told in self._told[vertex].values():
            if "hot_keys" in told:
                sketch = HeavyHitters.from_data(told["hot_keys"])
                if merged is None:
                    merged = sketch
                else:
                    merged.merge(sketch)
        return [] if merged is None else [(entry, merged.total) for entry in merged.top()]

    def _key_groups(self, vertex: JobVertex) -> list[dict[str, Any]]:
        rows: dict[int, float] = {}
        for told in self._told[vertex.id].values():
            for group, count in told.get("key_groups", ()):
                rows[group] = rows.get(group, 0) + count
        total, most = sum(rows.values()), self._ctx.job.graph.max_parallelism
        return [
            {
                "key_group": group,
                "subtask": subtask_of_key_group(group, most, vertex.parallelism),
                "rows": round(count),
                "share": round(count / total, 4),
            }
            for group, count in sorted(rows.items(), key=lambda item: (-item[1], item[0]))
        ]

    def _warn(self, vertex: JobVertex, *, ended: bool) -> None:
        imbalance = self._recent[vertex.id].imbalance()
        if imbalance is None or not imbalance.is_skewed(ended=ended):
            return
        if vertex.id in self._settling and self._ctx.now_ms - self._began_ms < SETTLING_MS:
            return
        if any(event["operator"] == vertex.id for event in self._found()):
            return
        found = self._hot_keys(vertex.id)
        hottest = _key_json(*found[0]) if found else None
        self._ctx.note(
            EVENT,
            _message(vertex, imbalance, hottest, self._ctx.job.graph.max_parallelism),
            operator=vertex.id,
            subtask=imbalance.busiest,
            span_ms=imbalance.span_ms,
            rows=list(imbalance.rows),
            busiest_to_mean=round(imbalance.to_mean, 3),
            busiest_to_least=_rounded(imbalance.to_least),
            hottest_key=hottest,
        )

    def _found(self) -> list[dict[str, Any]]:
        # In the log, since it outlives attempts and masters.
        return [event for event in self._ctx.log.since(0) if event["type"] == EVENT]


def _key_json(entry: HeavyHitter, total: float) -> dict[str, Any]:
    return {
        "key": entry.key,
        "hash": f"{entry.hash:016x}",
        "share": round(entry.estimate / total, 4),
        "share_least": round(entry.guaranteed / total, 4),
    }


def _message(
    vertex: JobVertex, imbalance: Imbalance, hottest: dict[str, Any] | None, max_parallelism: int
) -> str:
    share = max(imbalance.rows) / sum(imbalance.rows)
    least = "" if imbalance.to_least is None else f", {imbalance.to_least:.1f} times the least"
    evidence = (
        f"skewed keys: subtask {imbalance.busiest} of {vertex.parallelism} of {vertex.name!r} gets {share:.0%} of the "
        f"rows ({imbalance.to_mean:.1f} times the mean{least}; {sum(imbalance.rows):,} rows in "
        f"{imbalance.span_ms / 1000:.1f} s)"
    )
    if hottest is not None:
        name = f"#{hottest['hash']}" if hottest["key"] is None else hottest["key"]
        evidence += f"; the hottest key, {name}, has {hottest['share_least']:.0%}"
        if hottest["share_least"] * vertex.parallelism >= HOT_SHARE_OF_FAIR:
            return (
                f"{evidence}. Aggregates that merge can share a key: key_by(…, skew=rf.Skew(local_aggregation=True)) "
                'or rf.Skew(salt="auto"); steps that need no rows of a key together take .rebalance() for .key_by(); '
                "others need a finer key"
            )
        evidence += (
            f", so no key alone is to blame: few keys, or few of {max_parallelism} key groups, have most rows"
        )
    return f"{evidence}. A larger max_parallelism, or a finer key, spreads them"


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 3)
