"""Running a job from the command line: build its plan, submit it, watch it to its end, show what it wrote.

`run(build)` is `rf.run`: it makes `python jobs/x.py …` take the same options as `rayflow run jobs/x.py …`.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rayflow.cli.errors import FAILED, OK, JobInterrupted, exit_code_of, located, user_error
from rayflow.cli.job_file import Job, job_of
from rayflow.cli.progress import ENDED_STATES, ProgressMeter, ProgressView, open_view
from rayflow.cli.results import echo_results
from rayflow.cli.run_command import run_command_for
from rayflow.model.config import (
    STORAGE_OPTION_KEYS,
    JobConfig,
    load_config_file,
    parse_assignments,
    with_environment,
)
from rayflow.model.errors import ConfigError, CorruptCheckpointError, JobFailed, PlanError, RayflowError
from rayflow.model.ids import JobId

if TYPE_CHECKING:
    from rayflow.api.environment import StreamEnvironment
    from rayflow.client.handle import JobHandle
    from rayflow.graph.plan import JobGraph

POLL_INTERVAL_S = 0.5
DEFAULT_PARALLELISM = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How to run a job: rayflow's own options, `config` flat and checked."""

    address: str | None
    parallelism: int
    config: dict[str, Any]
    restore_from: str | None
    allow_duplicates: bool
    detach: bool
    local: bool

    @staticmethod
    def from_params(params: Mapping[str, Any]) -> RunOptions:
        """Return the options that a command's parsed parameters give. `--set` wins over `--config`."""
        from_file = load_config_file(params["config_file"]) if params["config_file"] else {}
        if params["local"]:
            for other in ("address", "detach"):
                if params[other]:
                    raise click.UsageError(f"--local runs inside this process; it cannot go with --{other}")
        return RunOptions(
            address=params["address"],
            parallelism=params["parallelism"] or DEFAULT_PARALLELISM,
            config={**from_file, **parse_assignments(params["settings"])},
            restore_from=params["restore_from"],
            allow_duplicates=params["allow_duplicates"],
            detach=params["detach"],
            local=params["local"],
        )


def run(build: Callable[..., Any]) -> NoReturn:
    """Run a job file as a script: parse the process's arguments, run `build`'s job, exit with its code.

    The last line of a job file: `if __name__ == "__main__": rf.run(build)`.
    """
    sys.exit(exit_code_of(run_command_for(job_of(build)), None, prog_name=f"python {sys.argv[0]}"))


def build_environment(job: Job, options: RunOptions, values: Mapping[str, Any]) -> StreamEnvironment:
    """Return an environment in which the job's `build` has been called with `values`.

    Raises PlanError, with the user's lines where `build` itself raised something else.
    """
    from rayflow.api.environment import StreamEnvironment

    try:
        env = StreamEnvironment(name=job.name, parallelism=options.parallelism, config=options.config)
    except PlanError as error:
        # What is wrong came by the command line: there is no line of the user's code to show.
        raise PlanError(f"--parallelism {options.parallelism}: {error.message}") from None
    try:
        job.build(env, **values)
    except (PlanError, ConfigError) as error:
        raise located(error) from None
    except RayflowError:
        raise
    except Exception as error:
        raise user_error(f"build() of job {job.name} failed", error) from None
    return env


def run_job(job: Job, options: RunOptions, values: Mapping[str, Any]) -> int:
    """Run a job as the options say, and return the exit code. Raises JobFailed, and what submitting raises."""
    env = build_environment(job, options, values)
    graph, config = env.plan(), with_environment(env.config, os.environ)
    _check_restore(config, options)
    for warning in graph.warnings:
        click.secho(f"warning: {warning}", fg="yellow", err=True)
    if options.local:
        state = _run_here(graph, config, options)
    else:
        handle = _submit(graph, config, options)
        if options.detach:
            click.echo(handle.id)
            return OK
        state = _watch(handle, graph.name)
    if state != "FINISHED":
        click.echo(f"job {graph.name} ended as {state}", err=True)
        return OK if state == "STOPPED" else FAILED
    echo_results(graph, {key: str(config[key]) for key in STORAGE_OPTION_KEYS if key in config})
    return OK


def _check_restore(config: Mapping[str, Any], options: RunOptions) -> None:
    """Raise ConfigError where `--from` names no checkpoint, as far as this process can tell: a folder that a cluster
    elsewhere sees need not be here, and what lies in a cluster's memory the job finds out."""
    from rayflow.runtime.master.beginning import named_checkpoints
    from rayflow.runtime.master.storage import JobStorage
    from rayflow.state.storage import RAY_SCHEME, open_store

    url = options.restore_from
    if url is None:
        return
    elsewhere = options.address is not None or bool(os.environ.get("RAY_ADDRESS"))
    if not options.local and (url.startswith(RAY_SCHEME) or (elsewhere and not url.startswith("s3://"))):
        return
    storage = JobStorage(open_store, url, JobConfig.from_flat(config).storage_options, JobId(""))
    try:
        named_checkpoints(storage, url)
    except (CorruptCheckpointError, ConfigError) as error:
        raise ConfigError(f"--from {url}: {error}") from None


def _run_here(graph: JobGraph, config: Mapping[str, Any], options: RunOptions) -> str:
    """Run the job inside this process; return the state it ended in."""
    from rayflow.runtime.local import run_local

    # What the engine logs is for the log files of a cluster's processes; here the progress tells it.
    logging.getLogger("rayflow").addHandler(logging.NullHandler())
    meter = ProgressMeter()
    with open_view(sys.stdout, f"{graph.name} (local)") as view:

        def show(description: Mapping[str, Any]) -> None:
            view.show(meter.observe(description, time.monotonic()))

        try:
            result = run_local(
                graph,
                dict(config),
                restore_from=options.restore_from,
                allow_duplicates=options.allow_duplicates,
                on_progress=show,
            )
        except KeyboardInterrupt:
            raise JobInterrupted(graph.name) from None
        show(result.describe)
    if result.failure is not None:
        raise JobFailed(*result.failure)
    return str(result.state.value)


def _submit(graph: JobGraph, config: Mapping[str, Any], options: RunOptions) -> JobHandle:
    from rayflow.client import submit

    click.echo(
        f"submitting job {graph.name} to Ray (a local one is started where there is no cluster) …", err=True
    )
    return submit(
        graph,
        dict(config),
        graph.name,
        options.address,
        restore_from=options.restore_from,
        allow_duplicates=options.allow_duplicates,
        detach=options.detach,
    )


def _watch(handle: JobHandle, title: str) -> str:
    """Show a job's progress until it ends, and return the state it ended in; Ctrl-C cancels the job.

    Raises JobFailed where that state is FAILED.
    """
    meter = ProgressMeter()
    with open_view(sys.stdout, f"{title} ({handle.id})") as view:
        try:
            description = _follow(handle, meter, view)
        except KeyboardInterrupt:
            handle.cancel()
            _follow(handle, meter, view)
            raise JobInterrupted(handle.id) from None
    if description["state"] == "FAILED":
        handle.wait()
    return str(description["state"])


def _follow(handle: JobHandle, meter: ProgressMeter, view: ProgressView) -> Mapping[str, Any]:
    while True:
        description = handle.describe()
        view.show(meter.observe(description, time.monotonic()))
        if description["state"] in ENDED_STATES:
            return description
        time.sleep(POLL_INTERVAL_S)
