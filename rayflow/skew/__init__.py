"""Skewed keys: aggregates are combined before the exchange, and keys that are hot are spread over several subtasks.

| module | holds |
|---|---|
| `combining` | what is combined: keys, aggregates, slices; the columns of partial aggregates |
| `combiner` | `CombineOperator`: rows, or partial aggregates, into fewer partial aggregates |
| `reducing` | `ReduceBeforeOperator`: rows into fewer rows, by the function of a `reduce` |
| `holding` | what both share: held for a while, let go as a whole, nothing to restore |
| `entries` | which entry belongs to a key, or to a key in a slice |
| `reduction` | whether combining pays, by counts |
| `salting` | `SaltOperator`: rows of hot keys take another way |

"""
