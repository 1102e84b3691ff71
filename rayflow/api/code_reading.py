"""What can be told of users' code without running it, for the warnings of a plan: names and loops, no more.

Where there is no code to read (builtins, C functions, classes without source) nothing is told.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from types import CodeType
from typing import Any

_ROWS_OF_A_BATCH = frozenset({"to_pylist", "to_pydict", "iterrows", "itertuples", "iter_rows", "rows"})
_ADDING = frozenset({"append", "extend", "add", "update", "setdefault"})


def parses_json(fn: Any) -> bool:
    """Return whether a function, or what a class of one does per row, uses the `json` module."""
    return any(
        code_of.__globals__.get(name) is json
        for code_of in _functions(fn)
        for name in _names(code_of.__code__)
    )


def mentions(kind: type, names: frozenset[str]) -> bool:
    """Return whether a method of a class, or of a base of it that users wrote, uses one of these names."""
    return any(names & set(_names(function.__code__)) for function in _functions(kind))


def calls_per_row(method: Any) -> str | None:
    """Return the first call, as text, that a method makes for each row of a batch, in a loop of its own, of something
    that it holds (`self.cursor.execute`); None where there is none, or only ones that gather rows."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
    except (OSError, TypeError, SyntaxError):
        return None
    mine = _assigned(tree)
    for loop in ast.walk(tree):
        if isinstance(loop, ast.For) and _ROWS_OF_A_BATCH & {call.attr for call in _method_calls(loop.iter)}:
            held = mine - _assigned(loop)
            for call in _method_calls(loop):
                if _root(call) in held and call.attr not in _ADDING | _ROWS_OF_A_BATCH:
                    return ast.unparse(call)
    return None


def _method_calls(tree: ast.AST) -> Iterator[ast.Attribute]:
    """Yield the `x.name` of every call `x.name(…)`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node.func


def _assigned(tree: ast.AST) -> set[str]:
    """Return the names of arguments and of what is assigned."""
    nodes = list(ast.walk(tree))
    stored = {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return stored | {n.arg for n in nodes if isinstance(n, ast.arg)}


def _root(tree: ast.AST) -> str | None:
    while isinstance(tree, ast.Attribute):
        tree = tree.value
    return tree.id if isinstance(tree, ast.Name) else None


def _functions(fn: Any) -> Iterator[Any]:
    """Yield the Python functions of `fn`: itself, or those of its class."""
    if inspect.isfunction(fn) or inspect.ismethod(fn):
        yield inspect.unwrap(fn)
        return
    kind = fn if isinstance(fn, type) else type(fn)
    for base in kind.__mro__:
        if not base.__module__.startswith(("rayflow.", "builtins", "abc")):
            yield from (value for value in vars(base).values() if inspect.isfunction(value))


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
