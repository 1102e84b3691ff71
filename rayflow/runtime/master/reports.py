"""What the inspecting commands print, as JSON data; the shapes are those of API.md section 6. Pure."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from rayflow.graph.describe import operator_json
from rayflow.model.config import redact
from rayflow.model.ids import SubtaskId, VertexId
from rayflow.model.times import WATERMARK_MAX, WATERMARK_MIN
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.master.context import Context
from rayflow.runtime.master.events import iso_utc
from rayflow.runtime.master.run import JobRun

_NUMBERS = (
    *("rows_in", "rows_out", "batches_in", "bytes_in", "bytes_out"),
    *("queued_in", "queued_out", "buffered_bytes"),
)
_RATIOS = ("busy", "backpressured", "idle")
_GROUPS_DESCRIBED = 8
_GARBAGE = ("gc_collections", "gc_ms", "gc_longest_ms")
_SHOWN = ("uid", "name", "parallelism", "chained")


def describe(ctx: Context, run: JobRun | None, state: JobState, node_id: str) -> dict[str, Any]:
    """Return `rayflow describe`. `run` is None while the master still reads what its predecessor left."""
    graph = ctx.job.graph
    subtasks = [_subtask(ctx, run, subtask) for subtask in ctx.job.subtasks]
    restore = run.opening.restore if run is not None else None
    return {
        "job_id": ctx.job.job_id,
        "name": graph.name,
        "state": state.value,
        "attempt": ctx.attempt if run is None else run.newest_attempt,
        "failure": _failure(run),
        "restored_from": None if restore is None else restore.path,
        "restarts": [] if run is None else run.restarts.records(),
        "restarts_total": 0 if run is None else run.restarts.total,
        "operators": [
            {
                **{key: value for key, value in operator_json(graph, vertex).items() if key in _SHOWN},
                "watermark": _watermark(_slowest(ctx, vertex.id)),
                "rows_poisoned": _poisoned(ctx, vertex.id),
                "skew": None if run is None else run.key_skew.report(vertex.id, groups=_GROUPS_DESCRIBED),
            }
            for vertex in graph.vertices
        ],
        "subtasks": subtasks,
        "job_manager": {"pid": os.getpid(), "node_id": node_id},
        "checkpoints": _checkpoint_counts(run),
        "warnings": [] if run is None else run.key_skew.warnings(),
        "stale_messages": 0 if run is None else run.stale_messages,
    }


def metrics(ctx: Context, run: JobRun | None, state: JobState) -> dict[str, Any]:
    """Return `rayflow metrics`: per subtask, and per operator: sums, and the slowest watermark (null while some
    subtask has none). Counters are of the current attempt. `skew`: of each keyed operator, see `KeySkew.report`."""
    subtasks = []
    operators: dict[str, list[dict[str, Any]]] = {}
    for subtask in ctx.job.subtasks:
        worker = ctx.fleet.known(subtask)
        per_operator = worker.statistics.get("operators", {}) if worker is not None else {}
        for uid, values in per_operator.items():
            operators.setdefault(uid, []).append(values)
        shown = {uid: _totals([values]) for uid, values in per_operator.items()}
        subtasks.append({**_subtask(ctx, run, subtask), "operators": shown})
    return {
        "job_id": ctx.job.job_id,
        "state": state.value,
        "attempt": ctx.attempt,
        "at": iso_utc(ctx.now_ms),
        "operators": {uid: _totals(values) for uid, values in operators.items()},
        "skew": _skew(ctx, run),
        "subtasks": subtasks,
    }


def _skew(ctx: Context, run: JobRun | None) -> dict[str, Any]:
    found = {} if run is None else {v.id: run.key_skew.report(v.id) for v in ctx.job.graph.vertices}
    return {uid: skew for uid, skew in found.items() if skew is not None}


def _totals(subtasks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    totals: dict[str, Any] = {"watermark": _watermark(_minimum(v.get("watermark") for v in subtasks))}
    for values in subtasks:
        for name, value in values.items():
            if name != "watermark":
                totals[name] = totals.get(name, 0) + value
    return totals


def _slowest(ctx: Context, vertex: VertexId) -> int | None:
    """Return the watermark (ns) that all subtasks of a chain have come to; None while some have none."""
    known = [ctx.fleet.known(subtask) for subtask in ctx.job.subtasks if subtask.vertex == vertex]
    return _minimum(None if worker is None else worker.statistics.get("watermark") for worker in known)


def _poisoned(ctx: Context, vertex: VertexId) -> int:
    """Return how many rows on which they raised the operators of a chain have left out."""
    known = [ctx.fleet.known(subtask) for subtask in ctx.job.subtasks if subtask.vertex == vertex]
    found = [worker.statistics.get("operators", {}) for worker in known if worker is not None]
    return sum(int(values.get("rows_poisoned", 0)) for operators in found for values in operators.values())


def _minimum(watermarks: Iterable[int | None]) -> int | None:
    found = list(watermarks)
    return None if None in found else min((w for w in found if w is not None), default=None)


def job_document(
    ctx: Context, run: JobRun, description: dict[str, Any], started_at: str, ended: bool
) -> dict[str, Any]:
    """Return the contents of job.json, with the state that the job is about to show."""
    job = ctx.job
    return {
        "job_id": job.job_id,
        "name": job.graph.name,
        "state": run.coming_state.value if ended else run.state.value,
        "attempt": run.newest_attempt,
        "started_at": started_at,
        "ended_at": iso_utc(ctx.now_ms) if ended else None,
        "failure": _failure(run),
        "storage": redact({"url": job.config.checkpoint_storage})["url"],
        "config": redact(job.flat),
        "sinks_started": run.opening.sinks_started,
        "checkpoints": run.checkpoints.books.to_json(ctx.now_ms),
        "describe": description,
        "metrics": metrics(ctx, run, run.coming_state if ended else run.state),
    }


def _failure(run: JobRun | None) -> dict[str, Any] | None:
    if run is None or run.failure is None:
        return None
    failure = run.failure
    return {"cause": failure.cause, "operator": failure.operator, "location": failure.location}


def _subtask(ctx: Context, run: JobRun | None, subtask: SubtaskId) -> dict[str, Any]:
    known, worker = ctx.fleet.known(subtask), ctx.fleet.ready.get(subtask)
    told = known.statistics if known is not None else {}
    return {
        "operator": subtask.vertex,
        "index": subtask.index,
        "state": "CREATED" if run is None else run.board.state(subtask).value,
        "attempt": ctx.attempt,
        "node_id": worker.node_id if worker is not None else None,
        "pid": worker.pid if worker is not None else None,
        **{key: told.get(key, 0) for key in _NUMBERS},
        **{key: told.get(key, 0.0) if worker is not None else 0.0 for key in _RATIOS},
        "watermark": _watermark(told.get("watermark")),
        "blocked_channels": list(told.get("blocked_channels", ())),
        "checkpoint": told.get("checkpoint"),
        "rss_bytes": told.get("rss_bytes") if worker is not None else None,
        "state_bytes": int(sum(v.get("state_bytes", 0) for v in told.get("operators", {}).values())),
        **{key: told.get(key, 0) if worker is not None else 0 for key in _GARBAGE},
    }


def _watermark(watermark: int | None) -> str | None:
    """Return a watermark (ns) as text: ISO 8601, `-inf`, `+inf`, or null where there is none."""
    if watermark is None:
        return None
    if watermark <= WATERMARK_MIN:
        return "-inf"
    return "+inf" if watermark >= WATERMARK_MAX else _iso_of_nanoseconds(watermark)


def _iso_of_nanoseconds(watermark: int) -> str:
    try:
        return iso_utc(watermark // 1_000_000)
    except (ValueError, OverflowError):
        # Beyond what a calendar date can say.
        return f"{watermark} ns"


def _checkpoint_counts(run: JobRun | None) -> dict[str, Any]:
    if run is None:
        return {"completed": 0, "failed": 0, "latest": None}
    checkpoints = run.checkpoints
    return {
        "completed": checkpoints.books.completed,
        "failed": checkpoints.books.failed,
        "latest": checkpoints.latest,
    }
