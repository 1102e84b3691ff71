"""Starts, finds and ends the worker actors of a job.

They are *detached* (no process owns them) and named after the job, so that they outlive their manager: the
next one finds them again by name and takes them over, which costs milliseconds where new processes cost
seconds. What ends them is their manager, or else their lease. All calls may block on Ray's control store;
the pool makes them on its own thread.
"""

from __future__ import annotations

import itertools
import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.actors.placement import Placement
from rayflow.actors.specs import NAMESPACE, Located, WorkerSpec, worker_prefix
from rayflow.actors.subtask_actor import SubtaskActor
from rayflow.graph.plan import Resources

_log = logging.getLogger(__name__)

_ADOPTION_S = 2.0


@dataclass(slots=True, eq=False)
class Process:
    """A worker actor, and the node it was placed on by us (None: by Ray)."""

    actor: Any
    node: str | None


class Launcher:
    """The worker actors of one job under one tenure."""

    def __init__(self, spec: WorkerSpec, manager: Any, tenure: int) -> None:
        self._spec = spec
        self._manager = manager
        self._tenure = tenure
        self._placement = Placement()
        self._numbers = itertools.count()

    def start(self, resources: Resources) -> Process:
        """Start an actor; it need not be up when this returns. Raises what Ray raises."""
        node = self._choose_node(resources)
        # Soft affinity would leave actors without resources wherever Ray likes. If the node is just dying the
        # actor dies too, is reported lost, and the next one goes elsewhere.
        strategy: Any = "SPREAD" if node is None else NodeAffinitySchedulingStrategy(node, soft=False)
        options = {
            "name": f"{worker_prefix(self._spec.job_id)}{self._tenure}.{next(self._numbers)}",
            "namespace": NAMESPACE,
            "lifetime": "detached",
            "num_cpus": resources.num_cpus,
            "num_gpus": resources.num_gpus,
            "memory": resources.memory,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": strategy,
        }
        actor = ray.remote(SubtaskActor).options(**options).remote(self._spec, self._manager, self._tenure)
        return Process(actor, node)

    def survivors(self) -> list[tuple[Process, Located | None]]:
        """Take over the workers that managers before this one left, as many as answer in `_ADOPTION_S`; end the
        others. They have dropped their work when they answer. None: it obeys a later manager, and stays with that."""
        asked = {actor.adopt.remote(self._tenure, self._manager): actor for actor in self._left_behind()}
        ready, silent = (
            ray.wait(list(asked), num_returns=len(asked), timeout=_ADOPTION_S) if asked else ([], [])
        )
        found: list[tuple[Process, Located | None]] = []
        for ref in ready:
            try:
                located: Located | None = ray.get(ref)
            except RayError:
                # It was just ending.
                continue
            node = None if located is None else located.node_id
            if node is not None:
                self._placement.add(node)
            found.append((Process(asked[ref], node), located))
        for ref in silent:
            ray.kill(asked[ref], no_restart=True)
        return found

    def end(self, process: Process, *, lost: bool) -> None:
        """End the actor for good; `lost`: since it is dead or out of reach, and others better avoid its node for a
        while."""
        if process.node is not None:
            self._placement.remove(process.node, time.monotonic(), lost=lost)
        ray.kill(process.actor, no_restart=True)

    def _left_behind(self) -> list[Any]:
        prefix = worker_prefix(self._spec.job_id)
        actors = []
        for known in ray.util.list_named_actors(all_namespaces=True):
            if known["namespace"] == NAMESPACE and known["name"].startswith(prefix):
                try:
                    actors.append(ray.get_actor(known["name"], namespace=NAMESPACE))
                except ValueError:
                    _log.info("worker %s has just ended", known["name"])
        return actors

    def _choose_node(self, wanted: Resources) -> str | None:
        nodes = sorted(node["NodeID"] for node in ray.nodes() if node["Alive"])
        if wanted.num_cpus or wanted.num_gpus or wanted.memory or not nodes:
            return None
        return self._placement.choose(nodes, time.monotonic())
