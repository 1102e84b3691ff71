"""`rayflow list`, `describe`, `metrics`, `cancel`, `checkpoints`, `events` and `logs`: what jobs do and did.

They work on jobs in any state; those of ended jobs are read from their stored metadata. With `--json` the output
is that of API.md section 6, else tables for people.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

from rayflow.cli.errors import FAILED, OK
from rayflow.cli.progress import ENDED_STATES
from rayflow.cli.tables import cell_text, echo_json, echo_table, json_text

if TYPE_CHECKING:
    from rayflow.client.handle import JobHandle

FOLLOW_INTERVAL_S = 0.5
CANCEL_TIMEOUT_S = 60.0

HOT_KEYS_SHOWN = 3
HOT_SHARE_SHOWN = 0.01
"""What fewer rows go to is not hot."""

_OWN_COLUMN = ("rows_in", "watermark")

_ADDRESS = click.option("--address", metavar="ADDRESS", help="The Ray cluster the job runs on.")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def _job_command(name: str) -> Callable[[Callable[..., Any]], click.Command]:
    """Return a decorator for a command on one JOB, given by id or name."""

    def decorate(function: Callable[..., Any]) -> click.Command:
        argument = click.argument("job", metavar="JOB")
        return click.command(name)(argument(_ADDRESS(function)))

    return decorate


@click.command("list")
@_ADDRESS
@_JSON
def list_command(address: str | None, as_json: bool) -> None:
    """List the jobs, running and ended, newest last."""
    from rayflow.client import connect

    jobs = connect(address).jobs()
    if as_json:
        echo_json(jobs)
    else:
        echo_table(
            ("job", "name", "state", "attempt", "started at"),
            [[job[key] for key in ("job_id", "name", "state", "attempt", "started_at")] for job in jobs],
        )


@_job_command("describe")
@_JSON
def describe_command(job: str, address: str | None, as_json: bool) -> None:
    """Show a job's operators, subtasks, restarts and checkpoints. JOB is an id or a name."""
    description = _handle(job, address).describe()
    if as_json:
        echo_json(description)
    else:
        _echo_description(description)


@_job_command("metrics")
@_JSON
def metrics_command(job: str, address: str | None, as_json: bool) -> None:
    """Show what a job's operators have counted in this attempt, and the watermark each has come to. JOB is an id
    or a name."""
    metrics = _handle(job, address).metrics()
    if as_json:
        echo_json(metrics)
        return
    click.echo(
        f"{metrics['job_id']}  {metrics['state']}  attempt {metrics['attempt']}  at {metrics['at'] or '–'}"
    )
    echo_table(
        ("operator", "rows in", "watermark", "others"),
        [_metrics_row(uid, values) for uid, values in metrics["operators"].items()],
    )
    _echo_skew(metrics.get("skew", {}))
    click.echo("\nmemory, and what the collector of cyclic garbage takes")
    echo_table(
        ("operator", "index", "process MiB", "state MiB", "collections", "paused ms", "longest ms"),
        [_memory_row(subtask) for subtask in metrics["subtasks"]],
    )


@_job_command("cancel")
def cancel_command(job: str, address: str | None) -> int:
    """Cancel a job and wait for its end; nothing new is committed. JOB is an id or a name."""
    handle = _handle(job, address)
    handle.cancel()
    deadline_s = time.monotonic() + CANCEL_TIMEOUT_S
    while (state := str(handle.status())) not in ENDED_STATES:
        if time.monotonic() > deadline_s:
            click.echo(f"job {handle.id} is still {state} after {CANCEL_TIMEOUT_S:.0f} s", err=True)
            return FAILED
        time.sleep(FOLLOW_INTERVAL_S)
    click.echo(f"job {handle.id}: {state}")
    return OK


@_job_command("checkpoints")
@_JSON
def checkpoints_command(job: str, address: str | None, as_json: bool) -> None:
    """List a job's checkpoints, oldest first. JOB is an id or a name."""
    checkpoints = _handle(job, address).checkpoints()
    if as_json:
        echo_json(checkpoints)
        return
    echo_table(
        (
            "id",
            "status",
            "triggered at",
            "ms",
            "max alignment ms",
            "bytes",
            "acknowledged",
            "path",
            "failure",
        ),
        [
            (
                c["id"],
                c["status"],
                c["triggered_at"],
                c["duration_ms"],
                c["alignment_ms_max"],
                c["bytes"],
                f"{c['acknowledged']}/{c['subtasks']}",
                c["path"],
                c["failure"],
            )
            for c in checkpoints
        ],
    )


@_job_command("events")
@click.option("--follow", is_flag=True, help="Go on until the job ends.")
@_JSON
def events_command(job: str, address: str | None, follow: bool, as_json: bool) -> None:
    """Show what happened to a job. JOB is an id or a name.

    --json prints a list; with --follow it prints one JSON object a line.
    """
    handle = _handle(job, address)
    if as_json and not follow:
        echo_json(handle.events())
        return
    for event in _followed(handle) if follow else handle.events():
        click.echo(json_text(event) if as_json else f"{event['at']}  {event['type']:<22}  {event['message']}")


