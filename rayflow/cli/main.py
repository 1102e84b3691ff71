"""`rayflow`: the group of commands, loaded when used, and the one place where errors become exit codes."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import click

from rayflow.cli.errors import exit_code_of

COMMANDS = {
    "run": ("rayflow.cli.run_command:run_command", "Run a job and show its progress."),
    "plan": ("rayflow.cli.run_command:plan_command", "Show the job graph, without running it."),
    "list": ("rayflow.cli.inspect_commands:list_command", "List the jobs, running and ended."),
    "describe": ("rayflow.cli.inspect_commands:describe_command", "Show a job's operators and subtasks."),
    "cancel": ("rayflow.cli.inspect_commands:cancel_command", "Cancel a job; commits nothing new."),
    "clean": ("rayflow.cli.clean_command:clean_command", "Remove what an ended job's sinks left behind."),
    "metrics": ("rayflow.cli.inspect_commands:metrics_command", "Show a job's counters and watermarks."),
    "checkpoints": ("rayflow.cli.inspect_commands:checkpoints_command", "List a job's checkpoints."),
    "events": ("rayflow.cli.inspect_commands:events_command", "Show what happened to a job."),
    "logs": ("rayflow.cli.inspect_commands:logs_command", "Show what a job's processes logged."),
    "memory": ("rayflow.cli.memory_command:memory_command", "How the memory of a process is split."),
    "state": ("rayflow.cli.state_commands:state_group", "Look into a checkpoint."),
    "chaos": ("rayflow.cli.chaos_command:chaos_command", "Inject faults into a running job."),
    "cluster": ("rayflow.cli.cluster_commands:cluster_group", "A local cluster of real Ray nodes."),
}
"""Command → where it is defined, and its line in `rayflow --help`."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are run, not when they are listed."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands, in the order of `COMMANDS`."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, None where there is none of that name."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(package_name="rayflow", message="rayflow %(version)s")
def cli() -> None:
    """Stateful stream processing on Ray.

    A cluster is found by --address, else RAY_ADDRESS, else the one that `rayflow cluster up` recorded. Exit
    codes: 0 finished, 1 failed, 2 bad usage or plan.
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; `arguments` default to the process's."""
    sys.exit(exit_code_of(cli, arguments))
