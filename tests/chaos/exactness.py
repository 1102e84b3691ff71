"""Whether the output of `soak_job` is exactly what its rows' numbers say: lost, repeated and differing rows. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from tests.chaos.soak_job import SCHEMA, SPLITS, rows

_EXAMPLES = 5


@dataclass
class Verdict:
    """What is wrong with an output; nothing, if all counts are zero."""

    expected: int = 0
    found: int = 0
    lost: int = 0
    duplicated: int = 0
    differing: int = 0
    examples: list[str] = field(default_factory=list)

    @property
    def exact(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.lost or self.duplicated or self.differing)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return {**asdict(self), "exact": self.exact}

    def _example(self, text: str) -> None:
        if len(self.examples) < _EXAMPLES:
            self.examples.append(text)


def check_rows(found: pa.Table, per_split: int) -> Verdict:
    """Judge `rows`: each row of each split once, as it was made, and each key's rows numbered and summed up without a
    gap."""
    verdict = Verdict(expected=SPLITS * per_split, found=found.num_rows)
    columns = {name: found[name].to_numpy() for name in (*SCHEMA.names, "seq", "total")}
    identity = columns["split"] * per_split + columns["n"]
    known = (columns["split"] >= 0) & (columns["split"] < SPLITS) & (columns["n"] < per_split)
    for i in np.flatnonzero(~known):
        verdict.differing += 1
        verdict._example(f"split {columns['split'][i]} has no row {columns['n'][i]}")
    times = np.bincount(identity[known], minlength=SPLITS * per_split)
    verdict.lost = int((times == 0).sum())
    verdict.duplicated = int((times[times > 1] - 1).sum())
    for i in np.flatnonzero(times != 1)[:_EXAMPLES]:
        verdict._example(f"row {i % per_split} of split {i // per_split} is there {times[i]} times")
    _check_values(columns, known, verdict)
    _check_ledger(columns, verdict)
    return verdict


def check_counts(found: pa.Table, per_split: int) -> Verdict:
    """Judge `counts`: the count and the sum of every key."""
    made = [rows(split, 0, per_split) for split in range(SPLITS)]
    key = np.concatenate([batch["key"].to_numpy() for batch in made])
    value = np.concatenate([batch["value"].to_numpy() for batch in made])
    expected = dict(enumerate(zip(np.bincount(key).tolist(), np.bincount(key, value).astype(int).tolist())))
    verdict = Verdict(expected=len(expected), found=found.num_rows)
    seen: set[int] = set()
    for row in found.to_pylist():
        if row["key"] in seen:
            verdict.duplicated += 1
        elif expected.get(row["key"]) != (row["rows"], row["total"]):
            verdict.differing += 1
            verdict._example(f"{row}; expected {expected.get(row['key'])}")
        seen.add(row["key"])
    verdict.lost = len(expected.keys() - seen)
    return verdict


def _check_values(columns: dict[str, np.ndarray], known: np.ndarray, verdict: Verdict) -> None:
    if not known.any():
        return
    per_split = int(columns["n"][known].max()) + 1
    made = pa.Table.from_batches([rows(split, 0, per_split) for split in range(SPLITS)])
    at = (columns["split"] * per_split + columns["n"])[known]
    for name in ("key", "value"):
        wrong = made[name].to_numpy()[at] != columns[name][known]
        verdict.differing += int(wrong.sum())
        for i in np.flatnonzero(wrong)[:_EXAMPLES]:
            verdict._example(f"{name} of row {columns['n'][known][i]} is {columns[name][known][i]}")


def _check_ledger(columns: dict[str, np.ndarray], verdict: Verdict) -> None:
    """Each key's rows in the order of their numbers must be numbered 1, 2, 3 …, and `total` must be the sum so far."""
    order = np.lexsort((columns["seq"], columns["key"]))
    key, seq, total, value = (columns[name][order] for name in ("key", "seq", "total", "value"))
    if len(key) == 0:
        return
    first = np.r_[True, key[1:] != key[:-1]]
    starts = np.flatnonzero(first)
    place = np.arange(len(key)) - np.repeat(starts, np.diff(np.r_[starts, len(key)])) + 1
    sums = np.cumsum(value)
    before = np.repeat(sums[starts] - value[starts], np.diff(np.r_[starts, len(key)]))
    wrong = (seq != place) | (total != sums - before)
    verdict.differing += int(wrong.sum())
    for i in np.flatnonzero(wrong)[:_EXAMPLES]:
        verdict._example(
            f"key {key[i]}: row {place[i]} of it has number {seq[i]} and total {total[i]}; "
            f"expected total {sums[i] - before[i]}"
        )
