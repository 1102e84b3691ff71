"""Every way a command can end, as an exit code and one clear message on standard error.

| code | when |
|---|---|
| 0 | the command did what it was asked; a job that it waited for has finished |
| 1 | the job failed or was cancelled, or the cluster or storage could not be used |
| 2 | bad usage, configuration, or plan: nothing was started |
| 130 | interrupted with Ctrl-C |

Nobody sees a traceback of rayflow's own frames; of errors in a user's job file the user's own lines are
shown. `RAYFLOW_DEBUG=1` prints the whole traceback besides.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import click

from rayflow.model.errors import ConfigError, PlanError, RayflowError

OK, FAILED, BAD_USAGE, INTERRUPTED = 0, 1, 2, 130

_AT = "  at "
_PACKAGE = str(Path(__file__).resolve().parent.parent) + os.sep


class JobFileError(PlanError):
    """The job's file cannot be loaded, or its `build` raised; the message shows the user's own lines."""


class JobInterrupted(KeyboardInterrupt):
    """Ctrl-C, after the job that the command waited for was cancelled; the message says what became of it."""

    def __init__(self, job: str) -> None:
        super().__init__(
            f"interrupted: job {job} is cancelled; what it has committed stays, the rest is discarded"
        )


def exit_code_of(
    command: click.Command, arguments: Sequence[str] | None, prog_name: str | None = None
) -> int:
    """Run `command` and return its exit code, having said on standard error what went wrong, if anything did.

    A command's return value is its exit code (None: 0).
    """
    try:
        code = command.main(args=arguments, prog_name=prog_name, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        # click makes an Abort of every KeyboardInterrupt.
        cause = error.__cause__ or error.__context__ or error
        click.echo(cause if isinstance(cause, JobInterrupted) else "interrupted", err=True)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone; nothing more can be said, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except RayflowError as error:
        return _report(str(error), BAD_USAGE if isinstance(error, PlanError | ConfigError) else FAILED)
    except Exception as error:
        hint = "" if _debugging() else "; RAYFLOW_DEBUG=1 shows where"
        return _report(f"{type(error).__name__}: {error}\n  this looks like a bug in rayflow{hint}", FAILED)
    return code if isinstance(code, int) else OK


def user_error(what: str, error: BaseException) -> JobFileError:
    """Return an error that says `what` failed and why, with the lines of the user's code that led there."""
    reason = "".join(traceback.format_exception_only(type(error), error)).rstrip()
    lines = [f"{what}: {reason}", *_user_lines(error.__traceback__)]
    return JobFileError("\n".join(lines))


def located(error: PlanError | ConfigError) -> PlanError:
    """Return what the user's `build` raised, with the line that led there unless it names one."""
    message, location = (
        (error.message, error.location) if isinstance(error, PlanError) else (str(error), None)
    )
    lines = _user_lines(error.__traceback__)
    return PlanError(message, location or (lines[0].removeprefix(_AT) if lines else None))


def _user_lines(trace: TracebackType | None) -> list[str]:
    frames = [
        f"{_AT}{frame.filename}:{frame.lineno}: {frame.line or ''}"
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith((_PACKAGE, "<frozen importlib"))
    ]
    # Innermost first, like the location of a plan error; the outermost say little in a deep recursion.
    return frames[::-1][:10]


def _report(message: str, code: int) -> int:
    if _debugging():
        traceback.print_exc()
    click.secho("Error: ", fg="red", bold=True, nl=False, err=True)
    click.echo(message, err=True)
    return code


def _debugging() -> bool:
    return os.environ.get("RAYFLOW_DEBUG", "") not in ("", "0")
