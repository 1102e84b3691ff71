"""Deterministic simulation of whole small jobs under seeded faults.

`--seed N [--trace]` replays one seed; `--seeds A:B [--jobs 2]` runs a range, `--report FILE` keeps a record of it
that a later run goes on from, `--digests` prints the hash of each trace instead; `--safety` has faults never stop,
`--liveness` has them stop; `--plant NAME` breaks the runtime on purpose (tests/simulation/planted.py) and stops at the
first seed that finds out.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from tests.simulation.planted import BUGS, planted
from tests.simulation.simulate import Mode, simulate
from tests.simulation.sweep import first_failure, settle, sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument("--seeds", default="0:200", help="run the seeds A:B (B excluded)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--trace", action="store_true", help="print every step of the seed")
    parser.add_argument(
        "--coverage", action="store_true", help="with --seeds: tell how often each fault was really met"
    )
    parser.add_argument("--digests", action="store_true", help="with --seeds: print the hash of each trace")
    parser.add_argument("--report", type=Path, help="append to this file; what it has was run already")
    parser.add_argument(
        "--isolated",
        action="store_true",
        help="with --seed or --plant: the manager is cut off as it publishes",
    )
    parser.add_argument("--plant", choices=sorted(BUGS), help="break the runtime on purpose")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--safety", dest="mode", action="store_const", const="safety")
    mode.add_argument("--liveness", dest="mode", action="store_const", const="liveness")
    args = parser.parse_args()
    # The engines warn of every failure that is put on them.
    logging.disable(logging.CRITICAL)
    settle()
    first, last = (int(part) for part in args.seeds.split(":"))
    if args.digests:
        for seed in range(first, last):
            print(f"seed {seed} trace {simulate(seed, keep_trace=1).digest}", flush=True)
        return 0
    if args.plant is not None:
        with planted(args.plant):
            if args.seed is not None:
                return _replay(args.seed, args.trace, args.mode, args.isolated)
            return _hunt(args.plant, range(first, last), args.mode, args.isolated)
    if args.seed is not None:
        return _replay(args.seed, args.trace, args.mode, args.isolated)
    return sweep(
        range(first, last), jobs=args.jobs, mode=args.mode, report=args.report, coverage=args.coverage
    )


def _hunt(name: str, seeds: range, mode: Mode | None, isolated: bool) -> int:
    found = first_failure(seeds, mode, isolated=isolated)
    if found is None:
        print(f"{name}: not found in {len(seeds)} seeds")
        return 1
    seed, failure = found
    print(f"{name}: found after {seed - seeds.start + 1} seeds: {failure}")
    return 0


def _replay(seed: int, trace: bool, mode: Mode | None, isolated: bool) -> int:
    try:
        result = simulate(seed, keep_trace=10_000_000 if trace else 60, mode=mode, isolated=isolated)
    except BaseException as error:
        print("\n".join(getattr(error, "trace_lines", ())))
        raise
    if trace:
        print("\n".join(result.lines))
    print(
        f"seed {seed}: {result.kind}: {' then '.join(result.ends)}, {result.turns} turns, {result.attempts} attempts, "
        f"{result.checkpoints} checkpoints, trace {result.digest[:16]}\n"
        f"  plan: {result.plan}\n  struck: {'; '.join(result.struck) or 'nothing'}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
