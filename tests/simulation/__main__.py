"""`python -m tests.simulation --seed N [--trace]` replays one seed; `--seeds A:B [--jobs 2]` runs a range."""

from __future__ import annotations

import argparse
import sys

from tests.simulation.simulate import simulate
from tests.simulation.sweep import sweep


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument("--seeds", default="0:200", help="run the seeds A:B (B excluded)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share the seeds")
    parser.add_argument("--trace", action="store_true", help="print every step of the seed")
    args = parser.parse_args()
    if args.seed is not None:
        return _replay(args.seed, args.trace)
    first, last = (int(part) for part in args.seeds.split(":"))
    return sweep(range(first, last), args.jobs)


def _replay(seed: int, trace: bool) -> int:
    try:
        outcome = simulate(seed, keep_trace=10_000_000 if trace else 60)
    except BaseException as error:
        print("\n".join(getattr(error, "trace_lines", ())))
        raise
    if trace:
        print("\n".join(outcome.lines))
    print(
        f"seed {seed}: {outcome.kind}, {outcome.turns} turns, {outcome.attempts} attempts, "
        f"{outcome.checkpoints} checkpoints, trace {outcome.digest[:16]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
