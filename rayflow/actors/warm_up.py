"""What a spare does ahead of need, so that a deployment in it is not a process's first.

Unpickling the graph (by the caller) has imported the job's own modules and the operators'. What is left is what loads
on first use: compiled kernels of the key index, by type of key, and Arrow's compute functions.
No user code is called, nothing is opened.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from rayflow.batch.hashing import key_groups
from rayflow.graph.plan import JobGraph
from rayflow.state.key_index import KeyIndex

_KEYS = {"number": pa.array([1, 2]), "text": pa.array(["a", "b"])}


def warm_up(graph: JobGraph) -> None:
    """Load what a subtask of this job is likely to use."""
    pc.list_functions()
    if not any(edge.exchange.kind == "hash" for edge in graph.edges):
        return
    for name, values in _KEYS.items():
        keys = pa.record_batch({name: values})
        key_groups(keys, [name], graph.max_parallelism)
        KeyIndex(keys.schema).insert(keys)
