"""Loading a job: a Python file that defines `build(env, *, …)`.

The file's folder goes first on `sys.path`, as when Python runs a script, so modules beside it can be
imported. The file itself is pickled by value: its functions reach subtasks that cannot import it.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from rayflow.cli.errors import JobFileError, user_error


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job that can be built. `name` is the file's stem; `title` the first line of `build`'s docstring."""

    name: str
    path: Path | None
    build: Callable[..., Any]

    @property
    def title(self) -> str:
        """What the job does, in the words of its author; empty where the author said nothing."""
        doc = inspect.getdoc(self.build) or ""
        return doc.partition("\n")[0]


def load_job(path: Path) -> Job:
    """Import the file and return its job.

    Raises click.UsageError where there is no such file, and JobFileError, with the user's lines, where it
    cannot be imported or defines no `build`.
    """
    if path.is_dir():
        raise click.UsageError(f"{path} is a folder; expected a job file, such as {path / 'JOB.py'}")
    if not path.is_file():
        raise click.UsageError(f"job file {path} does not exist (folder {Path.cwd()})")
    path = path.resolve()
    sys.path.insert(0, str(path.parent))
    module = _import(path)
    build = getattr(module, "build", None)
    if not callable(build):
        raise JobFileError(f"{path} defines no function build(env, *, …); a job file must")
    return Job(name=path.stem, path=path, build=build)


def job_of(build: Callable[..., Any]) -> Job:
    """Return the job of a `build` function at hand (`rf.run(build)`), named after the file it is in."""
    file = inspect.getsourcefile(build)
    return Job(
        name=Path(file).stem if file else build.__name__, path=Path(file) if file else None, build=build
    )


def _import(path: Path) -> ModuleType:
    import cloudpickle

    # A job called like a module that is loaded already (`json.py`) must not take its place.
    name = path.stem if path.stem not in sys.modules else f"rayflow_job_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise JobFileError(f"{path} is not a Python file; expected JOB.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        # SystemExit too: a job file that exits while it is imported has no job in it.
        del sys.modules[name]
        raise user_error(f"cannot load {path}", error) from None
    cloudpickle.register_pickle_by_value(module)
    return module
