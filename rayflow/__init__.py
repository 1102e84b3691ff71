"""rayflow: stateful stream processing in Python on Ray. Exactly-once, event time, credit-based flow control.

    import rayflow as rf
    from rayflow import col

    env = rf.StreamEnvironment(name="demo")
    counts = env.read_text("README.md").flat_map(str.split, returns={"word": str}).key_by("word")
    print(counts.aggregate(n=rf.count()).execute_and_collect(local=True))

Public names load on first use: `import rayflow` alone imports neither Arrow nor Ray.

Map of the code
---------------
Each line imports only what is below it (checked by import-linter); `|` = mutually unaware.

| package | what it holds |
|---|---|
| `cli` | the `rayflow` command: a job file's options, progress, tables, exit codes |
| `api` | what users write: environments, streams, specifications; infers columns, reports mistakes at their line |
| `client` | finding a cluster, submitting, `JobHandle`, `JobResult`; ended jobs from stored metadata |
| `actors` \\| `testing` | the only package that imports Ray: JobManager, Subtasks, Flight channels \\| simulation |
| `runtime` | the engines behind ports, Ray-free, as `step(now)`: a subtask's loop, the job master, the local back end |
| `connectors` \\| `skew` \\| `windows` | files, memory, databases, HTTP \\| combining, salting \\| windowed operators |
| `graph` \\| `operators` | stream graph → chains → subtasks and channels \\| contracts and built-in operators |
| `state` | key index, accumulators, rows on disk, object stores, manifests and state files |
| `batch` | Arrow begins: expressions, hashing, splitting, hot keys, the changelog column |
| `protocol` \\| `observe` | pure decision machines: alignment, credit, checkpoints, commits, failover … \\| metrics |
| `model` | ids, errors, durations, configuration, the memory model, source locations |

How a job runs: `build(env)` adds nodes to a stream graph (`api.plan_builder`); `graph.chaining` fuses them into
chains and decides exchanges; `client` hands the job graph to a JobManager actor, which runs
`runtime.master`; that starts a worker per subtask, each running `runtime.subtask`. Sources are triggered for
checkpoints, barriers flow with the records, every subtask acknowledges its durable snapshot, the manifest is
published, and only then sinks commit. `--local` runs the same engines on threads of one process.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayflow.api.environment import StreamEnvironment as StreamEnvironment
    from rayflow.api.keyed import KeyedStream as KeyedStream
    from rayflow.api.skew import Skew as Skew
    from rayflow.api.specs import Watermark as Watermark
    from rayflow.api.streams import DataStream as DataStream
    from rayflow.api.window_specs import CountWindow as CountWindow
    from rayflow.api.window_specs import GlobalWindow as GlobalWindow
    from rayflow.api.window_specs import OnCount as OnCount
    from rayflow.api.window_specs import OnProcessingTime as OnProcessingTime
    from rayflow.api.window_specs import OnWatermark as OnWatermark
    from rayflow.api.window_specs import Session as Session
    from rayflow.api.window_specs import Sliding as Sliding
    from rayflow.api.window_specs import Tumbling as Tumbling
    from rayflow.api.windowed import WindowedStream as WindowedStream
    from rayflow.batch.aggregates import count as count
    from rayflow.batch.expressions import Expr as Expr
    from rayflow.batch.expressions import col as col
    from rayflow.batch.expressions import lit as lit
    from rayflow.batch.expressions import when as when
    from rayflow.batch.user_aggregates import Aggregate as Aggregate
    from rayflow.cli.job_runner import run as run
    from rayflow.client.finding import Client as Client
    from rayflow.client.finding import connect as connect
    from rayflow.client.handle import JobHandle as JobHandle
    from rayflow.connectors.http_sink import HttpSink as HttpSink
    from rayflow.connectors.sql_sink import SqlSink as SqlSink
    from rayflow.model.error_policy import SideOutput as SideOutput
    from rayflow.model.errors import ConfigError as ConfigError
    from rayflow.model.errors import CorruptCheckpointError as CorruptCheckpointError
    from rayflow.model.errors import JobFailed as JobFailed
    from rayflow.model.errors import PlanError as PlanError
    from rayflow.model.errors import ProtocolViolation as ProtocolViolation
    from rayflow.model.errors import RayflowError as RayflowError
    from rayflow.model.errors import StorageError as StorageError
    from rayflow.model.errors import TransientError as TransientError
    from rayflow.model.errors import UserFunctionError as UserFunctionError
    from rayflow.model.memory import MemoryModel as MemoryModel
    from rayflow.model.results import JobResult as JobResult
    from rayflow.operators.batched_sink import BatchedSink as BatchedSink
    from rayflow.operators.batched_sink import Batching as Batching
    from rayflow.operators.batched_sink import RetryLater as RetryLater
    from rayflow.operators.contracts import Sink as Sink
    from rayflow.operators.contracts import SinkContext as SinkContext
    from rayflow.operators.process_functions import CoProcessFunction as CoProcessFunction
    from rayflow.operators.process_functions import KeyedProcessFunction as KeyedProcessFunction
    from rayflow.operators.process_functions import ProcessContext as ProcessContext
    from rayflow.operators.source_contract import Source as Source
    from rayflow.operators.source_contract import Split as Split
    from rayflow.operators.source_contract import SplitReader as SplitReader
    from rayflow.operators.states import ListState as ListState
    from rayflow.operators.states import MapState as MapState
    from rayflow.operators.states import ValueState as ValueState
    from rayflow.operators.transactions import Transaction as Transaction
    from rayflow.operators.transactions import TransactionalSink as TransactionalSink
    from rayflow.protocol.commits import CommitPermit as CommitPermit

__version__ = "0.1.0"

_MODULES = {
    "rayflow.api.environment": ("StreamEnvironment",),
    "rayflow.api.keyed": ("KeyedStream",),
    "rayflow.api.skew": ("Skew",),
    "rayflow.api.specs": ("Watermark",),
    "rayflow.api.streams": ("DataStream",),
    "rayflow.api.window_specs": (
        "CountWindow",
        "GlobalWindow",
        "OnCount",
        "OnProcessingTime",
        "OnWatermark",
        "Session",
        "Sliding",
        "Tumbling",
    ),
    "rayflow.api.windowed": ("WindowedStream",),
    "rayflow.batch.aggregates": ("count",),
    "rayflow.batch.expressions": ("Expr", "col", "lit", "when"),
    "rayflow.batch.user_aggregates": ("Aggregate",),
    "rayflow.cli.job_runner": ("run",),
    "rayflow.client.finding": ("Client", "connect"),
    "rayflow.client.handle": ("JobHandle",),
    "rayflow.connectors.http_sink": ("HttpSink",),
    "rayflow.connectors.sql_sink": ("SqlSink",),
    "rayflow.model.error_policy": ("SideOutput",),
    "rayflow.model.errors": (
        "ConfigError",
        "CorruptCheckpointError",
        "JobFailed",
        "PlanError",
        "ProtocolViolation",
        "RayflowError",
        "StorageError",
        "TransientError",
        "UserFunctionError",
    ),
    "rayflow.model.memory": ("MemoryModel",),
    "rayflow.model.results": ("JobResult",),
    "rayflow.operators.batched_sink": ("BatchedSink", "Batching", "RetryLater"),
    "rayflow.operators.contracts": ("Sink", "SinkContext"),
    "rayflow.operators.process_functions": ("CoProcessFunction", "KeyedProcessFunction", "ProcessContext"),
    "rayflow.operators.source_contract": ("Source", "Split", "SplitReader"),
    "rayflow.operators.states": ("ListState", "MapState", "ValueState"),
    "rayflow.operators.transactions": ("Transaction", "TransactionalSink"),
    "rayflow.protocol.commits": ("CommitPermit",),
}

_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Load a public name where it is first used."""
    if name == "testing":
        return import_module("rayflow.testing")
    if name not in _HOME:
        raise AttributeError(f"module 'rayflow' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return [*__all__, "__version__"]
