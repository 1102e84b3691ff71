"""Runs a range of seeds, shared among processes."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator

from tests.simulation.simulate import simulate


def sweep(seeds: range, jobs: int) -> int:
    started, failed = time.monotonic(), []
    for seed, failure in _verdicts(seeds, jobs):
        if failure is not None:
            failed.append(seed)
            print(f"FAILED {failure}", flush=True)
    print(f"{len(seeds)} seeds in {time.monotonic() - started:.1f} s, {len(failed)} failed {failed}")
    return 1 if failed else 0


def _verdicts(seeds: range, jobs: int) -> Iterator[tuple[int, str | None]]:
    if jobs == 1:
        yield from map(_verdict, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(_verdict, seeds, chunksize=10)


def _verdict(seed: int) -> tuple[int, str | None]:
    try:
        simulate(seed)
    except Exception as error:
        return seed, f"{type(error).__name__}: {str(error)[:300]}"
    return seed, None
