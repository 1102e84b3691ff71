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
