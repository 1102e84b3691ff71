"""Small slips, put into the runtime and protocol code one at a time: does the simulation notice?

    python -m tests.simulation.mutate --list                      # how many there are, by file
    python -m tests.simulation.mutate --sample 60 --draw 7 --seeds 300 [--files rayflow/protocol/credit.py …]
    python -m tests.simulation.mutate --only rayflow/protocol/credit.py:17 --seeds 1000

Each mutant runs in a process of its own, over the seeds from 0 on, until the first that fails; its file on disk stays
as it is. One that takes more than `--limit` seconds of processor time counts as noticed: a loop that never ends is no
secret. A survivor is a hole in the checks, or it changes nothing that a checker may care about (how much is kept for
reports, when an optimisation sets in): somebody has to look.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import logging
import random
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FILES = ("rayflow/protocol", "rayflow/runtime", "rayflow/runtime/master")
_FAILED, _SURVIVED = 10, 11

_COMPARED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}


@dataclass(frozen=True, slots=True)
class Slip:
    """One change: `node` becomes what `make()` returns."""

    node: ast.AST
    said: str
    make: Callable[[], ast.AST]


def slips(tree: ast.Module) -> list[Slip]:
    """Return all slips of a module, in the order of its source."""
    return [slip for node in _reached(tree) for slip in _of(node)]


def _reached(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes in which a slip would matter: no annotations, decorators, messages of errors and docstrings."""
    if isinstance(node, ast.Raise | ast.JoinedStr | ast.Assert | ast.Import | ast.ImportFrom):
        return
    if isinstance(node, ast.FunctionDef) and node.name in ("__repr__", "__str__"):
        return
    yield node
    skipped = {"annotation", "returns", "decorator_list", "bases", "type_comment"}
    for name, value in ast.iter_fields(node):
        if name not in skipped:
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from _reached(child)


def _of(node: ast.AST) -> Iterator[Slip]:
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        flipped = _COMPARED[type(node.ops[0])]()
        said = f"{ast.unparse(node)}  →  {type(flipped).__name__}"
        yield Slip(node, said, lambda: ast.Compare(node.left, [flipped, *node.ops[1:]], node.comparators))
    elif isinstance(node, ast.BoolOp):
        other = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield Slip(
            node, f"{ast.unparse(node)}  →  {type(other).__name__}", lambda: ast.BoolOp(other, node.values)
        )
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
        yield Slip(
            node, f"{ast.unparse(node)}  →  {type(op).__name__}", lambda: ast.BinOp(node.left, op, node.right)
        )
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield Slip(node, f"{node.value}  →  {not node.value}", lambda: ast.Constant(not node.value))
    elif isinstance(node, ast.Constant) and type(node.value) is int:
        yield Slip(node, f"{node.value}  →  {node.value + 1}", lambda: ast.Constant(node.value + 1))
    elif isinstance(node, ast.If | ast.While | ast.IfExp) and ast.unparse(node.test) != "TYPE_CHECKING":
        yield Slip(
            node, f"if {ast.unparse(node.test)}  →  negated", lambda: _with(node, test=_not(node.test))
        )
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield Slip(node, f"{ast.unparse(node)}  →  not called", ast.Pass)
    elif isinstance(node, ast.AugAssign) or (
        isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute | ast.Subscript)
    ):
        yield Slip(node, f"{ast.unparse(node)}  →  deleted", ast.Pass)
    elif isinstance(node, ast.FunctionDef) and node.name != "__init__" and _returns_none(node):
        yield Slip(node, f"{node.name}() returns at once", lambda: _with(node, body=[ast.Return()]))


def _returns_none(function: ast.FunctionDef) -> bool:
    return isinstance(function.returns, ast.Constant) and function.returns.value is None


def _not(test: ast.expr) -> ast.expr:
    return ast.UnaryOp(ast.Not(), test)


def _with(node: ast.AST, **changes: Any) -> ast.AST:
    return type(node)(**{**dict(ast.iter_fields(node)), **changes})


class _Put(ast.NodeTransformer):
    def __init__(self, slip: Slip) -> None:
        self._slip = slip

    def visit(self, node: ast.AST) -> Any:
        if node is self._slip.node:
            return ast.copy_location(self._slip.make(), node)
        return self.generic_visit(node)


