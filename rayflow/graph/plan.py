"""The three graphs of a job, as values.

1. *Stream graph*: what the user wrote; a `StreamNode` per operator, `StreamEdge`s between them.
2. *Job graph*: operators fused into chains (`JobVertex`), joined by `JobEdge`s that say how records are
   exchanged. This is what the planner prints and the JobManager deploys; it pickles (cloudpickle).
3. *Execution graph*: subtasks and channels; derived (see `execution.py`), never stored.

The payload of a node (how to make its operator, source or sink) is opaque here: graph and operators do
not know each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from rayflow.model.error_policy import ErrorPolicy
from rayflow.model.ids import EdgeId, VertexId

ExchangeKind = Literal["forward", "hash", "rebalance", "rescale", "broadcast"]
NodeKind = Literal["source", "operator", "sink"]


@dataclass(frozen=True, slots=True)
class Exchange:
    """How records cross an edge. `keys` are the column names of a hash exchange; of a forward one between two chains,
    those by which its rows lie already, so that rows in flight can be dealt out at another parallelism. `salts`: a
    hash exchange that spreads the rows of each key over so many subtasks, in turn, or `by_producer`, so that what
    one producer sends of a key goes to one; 0 for one that does not. `why` tells people what has led the planner to
    it, where that is not plain."""

    kind: ExchangeKind
    keys: tuple[str, ...] = ()
    salts: int = 0
    by_producer: bool = False
    why: str = field(default="", compare=False)

    @property
    def owner_keys(self) -> tuple[str, ...]:
        """The columns by whose key group a row belongs to its subtask; none where it might as well be at another."""
        return () if self.salts else self.keys


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What Ray is asked for, per subtask. `memory` in bytes."""

    num_cpus: float = 0
    num_gpus: float = 0
    memory: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeSpec:
    """Watermarks of a source: event-time `column`, and durations in nanoseconds (None: off)."""

    column: str
    delay: int = 0
    idle_after: int | None = None
    max_ahead: int | None = None
    max_drift: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorSpec:
    """One operator as it is shipped to subtasks.

    `payload` is, by `kind`: a `Source` object; an `OperatorFactory`; a `Sink` object. `location` is the
    user's line as text. `rate_limit` is rows per second over all subtasks (sources and sinks).
    `schema` is the output schema, None where unknown. `detail` says in a few words what it does, for people.
    `side_outputs` are the tags that somebody reads, with the schema of the rows, None where only running tells.
    `errors` says what becomes of rows on which it raises; None until the plan decides.
    """

    uid: str
    name: str
    kind: NodeKind
    payload: Any
    location: str | None = None
    schema: pa.Schema | None = None
    rate_limit: float | None = None
    time: TimeSpec | None = None
    detail: str = ""
    side_outputs: Mapping[str, pa.Schema | None] = field(default_factory=dict)
    errors: ErrorPolicy | None = None


@dataclass(slots=True, kw_only=True)
class StreamEdge:
    """An edge of the stream graph, from the node with id `source`. `port` numbers the target's inputs;
    `tag` names a side output of the source node.

    Exchange `forward` means that any distribution will do: the planner keeps it where both ends have one
    parallelism, and rebalances where they differ. `hash` is dropped where the rows already lie that way."""

    source: int
    exchange: Exchange
    port: int = 0
    tag: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What the rules of a plan judge an operator by (`graph.warnings`); subtasks do not need it.

    `endless`: a source that never ends. `splits`: how many a source has, None where that is not known, or of no
    account. `keeps`: what an operator holds on to for as long as the job runs ("rows of every key"), and `instead`: how
    to have that end; empty for state that has bounds. `sliding_ns`: size and slide of windows. `json`: what it does
    with JSON ("reads", "writes", "parses"). `per_row`: what it does for each row alone and what to do instead;
    `per_row_if_endless`: only a stream that never ends, at no limited rate, makes that a mistake.
    """

    endless: bool = False
    splits: int | None = None
    keeps: str = ""
    instead: str = ""
    sliding_ns: tuple[int, int] | None = None
    json: str = ""
    per_row: str = ""
    per_row_if_endless: bool = False


@dataclass(slots=True, kw_only=True)
class StreamNode:
    """A node of the stream graph. Ids grow from inputs to consumers.

    An empty `spec.uid` asks the planner for a generated one. `parallelism` None means the job's, but no
    more than `max_parallelism`. `partitioned_by` names the output columns that hold, unchanged, the keys
    of the hash exchange upstream (None: unknown). `warnings` are printed with the plan. A `virtual` node only
    brings its inputs together, and is planned away (see `unions`). A source with `rebalance` has its rows dealt out
    anew where its splits are uneven. A node with `beside_input` has the parallelism and the resources of its first
    input, so that the two are chained where anything can be.
    """

    id: int
    spec: OperatorSpec
    inputs: list[StreamEdge] = field(default_factory=list)
    parallelism: int | None = None
    max_parallelism: int | None = None
    partitioned_by: tuple[str, ...] | None = None
    warnings: tuple[str, ...] = ()
    resources: Resources = field(default_factory=Resources)
    chainable: bool = True
    virtual: bool = False
    rebalance: bool = False
    traits: Traits = field(default_factory=Traits)
    beside_input: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobVertex:
    """A chain: `operators` in order; a source can only be the first, a sink only the last."""

    id: VertexId
    operators: tuple[OperatorSpec, ...]
    parallelism: int
    resources: Resources = field(default_factory=Resources)

    @property
    def name(self) -> str:
        """Names of the chain's operators, joined."""
        return " → ".join(op.name for op in self.operators)

    @property
    def is_source(self) -> bool:
        """Whether the chain begins with a source."""
        return self.operators[0].kind == "source"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobEdge:
    """An exchange between two chains; leaves the last operator of `source`, or its side output `tag`."""

    id: EdgeId
    source: VertexId
    target: VertexId
    exchange: Exchange
    port: int = 0
    tag: str | None = None
    schema: pa.Schema | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobGraph:
    """What is deployed. `vertices` in topological order; `edges[i].id == i`."""

    name: str
    max_parallelism: int
    vertices: tuple[JobVertex, ...]
    edges: tuple[JobEdge, ...]
    warnings: tuple[str, ...] = ()

    def vertex(self, vertex: VertexId) -> JobVertex:
        """Return the vertex with that id (KeyError if there is none)."""
        for v in self.vertices:
            if v.id == vertex:
                return v
        raise KeyError(vertex)

    def inputs(self, vertex: VertexId) -> Sequence[JobEdge]:
        """Edges that end in `vertex`."""
        return [e for e in self.edges if e.target == vertex]

    def outputs(self, vertex: VertexId) -> Sequence[JobEdge]:
        """Edges that begin in `vertex`."""
        return [e for e in self.edges if e.source == vertex]