@_job_command("logs")
@_JSON
def logs_command(job: str, address: str | None, as_json: bool) -> None:
    """Show what a job's processes printed and logged. JOB is an id or a name."""
    logs = _handle(job, address).logs()
    if as_json:
        echo_json(logs)
        return
    if not any(logs.values()):
        click.echo("the job's processes have printed and logged nothing", err=True)
    for process, text in logs.items():
        for line in text.splitlines():
            click.echo(f"{process}: {line}")


def _handle(job: str, address: str | None) -> JobHandle:
    from rayflow.client import connect

    return connect(address).job(job)


def _followed(handle: JobHandle) -> Iterator[dict[str, Any]]:
    """Yield a job's events as they come, until it has ended."""
    since = 0
    while True:
        # The state first: what an ended job has to tell is all there.
        ended = str(handle.status()) in ENDED_STATES
        for event in handle.events(since):
            since = event["seq"] + 1
            yield event
        if ended:
            return
        time.sleep(FOLLOW_INTERVAL_S)


def _echo_description(job: dict[str, Any]) -> None:
    checkpoints, manager = job["checkpoints"], job["job_manager"]
    click.echo(f"{job['name']} ({job['job_id']})  {job['state']}  attempt {job['attempt']}")
    click.echo(f"job manager: process {manager['pid']} on node {manager['node_id']}")
    click.echo(
        f"checkpoints: {checkpoints['completed']} completed, {checkpoints['failed']} failed, "
        f"latest {checkpoints['latest'] or '–'}"
    )
    if failure := job.get("failure"):
        where = f" at {failure['location']}" if failure.get("location") else ""
        click.echo(f"failure: {failure['cause']}{where}")
    for warning in job.get("warnings", ()):
        click.echo(f"warning: {warning}")
    if job["restarts"]:
        shown, total = len(job["restarts"]), job.get("restarts_total", 0)
        click.echo(
            "\nrestarts" if total <= shown else f"\nrestarts: the first and the last {shown} of {total}"
        )
        echo_table(
            ("attempt", "at", "cause", "restored from"),
            [[r[key] for key in ("attempt", "at", "cause", "restored_from")] for r in job["restarts"]],
        )
    click.echo("\noperators")
    echo_table(
        ("uid", "name", "parallelism", "chained"),
        [(o["uid"], o["name"], o["parallelism"], ", ".join(o["chained"]) or None) for o in job["operators"]],
    )
    _echo_skew({o["uid"]: o["skew"] for o in job["operators"] if o.get("skew")})
    click.echo("\nsubtasks")
    echo_table(
        (
            "operator",
            "index",
            "state",
            "process",
            "rows in",
            "rows out",
            "busy",
            "back-pressured",
            "idle",
            "node",
        ),
        [_subtask_row(subtask) for subtask in job["subtasks"]],
    )


def _echo_skew(operators: dict[str, dict[str, Any]]) -> None:
    """Print how rows lie on the subtasks and keys of each keyed operator."""
    if operators:
        click.echo("\nrows by key")
        headings = (
            "operator",
            "rows per subtask",
            "busiest",
            "× mean",
            "× least",
            "hottest keys",
            "key groups",
        )
        echo_table(headings, [_skew_row(uid, skew) for uid, skew in operators.items()])


def _skew_row(uid: str, skew: dict[str, Any]) -> tuple[Any, ...]:
    keys = [
        f"{key['hash'] if key['key'] is None else key['key']} {key['share_least']:.1%}"
        for key in skew["hot_keys"][:HOT_KEYS_SHOWN]
        if key["share_least"] >= HOT_SHARE_SHOWN
    ]
    groups = [f"{group['key_group']} {group['share']:.1%}" for group in skew["key_groups"][:HOT_KEYS_SHOWN]]
    return (
        uid,
        " ".join(f"{rows:,}" for rows in skew["rows"]),
        skew["busiest"],
        skew["busiest_to_mean"],
        skew["busiest_to_least"],
        ", ".join(keys) or None,
        ", ".join(groups) or None,
    )


def _metrics_row(uid: str, values: dict[str, Any]) -> tuple[Any, ...]:
    others = [f"{name} {cell_text(v)}" for name, v in sorted(values.items()) if name not in _OWN_COLUMN]
    return uid, values.get("rows_in"), values.get("watermark"), ", ".join(others) or None


def _memory_row(subtask: dict[str, Any]) -> tuple[Any, ...]:
    # Jobs that ended under an earlier version have not stored all of it.
    resident = subtask.get("rss_bytes")
    return (
        subtask["operator"],
        subtask["index"],
        None if resident is None else resident >> 20,
        round(subtask.get("state_bytes", 0) / (1 << 20), 2),
        *(subtask.get(key) for key in ("gc_collections", "gc_ms", "gc_longest_ms")),
    )


def _subtask_row(subtask: dict[str, Any]) -> tuple[Any, ...]:
    ratios = (f"{subtask[key]:.0%}" for key in ("busy", "backpressured", "idle"))
    pid = None if subtask["pid"] is None else str(subtask["pid"])
    keys = ("operator", "index", "state")
    return (
        *(subtask[key] for key in keys),
        pid,
        subtask["rows_in"],
        subtask["rows_out"],
        *ratios,
        subtask["node_id"],
    )
