"""Pickles a job's functions for other processes, so that errors there still name the user's file and line.

cloudpickle ships functions by value, and since 3.1.2 gives their code the file name `<dynamic-code>`. Here code keeps
the file that it was compiled from. `pickle.loads` reads the result, in any process that can import rayflow.
"""

from __future__ import annotations

import io
from collections import ChainMap
from collections.abc import Callable
from types import CodeType
from typing import Any, ClassVar

import cloudpickle

from rayflow.graph.plan import JobGraph, OperatorSpec
from rayflow.model.errors import PlanError


def ship_graph(graph: JobGraph) -> bytes:
    """Return the graph pickled. Raises PlanError, with the operator and its line, where a function cannot be."""
    try:
        return ship(graph)
    except Exception as error:
        culprit = next((op for v in graph.vertices for op in v.operators if not _can_ship(op)), None)
        raise PlanError(
            f"{'the job' if culprit is None else repr(culprit.name)} cannot be shipped to the processes that run it: "
            f"{type(error).__name__}: {error}. What a function uses must pickle: open connections, locks and files "
            "belong into the open() of a class, or into the function itself",
            location=None if culprit is None else culprit.location,
        ) from error


def _can_ship(operator: OperatorSpec) -> bool:
    try:
        ship(operator)
    except Exception:
        return False
    return True


def ship(value: Any) -> bytes:
    """Return `value` pickled, its functions by value where cloudpickle does so. Raises what pickling raises."""
    out = io.BytesIO()
    _Pickler(out).dump(value)
    return out.getvalue()


def _reduce_code(code: CodeType) -> tuple[Callable[..., CodeType], tuple[Any, ...]]:
    make, arguments = cloudpickle.Pickler.dispatch_table[CodeType](code)
    return _code_of_file, (code.co_filename, make, arguments)


def _code_of_file(file: str, make: Callable[..., CodeType], arguments: tuple[Any, ...]) -> CodeType:
    return make(*arguments).replace(co_filename=file)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table: ClassVar[Any] = ChainMap({CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)
