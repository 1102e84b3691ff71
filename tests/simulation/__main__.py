"""`python -m tests.simulation --seed N [--trace]` replays one seed; `--seeds A:B` runs a range."""

from __future__ import annotations

import argparse
import sys
import time

from tests.simulation.simulate import simulate


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="replay this seed")
    parser.add_argument("--seeds", help="run the seeds A:B (B excluded)")
    parser.add_argument("--trace", action="store_true", help="print every step of the seed")
    args = parser.parse_args()
    if args.seed is not None:
        return _replay(args.seed, args.trace)
    first, last = (int(part) for part in (args.seeds or "0:200").split(":"))
    return _sweep(range(first, last))


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


def _sweep(seeds: range) -> int:
    started, failed = time.monotonic(), []
    for seed in seeds:
        try:
            simulate(seed)
        except Exception as error:
            failed.append(seed)
            print(f"FAILED {type(error).__name__}: {str(error)[:300]}")
    print(f"{len(seeds)} seeds in {time.monotonic() - started:.1f} s, {len(failed)} failed {failed}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
