"""What the API tells the plan's rules about an operator (see `graph.warnings`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rayflow.api.code_reading import calls_per_row, mentions, parses_json
from rayflow.connectors.simple_sinks import PrintSink
from rayflow.graph.plan import Traits
from rayflow.operators.batched_sink import BatchedSink
from rayflow.operators.contracts import Sink
from rayflow.operators.states import declared_states

_FORGETTING = frozenset({"clear", "remove"})
_A_WINDOW = "a window's state ends with the window: .window(…).aggregate(…)"


def keeps_aggregates(schema: pa.Schema, keys: Sequence[str]) -> Traits:
    """Return the traits of what holds aggregates by `keys`."""
    return _per_key("the aggregates of every key", _A_WINDOW, schema, keys)


def keeps_rows(schema: pa.Schema, keys: Sequence[str]) -> Traits:
    """Return the traits of what holds rows by `keys`."""
    instead = "an rf.KeyedProcessFunction whose state has ttl= forgets, and so does a window"
    return _per_key("rows of every key", instead, schema, keys)


def keeps_keys(method: str, schema: pa.Schema, keys: Sequence[str]) -> Traits:
    """Return the traits of what remembers which `keys` it has seen, and never forgets them."""
    if method == "bloom":
        return _per_key("a Bloom filter of every key", "give it ttl=, such as '7d'", schema, keys)
    instead = "give it ttl=, such as '7d', or use method='bloom', which takes the least for each"
    return _per_key("every key", instead, schema, keys)


def of_process(kind: type, keys: Sequence[str], schema: pa.Schema | None) -> Traits:
    """Return the traits of a process function: state that has no ttl, and that no method of it clears."""
    json = "parses" if parses_json(kind) else ""
    endless = [
        name
        for name, state in declared_states(kind).items()
        if state.ttl_ms is None and not state.is_broadcast
    ]
    if not keys or not endless or schema is None or mentions(kind, _FORGETTING):
        return Traits(json=json)
    kept = _per_key(
        f"state {', '.join(endless)} of every key",
        "give it ttl=, such as rf.ValueState(…, ttl='7d'), or .clear() it in on_timer",
        schema,
        keys,
    )
    return Traits(keeps=kept.keeps, instead=kept.instead, json=json)


def of_function(fn: Any) -> Traits:
    """Return the traits of a function of rows."""
    return Traits(json="parses" if parses_json(fn) else "")


def of_sink(sink: Sink, *, json: bool) -> Traits:
    """Return the traits of a sink; `json`: it writes files of JSON."""
    if isinstance(sink, PrintSink):
        shown = (
            "prints each row of a stream that never ends; .write_parquet(…) keeps rows, .discard() measures"
        )
        return Traits(per_row=shown, per_row_if_endless=True)
    if isinstance(sink, BatchedSink):
        alone = "writes each row in a request of its own; rf.Batching(rows=5_000) is the default, and many times faster"
        return Traits(per_row=alone if sink.batching.rows == 1 else "")
    call = None if type(sink).__module__.startswith("rayflow.") else calls_per_row(type(sink).write)
    if call is not None:
        return Traits(
            per_row=f"its write() calls {call} for each row alone; write a batch with one call, or derive it from "
            "rf.BatchedSink, which gathers rows into batches"
        )
    return Traits(json="writes" if json else "")


def _per_key(keeps: str, instead: str, schema: pa.Schema, keys: Sequence[str]) -> Traits:
    # Of a few values, however long the stream is.
    few = all(_has_few_values(schema.field(key).type) for key in keys)
    return Traits() if few else Traits(keeps=keeps, instead=instead)


def _has_few_values(type_: pa.DataType) -> bool:
    return bool(
        pa.types.is_boolean(type_) or pa.types.is_dictionary(type_) or type_ in (pa.int8(), pa.uint8())
    )
