"""The options of a job: what `build(env, *, …)` takes by keyword, as options of the command line.

| annotation | option |
|---|---|
| `str`, `int`, `float`, `pathlib.Path` | `--snake-case VALUE` |
| `bool` | `--flag / --no-flag` |
| `Literal[...]` | one of the choices |
| `list[T]` | may be repeated |
| `Optional[T]`, `T \\| None` | as `T`; None where not given |

Without an annotation the default's type counts, else text. A parameter without a default is a required
option.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Literal, Union

import click

from rayflow.cli.errors import user_error
from rayflow.model.errors import PlanError

_PREFIX = "job__"
_SCALARS: dict[Any, click.ParamType[Any]] = {
    str: click.STRING,
    int: click.INT,
    float: click.FLOAT,
    Path: click.Path(path_type=Path),
}


def job_options(
    build: Callable[..., Any], own: Mapping[str, click.Parameter], give_way: Collection[str] = ()
) -> list[click.Option]:
    """Return an option for every keyword parameter of `build`; its first parameter is the environment.

    `own` maps the command's own flags to their parameters: a clash with one is a PlanError, as is a
    parameter whose annotation is not in the table above. Only flags in `give_way` may clash: the job's option is
    then called `--job-…`.
    """
    where = _where(build)
    try:
        hints = typing.get_type_hints(build)
    except Exception as error:
        raise user_error(f"{where}: cannot resolve the annotations of build()", error) from None
    options = []
    for parameter in _keyword_parameters(build, where):
        flag = "--" + parameter.name.replace("_", "-")
        flag = f"--job-{flag[2:]}" if flag in give_way else flag
        if flag in own:
            raise PlanError(
                f"build() takes {parameter.name!r}, but {flag} is an option of rayflow itself; "
                "rename the parameter",
                where,
            )
        options.append(_option(flag, parameter, hints.get(parameter.name), where))
    return options


def job_values(params: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `build` from a command's parsed parameters."""
    given = {name[len(_PREFIX) :]: value for name, value in params.items() if name.startswith(_PREFIX)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def is_job_option(parameter: click.Parameter) -> bool:
    """Whether a command's parameter belongs to the job."""
    return bool(parameter.name and parameter.name.startswith(_PREFIX))


def _keyword_parameters(build: Callable[..., Any], where: str) -> list[inspect.Parameter]:
    parameters = list(inspect.signature(build).parameters.values())
    if not parameters or parameters[0].kind is inspect.Parameter.KEYWORD_ONLY:
        raise PlanError("build() must take the environment first: def build(env, *, …)", where)
    for parameter in parameters[1:]:
        if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise PlanError(
                f"build() takes *{parameter.name}; name each option, so that it can be typed", where
            )
    return parameters[1:]


def _option(flag: str, parameter: inspect.Parameter, annotation: Any, where: str) -> click.Option:
    required = parameter.default is inspect.Parameter.empty
    default = None if required else parameter.default
    if annotation is None:
        annotation = type(default) if type(default) in (*_SCALARS, bool) else str
    annotation = _without_none(annotation)
    extras: dict[str, Any] = {"required": required, "show_default": default is not None}
    if not required:
        extras["default"] = default
    name = _PREFIX + parameter.name
    if annotation is bool:
        return click.Option([f"{flag}/--no-{flag[2:]}", name], **extras)
    if typing.get_origin(annotation) is list or annotation is list:
        (annotation,) = typing.get_args(annotation) or (str,)
        extras |= {"multiple": True, "default": tuple(default or ())}
    return click.Option([flag, name], type=_param_type(annotation, parameter.name, where), **extras)


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        rest = [a for a in typing.get_args(annotation) if a is not type(None)]
        return rest[0] if len(rest) == 1 else annotation
    return annotation


def _param_type(annotation: Any, name: str, where: str) -> click.ParamType[Any]:
    if typing.get_origin(annotation) is Literal:
        return click.Choice(typing.get_args(annotation))
    if annotation in _SCALARS:
        return _SCALARS[annotation]
    shown = getattr(annotation, "__name__", None) or str(annotation)
    raise PlanError(
        f"build() takes {name!r} of type {shown}, which cannot be an option; expected str, int, float, bool, "
        "Literal[...], pathlib.Path, a list of these, or Optional",
        where,
    )


def _where(build: Callable[..., Any]) -> str:
    code = getattr(build, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(build)
