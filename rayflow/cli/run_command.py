"""`rayflow run` and `rayflow plan`: commands whose options are their own and those of the job at hand.

Click is told of a job's options while it parses: the job file is found among the arguments first, loaded, and
its options joined to the command's (`JobCommand`). So one parser knows all of them, reports errors and writes
the help.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import click

from rayflow.cli.job_file import Job, load_job
from rayflow.cli.job_options import is_job_option, job_options, job_values
from rayflow.cli.tables import echo_json

_JOB = "rayflow.cli.job"
_OPTIONS = "rayflow.cli.job_options"


class JobCommand(click.Command):
    """A command whose options include those of `job`, or where it is None of the job in its argument JOB.py."""

    job: Job | None = None
    give_way: Collection[str] = ()
    """Own options after which a job's parameters may be called, too (see `job_options`)."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Load the job, if the arguments name one, and parse its options with the command's own."""
        job = self.job
        if job is None and (file := self._job_file(args)):
            job = load_job(Path(file))
        if job is not None:
            own = {flag: p for p in super().get_params(ctx) for flag in (*p.opts, *p.secondary_opts)}
            ctx.meta[_JOB], ctx.meta[_OPTIONS] = job, job_options(job.build, own, self.give_way)
        return super().parse_args(ctx, args)

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the command's own parameters and the job's."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, ())]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the job's options first, then rayflow's."""
        records = [(p, p.get_help_record(ctx)) for p in self.get_params(ctx) if isinstance(p, click.Option)]
        of_job = [record for p, record in records if record and is_job_option(p)]
        own = [record for p, record in records if record and not is_job_option(p)]
        if job := ctx.meta.get(_JOB):
            with formatter.section(f"Options of {job.name}" + (f" ({job.title})" if job.title else "")):
                formatter.write_dl(of_job or [("(none)", "")])
        with formatter.section("Options of rayflow"):
            formatter.write_dl(own)

    def _job_file(self, args: Sequence[str]) -> str | None:
        """Return the argument that names the job, before it is known which options of the job take values.

        That is the first argument ending in `.py`, else the first one, that is neither an option nor the
        value of one of the command's own.
        """
        takes_value = {
            flag for p in self.params if isinstance(p, click.Option) and not p.is_flag for flag in p.opts
        }
        found = [
            arg
            for before, arg in zip(["", *args], args, strict=False)
            if not arg.startswith("-") and before not in takes_value
        ]
        return next((arg for arg in found if arg.endswith(".py")), found[0] if found else None)


def current_job(ctx: click.Context) -> Job:
    """Return the job that the command was called with."""
    job: Job = ctx.meta[_JOB]
    return job


_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}

CONFIGURING = [
    click.Option(["--parallelism"], type=click.IntRange(min=1), metavar="N", help="Subtasks per operator."),
    click.Option(["--set", "settings"], multiple=True, metavar="KEY=VALUE", help="Set a configuration key."),
    click.Option(
        ["--config", "config_file"],
        type=click.Path(path_type=Path),
        metavar="FILE.toml",
        help="Read configuration keys.",
    ),
]
"""Options of every command that runs a job file."""

_RUN_OPTIONS = [
    click.Option(
        ["--address"], metavar="ADDRESS", help="The Ray cluster (HOST:PORT, or 'local' for one of its own)."
    ),
    *CONFIGURING,
    click.Option(
        ["--from", "restore_from"], metavar="PATH", help="Start from a savepoint or retained checkpoint."
    ),
    click.Option(
        ["--allow-duplicates"],
        is_flag=True,
        help="Restore even where a sink has committed more than PATH holds.",
    ),
    click.Option(
        ["--detach"], is_flag=True, help="Print the job's id and return; needs a cluster that stays up."
    ),
    click.Option(["--local"], is_flag=True, help="Run inside this process, without Ray."),
]


def run_command_for(job: Job | None) -> JobCommand:
    """Return the command that runs `job`, or with None the job named by its argument JOB.py."""
    argument = [] if job else [click.Argument(["job_file"], metavar="JOB.py")]
    command = JobCommand(
        "run",
        params=[*argument, *_RUN_OPTIONS],
        callback=_run,
        help=(job.title if job else None) or "Run the job that JOB.py's build(env, *, …) describes.",
        no_args_is_help=job is None,
        context_settings=_CONTEXT,
    )
    command.job = job
    return command


@click.pass_context
def _run(ctx: click.Context, /, **params: Any) -> int:
    from rayflow.cli.job_runner import RunOptions, run_job

    return run_job(current_job(ctx), RunOptions.from_params(params), job_values(params))


@click.pass_context
def _plan(ctx: click.Context, /, as_json: bool, **params: Any) -> None:
    from rayflow.cli.job_runner import RunOptions, build_environment
    from rayflow.graph.describe import plan_json, plan_tree

    job = current_job(ctx)
    graph = build_environment(job, RunOptions.from_params(params), job_values(params)).plan()
    if as_json:
        echo_json(plan_json(graph))
    else:
        click.echo(plan_tree(graph))


run_command = run_command_for(None)
plan_command = JobCommand(
    "plan",
    params=[
        click.Argument(["job_file"], metavar="JOB.py"),
        *_RUN_OPTIONS,
        click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
    ],
    callback=_plan,
    help="Show the operators, chains and exchanges of the job, and warnings; runs nothing.",
    no_args_is_help=True,
    context_settings=_CONTEXT,
)
