"""`rayflow chaos`: faults in a running job, or a job file run without and with faults and its outputs compared.

Which of the two is said by the argument: a name that ends with `.py` is a job file, anything else a job. With a job
file the command takes the options of the job, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from rayflow.cli.errors import FAILED, OK
from rayflow.cli.job_options import job_values
from rayflow.cli.run_command import CONFIGURING, JobCommand, current_job
from rayflow.cli.tables import echo_json, echo_table

_OPTIONS = [
    click.Option(
        ["--kill"],
        multiple=True,
        type=click.Choice(["subtask", "jobmanager", "node", "all"]),
        help="Kill processes with SIGKILL, or a node of `rayflow cluster up`; may be repeated.",
    ),
    click.Option(["--stop"], metavar="D", help="Stop a subtask's process for so long (SIGSTOP, SIGCONT)."),
    click.Option(["--storage-errors"], metavar="D", help="Have the job's writes to files fail for so long."),
    click.Option(["--every"], metavar="D", help="Time between faults; without --times until the job ends."),
    click.Option(["--times"], type=click.IntRange(min=1), metavar="N", help="Number of faults."),
    click.Option(["--seed"], type=int, help="What faults are drawn with; printed where not given."),
    click.Option(["--schedule"], metavar="FILE", help="Inject what FILE says instead."),
    click.Option(["--write-schedule"], metavar="FILE", help="Write down the faults, for --schedule."),
    click.Option(["--replace-nodes"], is_flag=True, help="Add a node for each that is killed."),
    click.Option(["--address"], metavar="ADDRESS", help="The Ray cluster the job runs on."),
    click.Option(["--json", "as_json"], is_flag=True, help="Print JSON."),
]
_OF_JOB_FILES = [
    *CONFIGURING,
    click.Option(
        ["--ignore"], multiple=True, metavar="COLUMN", help="Do not compare a column; may be repeated."
    ),
    click.Option(
        ["--scratch"], metavar="PATH", help="Where the two outputs go, for all nodes (default: temporary)."
    ),
]


@click.pass_context
def _chaos(ctx: click.Context, /, job: str, **params: Any) -> int:
    own = {option.name for option in _OPTIONS}
    asked = {name: value for name, value in params.items() if name in own}
    of_job = {name: value for name, value in params.items() if name not in own}
    if job.endswith(".py"):
        return _chaos_of_file(ctx, asked, of_job)
    if given := [name for option in _OF_JOB_FILES if params[name := str(option.name)]]:
        raise click.UsageError(
            f"--{given[0].replace('_', '-')} is for a job file (JOB.py), and {job!r} is a job that runs already"
        )
    return _chaos_of_job(job, **asked)


def _chaos_of_job(
    job: str, *, address: str | None, as_json: bool, write_schedule: str | None, **asked: Any
) -> int:
    from rayflow.client import connect
    from rayflow.client.chaos.running import request, run_chaos

    wanted = request(**asked)
    handle = connect(address).job(job)
    report, drawn = run_chaos(
        handle, wanted, on_fault=_silent if as_json else echo_fault, stop_on_interrupt=True
    )
    _write(write_schedule, drawn.to_text())
    if as_json:
        echo_json(report)
    else:
        echo_report(report)
    return OK if report["state"] != "FAILED" and report["injected"] else FAILED


def _chaos_of_file(ctx: click.Context, asked: dict[str, Any], params: dict[str, Any]) -> int:
    from rayflow.cli.job_runner import RunOptions, build_environment
    from rayflow.client.chaos.compared_runs import ComparedRun
    from rayflow.client.chaos.running import request
    from rayflow.connectors.targets import absolute_url
    from rayflow.model.config import with_environment

    address, as_json, write_schedule = (asked.pop(k) for k in ("address", "as_json", "write_schedule"))
    wanted = request(**asked)
    none = {"restore_from": None, "allow_duplicates": False, "detach": False, "local": False}
    options = RunOptions.from_params({**params, **none, "address": address})
    env = build_environment(current_job(ctx), options, job_values(params))
    temporary = None if params["scratch"] else tempfile.mkdtemp(prefix="rayflow-chaos-")
    run = ComparedRun(
        graph=env.plan(),
        config=with_environment(env.config, os.environ),
        asked=wanted,
        scratch=absolute_url(params["scratch"] or str(temporary)),
        address=address,
        ignore=tuple(params["ignore"]),
    )
    try:
        report, drawn = run.run(lambda text: click.echo(text, err=True), _silent if as_json else echo_fault)
    except BaseException:
        _remove(temporary)
        raise
    _write(write_schedule, drawn.to_text())
    if as_json:
        echo_json(report)
    else:
        echo_report(report)
        _echo_verdict(report)
    # What differs can be looked at.
    if report["exact"]:
        _remove(temporary)
    return OK if report["exact"] and report["injected"] else FAILED


def echo_fault(fault: dict[str, Any]) -> None:
    """Print a fault as it has just been injected, or skipped."""
    what = f"{fault['action'].replace('_', ' ')} {fault['target']}"
    click.echo(f"{fault['number'] + 1:4d}  {what}: {_who(fault)}")


def echo_report(report: dict[str, Any]) -> None:
    """Print the faults with their recovery times, and a summary."""
    click.echo(
        f"\n{report['name']} ({report['job_id']})  {report['state']}  {report['injected']} faults injected, "
        f"{report['skipped']} skipped, {report['restarts']} restarts, seed {report['seed']}\n"
    )
    echo_table(
        ("fault", "target", "attempt", "recovered in s", "detect", "reset", "restore", "replay", "outcome"),
        [_fault_row(fault) for fault in report["faults"]],
    )
    if report["recovery"]:
        click.echo("")
        echo_table(
            ("fault", "times", "recovered", "median s", "max s"),
            [
                (name, group["faults"], group["recovered"], _s(group["median_ms"]), _s(group["max_ms"]))
                for name, group in report["recovery"].items()
            ],
        )


def _echo_verdict(report: dict[str, Any]) -> None:
    click.echo("")
    echo_table(
        ("output", "expected rows", "found", "lost", "duplicated", "differing"),
        [
            [output[key] for key in ("uid", "expected", "found", "lost", "duplicated", "differing")]
            for output in report["outputs"]
        ],
    )
    for output in report["outputs"]:
        for example in output["examples"]:
            click.echo(f"  {output['path']}: {example}")
    if report["failure"]:
        click.echo(f"\nFAILED: with faults the job failed: {report['failure']}")
    elif not report["exact"]:
        click.echo("\nFAILED: with faults the output is another one")
    elif not report["injected"]:
        click.echo(
            "\nNO VERDICT: the job ended before any fault was injected; slow it down, with "
            "--set source.rate_limit=N, or use a shorter --every"
        )
    else:
        click.echo(
            f"\nEXACT: {report['injected']} faults, 0 lost, 0 duplicated, 0 differing rows; "
            f"{report['seconds_without']} s without faults, {report['seconds_with']} s with them"
        )


def _fault_row(fault: dict[str, Any]) -> tuple[Any, ...]:
    parts = fault["breakdown"] or {}
    named = (parts.get(f"{name}_ms") for name in ("detect", "reset", "restore", "replay"))
    return (
        fault["action"].replace("_", " "),
        fault["target"],
        fault["attempt"],
        _s(fault["recovered_ms"]),
        *(_s(ms) for ms in named),
        _who(fault),
    )


def _who(fault: dict[str, Any]) -> str:
    victims = fault["victims"]
    return f"{len(victims)} processes" if len(victims) > 2 else ", ".join(victims) or str(fault["outcome"])


def _s(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _silent(fault: dict[str, Any]) -> None:
    """Print nothing: the report says it all."""


def _write(path: str | None, text: str) -> None:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")


def _remove(folder: str | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


class _ChaosCommand(JobCommand):
    """Takes the options of a job file, if one is named."""

    give_way = tuple(flag for option in _OPTIONS + _OF_JOB_FILES for flag in option.opts)

    def _job_file(self, args: Sequence[str]) -> str | None:
        found = super()._job_file(args)
        return found if found is not None and found.endswith(".py") else None


chaos_command = _ChaosCommand(
    "chaos",
    params=[click.Argument(["job"], metavar="JOB|JOB.py"), *_OPTIONS, *_OF_JOB_FILES],
    callback=_chaos,
    help="""Inject faults into a running job, and report how it recovers. JOB is an id or a name. Of a job file, JOB.py,
run the job twice, without and with faults, and compare what it wrote.

Without --every and --times it is one fault, at once. What is hit is drawn by --seed; the same seed hits the same
again. Only processes of the job are touched, save by --kill node. Mind restart.max_attempts of a running job: by
default more than 10 failures in 10 minutes end it. A job file runs without that limit, and with a checkpoint every 2 s,
unless it says otherwise; options that the job has too are called --job-NAME here.""",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