class _Loader(SourceFileLoader):
    """Loads one module with the slip of this number."""

    def __init__(self, name: str, path: str, number: int) -> None:
        super().__init__(name, path)
        self._number = number

    def get_code(self, fullname: str) -> CodeType:
        tree = ast.parse(Path(self.path).read_text())
        changed = _Put(slips(tree)[self._number]).visit(tree)
        code = compile(ast.fix_missing_locations(changed), self.path, "exec")
        assert isinstance(code, CodeType)
        return code


class _Finder:
    """Finds that module; the others are found as ever."""

    def __init__(self, file: str, number: int) -> None:
        self._name = file.removesuffix(".py").replace("/", ".").removesuffix(".__init__")
        self._path = str(ROOT / file)
        self._number = number

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != self._name:
            return None
        return importlib.util.spec_from_file_location(
            name, self._path, loader=_Loader(name, self._path, self._number)
        )


def _run_mutant(file: str, number: int, seeds: int, limit_s: int) -> int:
    """Run one mutant in this process; print how it is found."""
    resource.setrlimit(resource.RLIMIT_CPU, (limit_s, limit_s))
    sys.meta_path.insert(0, _Finder(file, number))  # type: ignore[arg-type]
    logging.disable(logging.CRITICAL)
    try:
        from tests.simulation.sweep import first_failure, settle

        settle()
        found = first_failure(range(seeds))
    except Exception as error:
        print(f"does not load: {type(error).__name__}: {error}")
        return _FAILED
    if found is None:
        return _SURVIVED
    print(" ".join(f"seed {found[0]}: {found[1]}".split())[:160])
    return _FAILED


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation.mutate", description=__doc__)
    parser.add_argument("--files", nargs="*", default=FILES, help="files, or folders without those below")
    parser.add_argument("--seeds", type=int, default=300, help="seeds that each mutant has to survive")
    parser.add_argument("--sample", type=int, help="so many mutants, drawn by chance (all without)")
    parser.add_argument("--draw", type=int, default=0, help="seed of that chance")
    parser.add_argument("--limit", type=int, default=600, help="seconds of processor time for a mutant")
    parser.add_argument("--only", help="FILE:NUMBER, one mutant")
    parser.add_argument("--list", action="store_true", help="say how many mutants each file has")
    parser.add_argument("--run", nargs=2, metavar=("FILE", "NUMBER"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        return _run_mutant(args.run[0], int(args.run[1]), args.seeds, args.limit)
    found = {file: slips(ast.parse((ROOT / file).read_text())) for file in _files(args.files)}
    if args.list:
        print("\n".join(f"{len(there):>6}  {file}" for file, there in found.items()))
        return 0
    mutants = [(file, number) for file, there in found.items() for number in range(len(there))]
    if args.only:
        file, _, number = args.only.rpartition(":")
        mutants = [(file, int(number))]
    elif args.sample is not None:
        mutants = random.Random(args.draw).sample(mutants, min(args.sample, len(mutants)))
    survivors = sum(_tell(file, number, found[file][number], args) for file, number in mutants)
    print(f"{len(mutants)} mutants, {survivors} survived {args.seeds} seeds")
    return 1 if survivors else 0


def _files(named: Sequence[str]) -> list[str]:
    paths = [
        p for name in named for p in ([ROOT / name] if name.endswith(".py") else (ROOT / name).glob("*.py"))
    ]
    return sorted(str(path.relative_to(ROOT)) for path in paths)


def _tell(file: str, number: int, slip: Slip, args: argparse.Namespace) -> bool:
    """Run a mutant, print what became of it; return whether it survived."""
    command = [sys.executable, "-m", "tests.simulation.mutate", "--run", file, str(number)]
    command += ["--seeds", str(args.seeds), "--limit", str(args.limit)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    survived = ended.returncode == _SURVIVED
    how = "SURVIVED" if survived else ended.stdout.strip() or "took too long"
    if ended.returncode not in (_SURVIVED, _FAILED) and ended.returncode >= 0:
        how = f"ended with {ended.returncode}: {ended.stderr.strip().splitlines()[-1:]}"
    print(
        f"{file}:{number} line {getattr(slip.node, 'lineno', 0)}: {slip.said.splitlines()[0][:110]}\n    {how}",
        flush=True,
    )
    return survived


if __name__ == "__main__":
    sys.exit(main())
