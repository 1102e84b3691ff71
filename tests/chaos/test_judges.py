"""The judges of the soak find what is wrong, and nothing where nothing is."""

from __future__ import annotations

import random

import numpy as np
import pyarrow as pa
import pytest

from tests.chaos.exactness import check_counts, check_rows
from tests.chaos.flatness import trend
from tests.chaos.soak_job import KEYS, SPLITS, rows

PER_SPLIT = 500


def ledger(order_seed: int = 1) -> pa.Table:
    """What the job writes where all goes well: the splits' rows in some interleaving."""
    made = pa.Table.from_batches([rows(split, 0, PER_SPLIT) for split in range(SPLITS)])
    table = made.take(np.random.default_rng(order_seed).permutation(made.num_rows))
    seq, total, seqs, totals = [0] * KEYS, [0] * KEYS, [], []
    for row in table.to_pylist():
        seq[row["key"]] += 1
        total[row["key"]] += row["value"]
        seqs.append(seq[row["key"]])
        totals.append(total[row["key"]])
    return table.append_column("seq", pa.array(seqs)).append_column("total", pa.array(totals))


def counts() -> pa.Table:
    grouped = ledger().group_by("key").aggregate([([], "count_all"), ("value", "sum")])
    return grouped.rename_columns(["key", "rows", "total"])


def changed(table: pa.Table, column: str, at: int, value: int) -> pa.Table:
    values = table[column].to_numpy().copy()
    values[at] = value
    return table.set_column(table.schema.get_field_index(column), column, pa.array(values))


def test_rows_in_whatever_order_are_exact() -> None:
    for seed in range(3):
        assert check_rows(ledger(seed), PER_SPLIT).exact


def test_a_lost_row_is_found_and_leaves_a_gap_in_its_key() -> None:
    verdict = check_rows(ledger().slice(1), PER_SPLIT)
    assert verdict.lost == 1
    assert verdict.differing > 0


def test_a_row_that_is_there_twice_is_found() -> None:
    table = ledger()
    verdict = check_rows(pa.concat_tables([table, table.slice(7, 1)]), PER_SPLIT)
    assert (verdict.lost, verdict.duplicated) == (0, 1)


@pytest.mark.parametrize("column", ["key", "value", "seq", "total"])
def test_a_wrong_value_is_found(column: str) -> None:
    assert check_rows(changed(ledger(), column, 11, 3), PER_SPLIT).differing > 0


def test_a_row_beyond_the_end_is_found() -> None:
    assert check_rows(changed(ledger(), "n", 11, PER_SPLIT), PER_SPLIT).differing > 0


def test_counts_are_exact_or_not() -> None:
    table = counts()
    assert check_counts(table, PER_SPLIT).exact
    assert check_counts(table.slice(1), PER_SPLIT).lost == 1
    assert check_counts(pa.concat_tables([table, table.slice(0, 1)]), PER_SPLIT).duplicated == 1
    assert check_counts(changed(table, "rows", 5, 1), PER_SPLIT).differing == 1


def noise(seed: int, drift_per_s: float) -> list[tuple[float, float]]:
    chance = random.Random(seed)
    return [(10.0 * i, 1000 + chance.uniform(-150, 150) + drift_per_s * 10 * i) for i in range(360)]


def test_noise_is_flat_and_a_slow_growth_within_it_is_not() -> None:
    for seed in range(20):
        assert trend("noise", noise(seed, 0)).flat
        # 180 in an hour, of a noise of ±150.
        assert not trend("growth", noise(seed, 0.05)).flat


def test_a_growth_at_the_very_end_is_seen() -> None:
    steady = [(10.0 * i, 100.0) for i in range(300)]
    leaking = [(10.0 * i, 100.0 + 5 * (i - 300)) for i in range(300, 400)]
    assert not trend("late", [*steady, *leaking]).flat


def test_what_shrinks_is_flat_and_too_few_samples_are_refused() -> None:
    assert trend("shrinking", [(float(i), 100.0 - i) for i in range(50)]).flat
    with pytest.raises(ValueError, match="7 samples say nothing"):
        trend("few", [(float(i), 1.0) for i in range(7)])
