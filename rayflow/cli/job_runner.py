"""Running a job from the command line: build its plan, submit it, watch it to its end, show what it wrote.

`run(build)` is `rf.run`: it makes `python jobs/x.py …` take the same options as `rayflow run jobs/x.py …`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import click

from rayflow.cli.errors import FAILED, INTERRUPTED, OK, exit_code_of, user_error
from rayflow.cli.job_file import Job, job_of
from rayflow.cli.progress import ENDED_STATES, ProgressMeter, open_view
from rayflow.cli.run_command import run_command_for
from rayflow.model.config import load_config_file, parse_assignments
from rayflow.model.errors import RayflowError

if TYPE_CHECKING:
    from rayflow.api.environment import StreamEnvironment
    from rayflow.client.handle import JobHandle

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

    env = StreamEnvironment(name=job.name, parallelism=options.parallelism, config=options.config)
    try:
        job.build(env, **values)
    except RayflowError:
        raise
    except Exception as error:
        raise user_error(f"build() of job {job.name} failed", error) from None
    return env
