"""`rayflow memory`: the memory model, step by step, from the process down or from the user's share up."""

from __future__ import annotations

from typing import Any

import click

from rayflow.cli.tables import echo_json, echo_table
from rayflow.model.config import JobConfig
from rayflow.model.memory import (
    DEFAULT_CUTOFF,
    DEFAULT_MANAGED,
    DEFAULT_NETWORK,
    MemoryModel,
    mebibytes,
)


@click.command("memory")
@click.option("--process", metavar="SIZE", help="Size of a subtask's process, such as 8g. Default: 1g.")
@click.option("--user", metavar="SIZE", help="Size of the user's share, from which the rest is derived.")
@click.option("--cutoff", metavar="FRACTION", default=str(DEFAULT_CUTOFF), show_default=True, help="Reserve.")
@click.option(
    "--network",
    metavar="FRACTION",
    default=str(DEFAULT_NETWORK),
    show_default=True,
    help="Network buffers, of what the cutoff leaves (64 MiB to 1 GiB).",
)
@click.option(
    "--managed",
    metavar="FRACTION",
    default=str(DEFAULT_MANAGED),
    show_default=True,
    help="State, of what the network buffers leave.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON; sizes in bytes.")
def memory_command(
    process: str | None, user: str | None, cutoff: str, network: str, managed: str, as_json: bool
) -> None:
    """Show how the memory of a subtask's process is split, step by step.

    With --process from the process down; with --user the other way: how large the process must be for the job's
    functions to have so much. Sizes are bytes, or such as 512MiB or 8g.
    """
    if process is not None and user is not None:
        raise click.UsageError("give --process or --user, not both: each follows from the other")
    fractions = {"cutoff": cutoff, "network": network, "managed": managed}
    if user is not None:
        model = MemoryModel.from_user(user, **fractions)
    else:
        model = MemoryModel.from_process(process or JobConfig().memory_process_bytes, **fractions)
    if as_json:
        echo_json(_json(model))
    else:
        _print(model)


def _print(model: MemoryModel) -> None:
    taken, left = ("−", "=") if model.known == "process" else ("+", "=")
    signs = {name: taken for name in ("cutoff", "network", "managed")}
    first, *others = model.steps()
    rows = [(f"  {first.name}", first.nbytes, first.how)]
    rows += [(f"{signs.get(step.name, left)} {step.name}", step.nbytes, step.how) for step in others]
    width = max(len(mebibytes(nbytes)) for _, nbytes, _ in rows)
    echo_table(
        ("part", "MiB".rjust(width), "how"), [(n, f"{mebibytes(b):>{width}}", how) for n, b, how in rows]
    )
    parts = [model.cutoff_bytes, model.network_bytes, model.managed_bytes, model.user_bytes]
    click.echo(
        f"\ncutoff + network + managed + user: {' + '.join(map(mebibytes, parts))} = "
        f"{mebibytes(model.process_bytes)} MiB"
    )
    for note in model.notes():
        click.echo(f"note: {note}")


def _json(model: MemoryModel) -> dict[str, Any]:
    return {
        "known": model.known,
        "fractions": {name: float(getattr(model, name)) for name in ("cutoff", "network", "managed")},
        "network_case": model.network_case,
        **{
            name: getattr(model, name)
            for name in (
                "process_bytes",
                "cutoff_bytes",
                "usable_bytes",
                "network_bytes",
                "rest_bytes",
                "managed_bytes",
                "user_bytes",
            )
        },
        "steps": [{"name": step.name, "bytes": step.nbytes, "how": step.how} for step in model.steps()],
        "notes": list(model.notes()),
    }
