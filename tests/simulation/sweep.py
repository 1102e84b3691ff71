"""Runs ranges of seeds, shared among processes, with a record on disk that a later run goes on from."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

from rayflow.testing.met import ROWS
from tests.simulation.simulate import Mode, Result, simulate

_BLOCK = 100


class Verdict(NamedTuple):
    """What became of a seed: its failure (None: none), or what it led to, without its trace."""

    seed: int
    failure: str | None
    result: Result | None

    @property
    def end(self) -> str:
        """How it ended."""
        return "failed" if self.result is None else " then ".join(self.result.ends)

    @property
    def met(self) -> Mapping[str, int]:
        """How often it met each fault."""
        return {} if self.result is None else self.result.met


def sweep(
    seeds: range,
    *,
    jobs: int = 1,
    mode: Mode | None = None,
    report: Path | None = None,
    coverage: bool = False,
) -> int:
    """Run the seeds; print failures and a summary, with `coverage` how often each fault was met; return the exit
    code: with `coverage`, not 0 either where one never was."""
    started, failed, ends, done = time.monotonic(), [], Counter[str](), 0
    met, meeting = Counter[str](), Counter[str]()
    with judges(jobs, mode) as verdicts:
        for block in _blocks(seeds, report):
            broken = []
            for verdict in verdicts(block):
                done += 1
                ends[verdict.end] += 1
                met.update(verdict.met)
                meeting.update(name for name, times in verdict.met.items() if times)
                if verdict.failure is not None:
                    broken.append((verdict.seed, verdict.failure))
                    print(f"FAILED {verdict.failure}", flush=True)
            failed += [seed for seed, _ in broken]
            if report is not None:
                _record(report, block, broken)
    took_s = time.monotonic() - started
    print(f"{done} seeds in {took_s:.1f} s, {len(failed)} failed {failed}; {dict(ends.most_common())}")
    never = [row for row in ROWS if not meeting[row]] if coverage else []
    if coverage:
        print(f"{'fault':<55}{'times':>8}{'seeds':>8}")
        for row in ROWS:
            print(f"{row:<55}{met[row]:>8}{meeting[row]:>8}")
        print(f"never met: {', '.join(never) or 'none'}")
    return 1 if failed or never else 0


def first_failure(
    seeds: Iterable[int], mode: Mode | None = None, *, isolated: bool = False
) -> tuple[int, str] | None:
    """Return the first seed that fails, and how. `isolated`: see `simulate`."""
    for seed in seeds:
        verdict = _verdict(mode, seed, isolated)
        if verdict.failure is not None:
            return seed, verdict.failure
    return None


@contextmanager
def judges(jobs: int, mode: Mode | None = None) -> Iterator[Callable[[range], Iterator[Verdict]]]:
    """Start so many processes; give a function that runs seeds in them, and yields what became of each, in order."""
    run = partial(_verdict, mode)
    if jobs == 1:
        yield partial(map, run)
        return
    with multiprocessing.get_context("spawn").Pool(jobs, initializer=settle) as pool:
        yield lambda seeds: pool.imap(run, seeds, chunksize=10)


def settle() -> None:
    """Keep the collector away from what was imported: it would look through that again and again, and free nothing."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def _verdict(mode: Mode | None, seed: int, isolated: bool = False) -> Verdict:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        result = simulate(seed, keep_trace=20, mode=mode, isolated=isolated)
    except Exception as error:
        return Verdict(seed, f"{type(error).__name__}: {str(error)[:400]}", None)
    finally:
        logging.disable(before)
    return Verdict(seed, None, replace(result, lines=()))


def _blocks(seeds: range, report: Path | None) -> Iterator[range]:
    """Cut the seeds into blocks, without those that the report has."""
    if report is None:
        yield seeds
        return
    lines = report.read_text().splitlines() if report.exists() else []
    done = {line.split()[1] for line in lines if line.startswith("block ")}
    for first in range(seeds.start, seeds.stop, _BLOCK):
        block = range(first, min(first + _BLOCK, seeds.stop))
        if f"{block.start}:{block.stop}" not in done:
            yield block


def _record(report: Path, block: range, broken: list[tuple[int, str]]) -> None:
    with report.open("a") as file:
        for _, failure in broken:
            file.write(f"failed {failure!r}\n")
        file.write(f"block {block.start}:{block.stop} {len(broken)} failed\n")
