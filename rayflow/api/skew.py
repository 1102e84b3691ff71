"""`rf.Skew`: what `key_by(..., skew=)` puts between a stream and the operator that aggregates it by key.

Theory of operation
-------------------
::

    local_aggregation   stream ─ combine ═══ hash(key) ═══▶ aggregate
    salt=n              stream ═══ hash(key, salt) ═══▶ combine salted ═══ hash(key) ═══▶ aggregate
    salt="auto"         stream ─ salt ═══ hash(key) ═══▶ aggregate
                                  ╚═ hash(key, salt), hot keys only ═══▶ combine salted ═══ hash(key) ═══▶ aggregate

(─ in one task, ═ an exchange). What these operators hold they flush at every barrier, so they have no state: a
checkpoint of the job with one setting restores into the job with another.

Where a result depends on which of two rows comes first (`first`, `last`, `collect_list`), all that one subtask sends
of a key takes the same salt, which keeps its rows in order: such a key is spread over as many subtasks as send it.
With "auto", which has two ways, such keys are not salted, and the plan says so. So it is with `reduce`, whose function
must be associative (see `skew.reducing`), but may go by order.

What cannot be combined passes as it did, and the plan says so: upsert streams, whose rows may have to be taken back
in the order in which they came; windows of processing time, in which a row belongs when it arrives; sessions, of
which only all rows tell where they begin and end; rows that lie by these keys already. What gets no results by
merging is a plan error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import pyarrow as pa

from rayflow.api.planning import StreamInfo, at_user_line, plan_error
from rayflow.api.side_outputs import SideOutputs, read_side_output
from rayflow.batch.aggregates import AggregateExpr
from rayflow.graph.plan import Exchange, StreamEdge
from rayflow.model.errors import PlanError
from rayflow.operators.contracts import Operator
from rayflow.skew.combiner import CombineOperator
from rayflow.skew.combining import Combination, Slices
from rayflow.skew.salting import SALTED, SaltOperator
from rayflow.state.partials import ROWS, SLICE, WHOLE_ROWS

if TYPE_CHECKING:
    from rayflow.api.streams import DataStream

MOST_SALTS = 4096

_OWN_COLUMNS = (ROWS, SLICE, WHOLE_ROWS)


@dataclass(frozen=True)
class Skew:
    """How `key_by` deals with keys that are not equally frequent. Results equal those without.

    `local_aggregation`: rows of a key (in windows: of a key and slice) become one partial aggregate before they
    leave a subtask, whenever `skew.rows` of these are held, `skew.linger` has passed, or a barrier comes. `salt=n`:
    each key is split over n subtasks, which aggregate it in parts that are then merged. `salt="auto"`: only keys
    that are hot while the job runs are split. For aggregates that merge, in windows of event time or without, and for
    `reduce` with an associative function. Sums, means and variances of floats may differ in the last digits, as
    their order of addition does; `approx_quantile` within its error."""

    local_aggregation: bool = True
    salt: int | Literal["auto"] = 0

    def __post_init__(self) -> None:
        if not isinstance(self.local_aggregation, bool):
            raise plan_error(
                f"rf.Skew(local_aggregation=): expected True or False; got {self.local_aggregation!r}"
            )
        if self.salt == "auto":
            return
        if isinstance(self.salt, bool) or not isinstance(self.salt, int) or not 0 <= self.salt <= MOST_SALTS:
            raise plan_error(
                f"rf.Skew(salt=): expected 0 (none), a number up to {MOST_SALTS} or 'auto'; got {self.salt!r}"
            )

    def __str__(self) -> str:
        parts = ["local aggregation"] if self.local_aggregation else []
        parts += [f"salt {self.salt}"] if self.salt else []
        return ", ".join(parts) or "no skew handling"


@dataclass(frozen=True, slots=True)
class KeyedInput:
    """What comes to an operator by key: its input edges, and what the plan should warn about."""

    edges: list[StreamEdge]
    warnings: tuple[str, ...] = ()

    def warn(self, made: DataStream) -> DataStream:
        """Have the plan of operator `made` warn."""
        made._node.warnings += tuple(
            f"{made._node.spec.name} ({made._node.spec.location or 'unknown line'}): {text}"
            for text in self.warnings
        )
        return made


@dataclass(frozen=True, slots=True)
class Combiner:
    """What makes fewer rows of many before an exchange: `make` gives the operator, `schema` its rows. `goes_by_order`:
    what becomes of rows depends on which comes first."""

    make: Callable[[], Operator]
    schema: pa.Schema
    detail: str
    goes_by_order: bool

    @staticmethod
    def of_aggregates(combination: Combination) -> Combiner:
        """Return what makes partial aggregates."""
        by = ", ".join(combination.keys) + (" and slice" if combination.slices is not None else "")
        names = ", ".join(name for name, _ in combination.aggregates)
        with at_user_line():
            schema = _partial_schema(combination)
        detail = f"{names} by {by}, in part"
        return Combiner(partial(CombineOperator, combination), schema, detail, combination.goes_by_order)


def keyed_input(
    stream: DataStream, keys: tuple[str, ...], skew: Skew | None, combination: Combination | Combiner | str
) -> KeyedInput:
    """Return how the rows of `stream` come to an operator that takes rows, and what comes of combining them (partial
    aggregates of a `Combination`); a text says why nothing is combined."""
    plain = KeyedInput([stream._edge(Exchange("hash", keys))])
    if skew is None or not (skew.local_aggregation or skew.salt):
        return plain
    if stream._info.partitioned_by == keys:
        combination = "the rows lie by these keys already, so nothing is sent"
    if isinstance(combination, str):
        return replace(plain, warnings=(f"skew={skew} has no effect: {combination}",))
    combiner = combination if isinstance(combination, Combiner) else Combiner.of_aggregates(combination)
    if skew.local_aggregation:
        stream = _combined(stream, "combine", combiner, beside=True)
    if skew.salt == "auto":
        return _hot_keys_salted(stream, keys, combiner)
    if skew.salt:
        salted = Exchange("hash", keys, salts=skew.salt, by_producer=combiner.goes_by_order)
        stream = _combined(stream, "combine salted", combiner, edge=stream._edge(salted))
    return KeyedInput([stream._edge(Exchange("hash", keys))])


def _hot_keys_salted(stream: DataStream, keys: tuple[str, ...], combiner: Combiner) -> KeyedInput:
    by_key = Exchange("hash", keys)
    if combiner.goes_by_order:
        text = (
            "skew: salt='auto' salts no keys: first, last, collect_list and reduce go by the order of rows; "
            "salt=n keeps it"
        )
        return KeyedInput([stream._edge(by_key)], (text,))
    info = StreamInfo(schema=stream._info.schema)
    named = ", ".join(keys)
    rows = stream._then(
        "salt", partial(SaltOperator, keys), info, detail=f"hot keys of {named} go another way"
    )
    rows._node.beside_input = True
    rows._env._side_outputs[rows._node.id] = SideOutputs({SALTED: info})
    hot = read_side_output(rows, SALTED, None)
    spread = hot._edge(Exchange("hash", keys, salts=MOST_SALTS))
    parts = _combined(hot, "combine salted", combiner, edge=spread)
    return KeyedInput([rows._edge(by_key), replace(parts._edge(by_key), port=1)])


def no_merging(what: str) -> PlanError:
    """Return the error that `what` gets nothing from `skew=`."""
    return plan_error(
        f"{what}: skew= is for what is merged from parts: aggregate(…) of a keyed stream and of its windows, but for "
        "count windows, and reduce(…). Here all rows of a key have to come to one subtask. To spread a hot key "
        "nevertheless, make a column of random or counted prefixes part of the key, .with_columns(part=…)"
        ".key_by('part', …), and bring the parts together behind; work that needs no key can be dealt out evenly with "
        ".rebalance(), which gives up that rows of a key stay in order and share state"
    )


def _partial_schema(combination: Combination) -> pa.Schema:
    schema = combination.partial_schema()
    for name in combination.schema.names:
        if name in _OWN_COLUMNS:
            raise PlanError(f"skew: the column name {name!r} is reserved; choose another")
    for name in combination.keys:
        if schema.names.count(name) > 1:
            raise PlanError(
                f"skew: key column {name!r} has the name of a part of a result; rename it, or the result"
            )
    return schema


def _combined(
    stream: DataStream, name: str, combiner: Combiner, *, beside: bool = False, edge: StreamEdge | None = None
) -> DataStream:
    made = stream._then(
        name,
        combiner.make,
        StreamInfo(schema=combiner.schema),
        detail=combiner.detail,
        edges=None if edge is None else [edge],
    )
    made._node.beside_input = beside
    return made


def combination_of(
    stream: DataStream,
    keys: tuple[str, ...],
    aggs: Sequence[tuple[str, AggregateExpr]],
    schema: pa.Schema,
    *,
    time_column: str | None,
    grid: Any = None,
    whole_rows: bool = False,
) -> Combination | str:
    """Return what may be combined of the rows of `stream`, or why nothing is. `grid` is that of the windows."""
    if stream._info.is_upsert:
        return "rows of an upsert stream are taken back in the order in which they came"
    slices = None if grid is None else Slices(size=grid.slice_size, offset=grid.offset, margin=grid.margin)
    return Combination(
        keys=keys,
        aggregates=tuple(aggs),
        schema=schema,
        time_column=time_column,
        slices=slices,
        whole_rows=whole_rows,
    )
