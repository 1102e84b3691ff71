"""Builds the task of one subtask from its deployment: gate, chain, source, output edges, and their budgets.

What the network share of a subtask (BACKGROUND M1) is spent on is `protocol.network_budget`'s; all subtasks of a job
have the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rayflow.batch.key_traffic import KeyTraffic
from rayflow.batch.partition import make_partitioner
from rayflow.graph.execution import (
    behind_broadcasts,
    edge_output_channels,
    input_channels,
    main_consumers,
    output_channels,
)
from rayflow.graph.plan import JobEdge, JobVertex, OperatorSpec
from rayflow.model.config import JobConfig
from rayflow.model.ids import ChannelId, EdgeId
from rayflow.observe.metrics import MetricGroup
from rayflow.operators.async_calls import OpenAsyncCalls
from rayflow.operators.batched_sink import BatchedSink
from rayflow.operators.batched_writes import BatchedSinkOperator
from rayflow.operators.contracts import Operator, OperatorContext
from rayflow.operators.sink import SinkOperator
from rayflow.protocol.alignment import BarrierKind
from rayflow.protocol.commits import CommitPermit
from rayflow.protocol.key_groups import KeyGroupRange, key_group_range
from rayflow.protocol.network_budget import NetworkBudget
from rayflow.protocol.rate import RateLimiter
from rayflow.runtime.barriers import BarrierMode
from rayflow.runtime.catching_up import CatchUp, own_rows
from rayflow.runtime.chain import Chain, ChainedOperator
from rayflow.runtime.emitter import Emitter
from rayflow.runtime.gate import InputGate
from rayflow.runtime.messages import CreditFrame, Deploy, Frame
from rayflow.runtime.outputs import OutputChannel, OutputEdge
from rayflow.runtime.parts import TaskParts
from rayflow.runtime.ports import Disk
from rayflow.runtime.replay import RestoredState
from rayflow.runtime.source_driver import SourceDriver
from rayflow.state.disk.share import DiskShare

_THROTTLED_PIECES_PER_SECOND = 20


def own_key_groups(deploy: Deploy) -> KeyGroupRange:
    """Return the key groups of the deployed subtask."""
    vertex = deploy.graph.vertex(deploy.subtask.vertex)
    return key_group_range(deploy.graph.max_parallelism, vertex.parallelism, deploy.subtask.index)


def input_ports(deploy: Deploy) -> dict[ChannelId, int]:
    """Return the subtask's input channels, with the operator input each feeds."""
    edges = deploy.graph.edges
    return {c: edges[c.edge].port for c in input_channels(deploy.graph, deploy.subtask)}


def barrier_mode(config: JobConfig) -> BarrierMode:
    """Return what the job's configuration says of barriers that may overtake."""
    timeout_ms = config.checkpoint_alignment_timeout_ms
    if config.checkpoint_mode == "unaligned":
        return BarrierMode(BarrierKind.URGENT)
    return BarrierMode(BarrierKind.TIMED, timeout_ms) if timeout_ms else BarrierMode()


