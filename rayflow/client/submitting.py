"""From a job graph to a running job: its manager is started on Ray, and the job remembered."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rayflow.client.handle import JobHandle
from rayflow.client.home import default_storage
from rayflow.client.processes import started_at
from rayflow.client.ray_session import open_session
from rayflow.client.registry import JobRecord, not_secret, remember
from rayflow.connectors.targets import absolute_url
from rayflow.graph.plan import JobGraph
from rayflow.graph.shipping import ship_graph
from rayflow.model.config import JobConfig, with_environment
from rayflow.model.errors import ConfigError, TransientError
from rayflow.model.ids import new_job_id

_START_TIMEOUT_S = 120.0
_PATHS = ("checkpoint.storage", "state.dir")


def submit(
    graph: JobGraph,
    config: Mapping[str, Any],
    name: str,
    address: str | None = None,
    *,
    restore_from: str | None = None,
    allow_duplicates: bool = False,
    detach: bool = False,
    code_paths: Sequence[str] = (),
) -> JobHandle:
    """Start the job and return at once. `config` is flat; `restore_from` a checkpoint or savepoint.

    With `detach` the job must survive this process: ConfigError where its Ray would not. `code_paths` are
    folders to import the job's modules from, before those on this process's `sys.path`. Raises PlanError
    where the job's functions cannot be shipped, TransientError where Ray cannot be reached.
    """
    flat = with_environment(config, os.environ)
    flat.setdefault("checkpoint.storage", default_storage())
    flat.update({key: absolute(flat[key]) for key in _PATHS if flat.get(key)})
    settings = JobConfig.from_flat(flat)
    pickled = ship_graph(graph)
    session = open_session(address, may_start=not detach)
    if session is None or (detach and not session.outlives_us):
        raise ConfigError(
            "--detach needs a Ray cluster that outlives this command, and there is none: "
            "start one with `rayflow cluster up`, or name one with --address"
        )
    from rayflow.actors.code_path import current_code_paths
    from rayflow.actors.specs import JobSpec

    spec = JobSpec(
        job_id=new_job_id(name),
        name=name,
        config=flat,
        code_paths=current_code_paths(code_paths),
        token=secrets.token_hex(32),
        restore_from=None if restore_from is None else absolute(restore_from),
        allow_duplicates=allow_duplicates,
    )
    record = JobRecord(
        job_id=spec.job_id,
        name=name,
        cluster=session.address,
        storage=str(settings.checkpoint_storage),
        submitted_at_ms=time.time_ns() // 1_000_000,
        options=not_secret(settings.storage_options),
        owner=None if session.outlives_us else (os.getpid(), started_at(os.getpid()) or 0),
    )
    manager = _start_manager(spec, pickled)
    remember(record)
    return JobHandle(record, manager, session.address, echo=not detach)


def absolute(path: str | os.PathLike[str]) -> str:
    """Return a path such that it means the same in the processes of the job, and to whoever looks at it later from
    another folder; a URL as it is."""
    text = os.fspath(path)
    return text if "://" in text else absolute_url(text)


def _start_manager(spec: Any, graph: bytes) -> Any:
    import ray

    from rayflow.actors.job_manager_actor import JobManagerActor
    from rayflow.actors.standby import seat_options

    manager = ray.remote(JobManagerActor).options(**seat_options(spec.job_id, 0)).remote(spec)
    try:
        ray.get(manager.start.remote(graph), timeout=_START_TIMEOUT_S)
    except Exception as e:
        ray.kill(manager, no_restart=True)
        raise TransientError(f"the job manager of {spec.name!r} did not start: {_last_line(e)}") from e
    return manager


def _last_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
