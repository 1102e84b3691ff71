"""Every query × parallelism × rows as they lie or shuffled × with or without a subtask killed, against the oracles.

`python -m tests.nexmark.matrix --data DIR [--queries q0 …] [--parallelism 1 2 4] [--write tests/nexmark/README.md]`

DIR has `{person,auction,bid}/*.parquet`, and may have `expected/qN.parquet`: then these are what counts, and the
oracle must say the same. Jobs run as with `--local`. Where a subtask is killed the sources are slowed down, so that
checkpoints complete before. Exit code 1 if any result differs.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from tests.nexmark.data import write_shuffled, write_side_table
from tests.nexmark.oracles import difference, oracle
from tests.nexmark.running import QUERIES, ROOT, run

KILL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """One run of a query."""

    parallelism: int
    shuffled: bool
    killed: bool

    @property
    def title(self) -> str:
        """Head of the column."""
        words = [f"p{self.parallelism}"]
        words += ["shuffled"] if self.shuffled else []
        words += ["killed"] if self.killed else []
        return " ".join(words)


class Matrix:
    """Runs the cases of one data set; `scratch` is a folder of its own."""

    def __init__(self, data: Path, scratch: Path) -> None:
        self._folders = {False: data, True: scratch / "shuffled"}
        write_shuffled(data, self._folders[True])
        self._side = write_side_table(scratch / "side.csv")
        self._scratch = scratch
        self._bids = sum(pq.read_metadata(path).num_rows for path in (data / "bid").glob("*.parquet"))

    def expected(self, query: str) -> tuple[pa.Table, str | None]:
        """Return what the query must give, and whom the oracle contradicts."""
        by_oracle = oracle(query, self._folders[False], self._side)
        path = self._folders[False] / "expected" / f"{query}.parquet"
        if not path.exists():
            return by_oracle, None
        given = pq.read_table(path)
        return given, difference(given, by_oracle)

    def wrong(self, query: str, case: Case, expected: pa.Table) -> str | None:
        """Run a case; return what is wrong, None if nothing is."""
        output = self._scratch / "out"
        shutil.rmtree(output, ignore_errors=True)
        # Slow enough for checkpoints to complete, and for the subtask to die, in the midst of the work.
        slow = {"source__rate_limit": self._bids / KILL_SECONDS} if case.killed else {}
        try:
            outcome = run(
                query,
                self._folders[case.shuffled],
                output,
                parallelism=case.parallelism,
                side=self._side,
                delay="10s" if case.shuffled else "4s",
                kills=int(case.killed),
                seed=zlib.crc32(f"{query} {case.title}".encode()),
                **slow,
            )
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        if outcome.restarts != int(case.killed):
            return f"expected {int(case.killed)} restart, got {outcome.restarts}"
        return difference(expected, outcome.rows)


def cases(parallelisms: list[int]) -> Iterator[Case]:
    """Return all cases of a query, in the order of the table."""
    for shuffled in (False, True):
        for killed in (False, True):
            for parallelism in parallelisms:
                yield Case(parallelism=parallelism, shuffled=shuffled, killed=killed)


def table(queries: list[str], parallelisms: list[int], matrix: Matrix) -> Iterator[tuple[str, int]]:
    """Yield the lines of the Markdown table, each with how many results in it are wrong."""
    columns = list(cases(parallelisms))
    yield "| query | rows | oracle | " + " | ".join(case.title for case in columns) + " |", 0
    yield "|---|---|---|" + "---|" * len(columns), 0
    for query in queries:
        expected, contradiction = matrix.expected(query)
        cells, wrong = [], int(contradiction is not None)
        for case in columns:
            found = matrix.wrong(query, case, expected)
            cells.append("✗" if found else "✓")
            if found:
                wrong += 1
                print(f"{query} {case.title}: {found}", file=sys.stderr, flush=True)
        checked = "✗ contradicts the expected rows" if contradiction else "✓"
        yield f"| {query} | {expected.num_rows:,} | {checked} | " + " | ".join(cells) + " |", wrong


def heading(data: Path, seconds: float) -> str:
    """Say where, when and over what the matrix was run."""
    git = ["git", "-C", str(ROOT), "log", "-1", "--format=%h"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
    counts = ", ".join(
        f"{sum(pq.read_metadata(p).num_rows for p in (data / s).glob('*.parquet')):,} {s}s"
        for s in ("person", "auction", "bid")
    )
    return f"""# NEXMark: results of the matrix

Made by `python -m tests.nexmark.matrix --data {data.name}/ --write tests/nexmark/README.md`. ✓: the committed rows are
those of the expected file, where the data set has one, else of the oracle (tests/nexmark/oracles.py). *pN*:
parallelism; *shuffled*: each row group's rows moved within 10 s of event time, `--delay 10s`; *killed*: a random
subtask dies after a checkpoint. With `--local`; q12 by event time.

- data: `{data.name}/`: {counts}
- commit {commit}, {datetime.now(timezone.utc):%Y-%m-%d}, {seconds:.0f} s in all
- {platform.platform()}, {_processor()}, Python {platform.python_version()}, pyarrow {pa.__version__}, DuckDB
  {duckdb.__version__}
"""


def _processor() -> str:
    info = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in info if line.startswith("model name")]
    return f"{len(names)} × {names[0]}" if names else platform.processor()


def main() -> int:
    """Run the matrix."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--queries", nargs="+", default=list(QUERIES), choices=QUERIES)
    parser.add_argument("--parallelism", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--write", type=Path, help="write the results to this file")
    options = parser.parse_args()
    begun, lines, wrong = time.monotonic(), [], 0
    with tempfile.TemporaryDirectory() as scratch:
        matrix = Matrix(options.data.resolve(), Path(scratch))
        for line, found in table(options.queries, options.parallelism, matrix):
            print(line, flush=True)
            lines.append(line)
            wrong += found
    if options.write is not None:
        head = heading(options.data.resolve(), time.monotonic() - begun)
        options.write.write_text("\n".join([head, *lines, ""]))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
