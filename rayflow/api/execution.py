"""Running a plan: on Ray through the client, or inside this process; and collecting a stream's rows.

Collected rows travel through files, as any sink's: they are written exactly once to a directory of their own,
which this process must be able to read, and removed when they are read. That is a temporary directory for a
local run, else a directory beside the job's checkpoints.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa

from rayflow.api.planning import at_user_line, plan_error
from rayflow.connectors.collected import collect_sink, read_collected
from rayflow.graph.plan import JobGraph
from rayflow.model.config import with_environment
from rayflow.model.errors import JobFailed
from rayflow.model.results import JobResult
from rayflow.state.storage import RAY_SCHEME, open_store

if TYPE_CHECKING:
    from rayflow.api.outputs import Outputs
    from rayflow.api.plan_builder import PlanBuilder
    from rayflow.client.handle import JobHandle


def execute(env: PlanBuilder, sinks: Sequence[int], *, local: bool, address: str | None) -> JobResult:
    """Run the job of these sinks to its end. Raises JobFailed; Ctrl-C cancels the job."""
    graph = env._plan(sinks)
    env._taken(sinks)
    return _run(env, graph, local=local, address=address)


def submit(env: PlanBuilder, sinks: Sequence[int], *, address: str | None) -> JobHandle:
    """Submit the job of these sinks and return at once."""
    graph = env._plan(sinks)
    env._taken(sinks)
    return _submit(env, graph, address)


def collect(stream: Outputs, *, local: bool, address: str | None) -> pa.Table:
    """Run what `stream` needs and return its rows. Raises JobFailed, also where someone ended the job early."""
    env, info = stream._env, stream._info
    _require_bounded(env, stream._node.id)
    options = env._storage_options()
    with _directory(env, options, local) as directory:
        sink = collect_sink(directory, options, whole_rows=info.whole_rows)
        with at_user_line():
            sink.validate(info.physical_schema)
        node = stream._add_node("collect", "sink", sink, info)
        graph = env._plan([node.id])
        env._taken([node.id])
        result = _run(env, graph, local=local, address=address)
        if result.state != "FINISHED":
            raise JobFailed(
                result.job_id, f"it ended as {result.state} before all rows were collected", "collect"
            )
        return read_collected(
            directory, info.upsert_key, whole_rows=info.whole_rows, schema=info.schema, options=options
        )


def _require_bounded(env: PlanBuilder, node: int) -> None:
    for needed in sorted(env._upstream([node])):
        spec = env._nodes[needed].spec
        if spec.kind == "source" and not spec.payload.bounded:
            raise plan_error(
                f"execute_and_collect: source {spec.name!r} ({spec.location}) never ends, so its rows cannot be "
                "collected; give it an end (rows=, no watch=), or write the stream to a sink"
            )


def _run(env: PlanBuilder, graph: JobGraph, *, local: bool, address: str | None) -> JobResult:
    if local:
        return _run_here(env, graph)
    handle = _submit(env, graph, address)
    try:
        return handle.wait()
    except KeyboardInterrupt:
        handle.cancel()
        raise


def _submit(env: PlanBuilder, graph: JobGraph, address: str | None) -> JobHandle:
    from rayflow.client import submit as submit_job  # imports Ray

    return submit_job(graph, with_environment(env.config, os.environ), env.name, address)


def _run_here(env: PlanBuilder, graph: JobGraph) -> JobResult:
    from rayflow.runtime.local import run_local

    result = run_local(graph, with_environment(env.config, os.environ))
    if result.failure is not None:
        raise JobFailed(*result.failure)
    return JobResult(
        job_id=result.job_id, name=graph.name, state=result.state.value, description=result.describe
    )


@contextmanager
def _directory(env: PlanBuilder, options: dict[str, str], local: bool) -> Iterator[str]:
    """A directory for collected rows, removed at the end."""
    if local:
        path = tempfile.mkdtemp(prefix="rayflow-collect-")
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)
        return
    from rayflow.client.home import default_storage

    base = str(env.config.get("checkpoint.storage") or default_storage())
    if base.startswith(RAY_SCHEME):
        base = default_storage()  # rows are collected as files
    name = f"collect-{secrets.token_hex(8)}"
    root, question, query = base.partition("?")
    try:
        yield f"{root.rstrip('/')}/{name}{question}{query}"
    finally:
        open_store(base, options).delete_prefix(name)
