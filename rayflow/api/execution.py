"""Running a plan: on Ray through the client, or inside this process; and collecting a stream's rows."""

from __future__ import annotations

import os
import secrets
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from rayflow.api.planning import plan_error
from rayflow.connectors.file_sink import file_sink
from rayflow.connectors.collected import read_collected
from rayflow.graph.plan import JobGraph
from rayflow.model.config import with_environment
from rayflow.model.errors import JobFailed
from rayflow.state.storage import open_store

if TYPE_CHECKING:
    from rayflow.api.outputs import Outputs
    from rayflow.api.plan_builder import PlanBuilder
    from rayflow.client.handle import JobHandle
    from rayflow.client.result import JobResult


def execute(env: PlanBuilder, sinks: Sequence[int], *, local: bool, address: str | None) -> JobResult:
    """Run the job of these sinks to its end. Raises JobFailed; Ctrl-C cancels the job."""
    graph = env._plan(sinks)
    env._taken(sinks)
    if local:
        return _run_here(env, graph)
    handle = _submit(env, graph, address)
    try:
        return handle.wait()
    except KeyboardInterrupt:
        handle.cancel()
        raise


def submit(env: PlanBuilder, sinks: Sequence[int], *, address: str | None) -> JobHandle:
    """Submit the job of these sinks and return at once."""
    graph = env._plan(sinks)
    env._taken(sinks)
    return _submit(env, graph, address)


def _submit(env: PlanBuilder, graph: JobGraph, address: str | None) -> JobHandle:
    from rayflow.client import submit as submit_job  # imports Ray

    return submit_job(graph, with_environment(env.config, os.environ), env.name, address)


def _run_here(env: PlanBuilder, graph: JobGraph) -> JobResult:
    from rayflow.client.result import JobResult
    from rayflow.runtime.local import run_local

    result = run_local(graph, with_environment(env.config, os.environ))
    if result.failure is not None:
        raise JobFailed(*result.failure)
    return JobResult(result.job_id, result.state)
