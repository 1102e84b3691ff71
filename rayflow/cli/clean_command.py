"""`rayflow clean`: what a job's sinks staged or prepared and nobody will commit is removed, after its end."""

from __future__ import annotations

import os

import click

from rayflow.cli.errors import FAILED, OK
from rayflow.cli.tables import echo_json
from rayflow.model.config import JobConfig, parse_assignments, with_environment


@click.command("clean")
@click.argument("job", metavar="JOB")
@click.option("--address", metavar="ADDRESS", help="The Ray cluster the job ran on.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A storage option, such as s3.endpoint=URL."
)
@click.option("--force", is_flag=True, help="JOB is a folder, and its job died without a word.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def clean_command(
    job: str, address: str | None, settings: tuple[str, ...], force: bool, as_json: bool
) -> int:
    """Have the sinks of a job that is over clean up: prepared transactions, staged files, uploads.

    A job does that itself at its end. This is for a target that was away then, for a job that died with its cluster,
    and for a process that stood still and prepared a transaction after the end. What the newest checkpoint left
    pending stays, unless the job finished. JOB is an id or a name, or the job's folder on checkpoint storage.
    """
    from rayflow.client import connect
    from rayflow.client.cleaning import clean
    from rayflow.runtime.master.sink_cleanup import FAILED as COULD_NOT

    if "/" in job:
        options = JobConfig.from_flat(
            with_environment(parse_assignments(settings), os.environ)
        ).storage_options
        found = [finding.to_json() for finding in clean(job, options, force=force)]
    elif settings or force:
        raise click.UsageError("--set and --force are for JOB as a folder: CHECKPOINT-STORAGE/JOB-ID")
    else:
        found = connect(address).job(job).clean()
    if as_json:
        echo_json(found)
    for finding in () if as_json else found:
        click.echo(f"sink {finding['sink']}: {finding['message']}")
    if not (as_json or found):
        click.echo(f"the sinks of {job} have nothing left")
    return FAILED if any(finding["type"] == COULD_NOT for finding in found) else OK