class Assembly:
    """Makes the parts of a task.

    `send` and `grant` lead to the transport; `open_async_calls`, `warn`, `run_in_background` and `disk` are for its
    operators.
    """

    def __init__(
        self,
        deploy: Deploy,
        config: JobConfig,
        *,
        send: Callable[[ChannelId, Frame], None],
        grant: Callable[[ChannelId, CreditFrame], None],
        now_ms: Callable[[], int],
        open_async_calls: OpenAsyncCalls,
        warn: Callable[[str, str], None],
        run_in_background: Callable[[Callable[[], Any], Callable[[Any, BaseException | None], None]], None],
        disk: Disk,
    ) -> None:
        self._deploy = deploy
        self._config = config
        self._vertex: JobVertex = deploy.graph.vertex(deploy.subtask.vertex)
        self._send = send
        self._grant = grant
        self._now_ms = now_ms
        self._open_async_calls = open_async_calls
        self._warn = warn
        self._run_in_background = run_in_background
        self._disk = disk
        self._metrics = MetricGroup()
        self._budget = NetworkBudget(config.network_bytes)

    def build(self) -> TaskParts:
        """Return the parts, not yet opened."""
        specs = self._vertex.operators
        chained = self._chained_operators()
        throttle, piece_rows = self._throttle(specs[-1])
        channels = {
            c: OutputChannel(c, self._send) for c in output_channels(self._deploy.graph, self._deploy.subtask)
        }
        ports = input_ports(self._deploy)
        source = self._source(specs[0], piece_rows) if self._vertex.is_source else None
        gate = None
        if source is None:
            graph = self._deploy.graph
            outputs = {c: len(output_channels(graph, c.producer)) for c in ports}
            behind = behind_broadcasts(graph)
            gate = InputGate(
                ports,
                self._budget,
                self._config.batch_rows,
                self._grant,
                outputs,
                never_held_back={c for c in ports if c.producer.vertex in behind},
            )
        sink_metrics = chained[-1].context.metrics if chained else self._metrics
        edges = [self._edge(e, channels) for e in self._deploy.graph.outputs(self._vertex.id)]
        emitter = Emitter(edges, self._metrics, drained=lambda: chain.drained(), now_ms=self._now_ms)
        chain = Chain(chained, emitter.emit, emitter.emit_watermark, emitter.emit_idle)
        return TaskParts(
            chain=chain,
            catch_up=partial(self._catch_up, chain, emitter),
            gate=gate,
            source=source,
            edges=edges,
            emitter=emitter,
            channels=channels,
            metrics=self._metrics,
            throttle=throttle,
            throttle_rows=lambda: sink_metrics.counter("rows_in").value,
            piece_rows=piece_rows,
            mode=barrier_mode(self._config),
            pinned=frozenset(c for c in ports if self._is_pinned(c.edge)),
        )

    def _is_pinned(self, edge: EdgeId) -> bool:
        return self._deploy.graph.edges[edge].exchange.kind == "broadcast"

    def _chained_operators(self) -> list[ChainedOperator]:
        makers: list[tuple[OperatorSpec, Callable[[], Operator]]] = [
            (spec, self._sink(spec) if spec.kind == "sink" else spec.payload)
            for spec in self._vertex.operators
            if spec.kind != "source"
        ]
        operators = [make() for _, make in makers]
        sharing = sum(operator.state_place == "disk" for operator in operators)
        return [
            ChainedOperator(operator, self._context(spec, operator, sharing), make)
            for (spec, make), operator in zip(makers, operators, strict=True)
        ]

    def _context(self, spec: OperatorSpec, operator: Operator, sharing: int) -> OperatorContext:
        deploy, restore = self._deploy, self._deploy.restore
        metrics = MetricGroup()
        return OperatorContext(
            job_id=deploy.job_id,
            job_name=deploy.graph.name,
            attempt=deploy.attempt,
            uid=spec.uid,
            name=spec.name,
            subtask_index=deploy.subtask.index,
            parallelism=self._vertex.parallelism,
            max_parallelism=deploy.graph.max_parallelism,
            key_groups=own_key_groups(deploy),
            metrics=metrics,
            now_ms=self._now_ms,
            location=spec.location,
            restored_from=None if restore is None else restore.checkpoint_id,
            foreign_job=None if restore is None else restore.foreign_job,
            restored_permit=None
            if restore is None
            else CommitPermit(deploy.job_id, deploy.attempt, restore.checkpoint_id),
            batch_rows=self._config.batch_rows,
            config=self._config,
            consumers=main_consumers(deploy.graph, self._vertex.id),
            salted=deploy.salted.get(spec.uid, ()),
            side_outputs=dict(spec.side_outputs),
            options=dict(self._config.storage_options),
            errors=spec.errors or "fail",
            warn=self._warn,
            run_in_background=self._run_in_background,
            open_async_calls=self._open_async_calls,
            disk=self._disk_share(spec, metrics, sharing) if operator.state_place == "disk" else None,
        )

    def _disk_share(self, spec: OperatorSpec, metrics: MetricGroup, sharing: int) -> DiskShare | None:
        """Return an operator's part of the disk backend: the budget for state is split evenly."""
        if self._config.state_backend != "disk":
            return None
        subtask, folder = self._deploy.subtask, self._config.state_dir
        name = f"{self._deploy.job_id}-{spec.uid}-{subtask.index}-a{self._deploy.attempt}"
        return DiskShare(
            partial(self._disk.open_rows, folder, name),
            self._config.managed_bytes // sharing,
            self._disk.ticks_ns,
            metrics,
            self._disk.give_back,
        )

    def _catch_up(self, chain: Chain, emitter: Emitter, restored: RestoredState) -> CatchUp:
        specs = [spec for spec in self._vertex.operators if spec.kind != "source"]
        restore = self._deploy.restore
        return CatchUp(
            restored,
            index_of=chain.index_of,
            width=len(specs),
            sink=next((i for i, spec in enumerate(specs) if spec.kind == "sink"), len(specs)),
            fresh=chain.fresh,
            emit=emitter.emit,
            own=own_rows(own_key_groups(self._deploy), self._deploy.graph.max_parallelism),
            checkpoint_id=0 if restore is None else restore.checkpoint_id,
        )

    def _sink(self, spec: OperatorSpec) -> Callable[[], Operator]:
        if isinstance(spec.payload, BatchedSink):
            return partial(BatchedSinkOperator, spec.payload, self._share(spec))
        return partial(SinkOperator, spec.payload)

    def _share(self, sink: OperatorSpec) -> float | None:
        return None if sink.rate_limit is None else sink.rate_limit / self._vertex.parallelism

    def _throttle(self, last: OperatorSpec) -> tuple[RateLimiter | None, int]:
        share = self._share(last) if last.kind == "sink" else None
        # A batched sink limits what it sends, however often.
        if share is None or isinstance(last.payload, BatchedSink):
            return None, 1 << 62
        piece = max(1, min(self._config.batch_rows, int(share / _THROTTLED_PIECES_PER_SECOND)))
        return RateLimiter(share, piece), piece

    def _source(self, spec: OperatorSpec, piece_rows: int) -> SourceDriver:
        restore = self._deploy.restore
        return SourceDriver(
            spec,
            batch_bytes=self._budget.taken_bytes,
            parallelism=self._vertex.parallelism,
            batch_rows=min(self._config.batch_rows, piece_rows),
            watermark=None if restore is None else restore.watermark,
            warn=self._warn,
        )

    def _edge(self, edge: JobEdge, channels: dict[ChannelId, OutputChannel]) -> OutputEdge:
        graph, own = self._deploy.graph, self._deploy.subtask
        mine = [channels[c] for c in edge_output_channels(graph, edge, own)]
        consumers = graph.vertex(edge.target).parallelism
        senders = max(len(input_channels(graph, channel.id.consumer)) for channel in mine)
        budget = self._budget
        return OutputEdge(
            channels=mine,
            partitioner=make_partitioner(
                edge.exchange.kind,
                edge.exchange.keys,
                graph.max_parallelism,
                consumers,
                own.index,
                self._vertex.parallelism,
                self._traffic(edge),
                salts=edge.exchange.salts,
                by_producer=edge.exchange.by_producer,
            ),
            tag=edge.tag,
            batch_rows=self._config.batch_rows,
            linger_ms=self._config.batch_linger_ms,
            gather_bytes=budget.gathered_bytes // len(graph.outputs(self._vertex.id)),
            frame_bytes=budget.frame_bytes(senders, len(channels)),
            limit_bytes=budget.queue_bytes(len(channels)),
            pinned=self._is_pinned(edge.id),
        )

    def _traffic(self, edge: JobEdge) -> KeyTraffic | None:
        shown, exchange = self._config.metrics_keys, edge.exchange
        if exchange.kind != "hash" or exchange.salts or shown == "off":
            return None
        return KeyTraffic(exchange.keys, self._deploy.graph.max_parallelism, show_keys=shown == "shown")
