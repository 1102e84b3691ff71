"""What faults do to the world: processes are signalled by an agent on their own node, nodes are killed.

An agent is started on a node when it is first needed there, which takes some seconds, and ended with the chaos. It
asks Ray for no resources. Nodes can be killed where this machine runs them: on the cluster of `rayflow cluster up`.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any, Protocol

from rayflow.client import local_cluster
from rayflow.client.chaos.schedule import Fault
from rayflow.client.chaos.victims import Process, Role, processes
from rayflow.model.errors import ConfigError, TransientError

_START_TIMEOUT_S = 60.0
_CALL_TIMEOUT_S = 15.0
_ASK_S = 5.0


class Effects(Protocol):
    """What a schedule needs. Each returns whether somebody was hit."""

    def prepare(self, node_ids: set[str]) -> None:
        """Get ready to act on these nodes, where that takes time."""

    def hidden(self, description: dict[str, Any]) -> list[Process]:
        """Return the processes of the job that its description does not show: spares, a manager that stands by."""

    def kill(self, process: Process) -> bool:
        """Kill a process."""

    def stop(self, process: Process, for_ms: int) -> bool:
        """Stop a process for a while."""

    def fail_writes(self, process: Process, for_ms: int) -> bool:
        """Have a process's writes to files fail for a while."""

    def killable_nodes(self) -> list[str]:
        """Return the ids of nodes that can be killed, in a stable order."""

    def kill_node(self, node_id: str) -> str:
        """Kill a node; return what it was called."""

    def replace_node(self) -> str:
        """Start another node; return what it is called."""

    def special(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        """Inject what only some clusters have; return who was hit. ConfigError where it cannot be done."""

    def close(self) -> None:
        """Undo what lasts, and leave nothing behind."""


class RayEffects:
    """`Effects` on the Ray cluster that this process is connected to."""

    def __init__(self) -> None:
        self._agents: dict[str, Any] = {}
        self._sessions: dict[str, int] = {}
        self._stopped: list[Process] = []

    def prepare(self, node_ids: set[str]) -> None:
        """Start the agents that are missing, all at once. Nodes that are gone are passed over."""
        import ray

        missing = sorted(node_ids - self._agents.keys())
        self._agents.update((node_id, self._start(node_id)) for node_id in missing)
        waiting = {node_id: self._agents[node_id].session.remote() for node_id in missing}
        for node_id, answer in waiting.items():
            try:
                self._sessions[node_id] = ray.get(answer, timeout=_START_TIMEOUT_S)
            except ray.exceptions.RayError:
                self._forget(node_id)

    def hidden(self, description: dict[str, Any]) -> list[Process]:
        """Ask every actor of the job where it is; who does not answer is passed over."""
        import ray

        from rayflow.actors.specs import NAMESPACE, manager_name, worker_prefix

        job_id = description["job_id"]
        roles: dict[str, Role] = {manager_name(job_id, seat): "jobmanager" for seat in (0, 1)}
        known = {(process.node_id, process.pid) for process in processes(description)}
        asked: dict[Any, tuple[str, Role]] = {}
        for actor in ray.util.list_named_actors(all_namespaces=True):
            name = actor["name"]
            role: Role | None = "subtask" if name.startswith(worker_prefix(job_id)) else roles.get(name)
            if actor["namespace"] == NAMESPACE and role is not None:
                with suppress(ValueError, ray.exceptions.RayError):
                    found = ray.get_actor(name, namespace=NAMESPACE)
                    asked[found.__ray_call__.remote(_where)] = name, role
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_ASK_S) if asked else ([], [])
        hidden = []
        for ref in ready:
            with suppress(ray.exceptions.RayError):
                node_id, pid = ray.get(ref)
                if (node_id, pid) not in known:
                    name, role = asked[ref]
                    what = "standby" if role == "jobmanager" else "spare"
                    hidden.append(Process(role=role, name=what, pid=pid, node_id=node_id))
        return sorted(hidden, key=lambda process: (process.name, process.node_id, process.pid))

    def kill(self, process: Process) -> bool:
        """Kill a process on its node."""
        return self._call(process, "kill")

    def stop(self, process: Process, for_ms: int) -> bool:
        """Stop a process on its node."""
        self._stopped.append(process)
        return self._call(process, "stop", for_ms)

    def fail_writes(self, process: Process, for_ms: int) -> bool:
        """Have a process's writes to files fail, on its node."""
        return self._call(process, "fail_writes", for_ms)

    def killable_nodes(self) -> list[str]:
        """Return the ids of the recorded cluster's living nodes besides the head. ConfigError elsewhere."""
        import ray

        alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
        self.prepare(alive)
        numbers = {node.pid: node.number for node in _our_cluster().nodes if node.alive and node.number > 0}
        found = [(numbers[pid], node_id) for node_id, pid in self._sessions.items() if pid in numbers]
        return [node_id for _, node_id in sorted(found) if node_id in alive]

    def kill_node(self, node_id: str) -> str:
        """Kill a node of the recorded cluster."""
        cluster = _our_cluster()
        (number,) = (node.number for node in cluster.nodes if node.pid == self._sessions[node_id])
        local_cluster.kill_node(number)
        self._forget(node_id)
        return f"node {number}"

    def replace_node(self) -> str:
        """Add a node to the recorded cluster."""
        return f"node {local_cluster.add_node().number}"

    def special(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        """There is nothing special here: a ConfigError says where there is."""
        raise ConfigError(
            f"{fault}: not something that can be done to a running job from here; `python -m tests.chaos --long` has "
            "it, on the cluster of cluster/namespaces.py"
        )

    def close(self) -> None:
        """Have what is stopped go on, and end the agents."""
        import ray

        for process in self._stopped:
            agent = self._agents.get(process.node_id)
            if agent is not None:
                agent.resume.remote(process.pid)
        for agent in self._agents.values():
            # A node that is gone has taken with it whatever could be undone.
            with suppress(ray.exceptions.RayError):
                # Calls are executed in order: once this is answered the processes go on.
                ray.get(agent.session.remote(), timeout=_CALL_TIMEOUT_S)
            ray.kill(agent)
        self._agents.clear()

    def _call(self, process: Process, method: str, *arguments: Any) -> bool:
        import ray

        self.prepare({process.node_id} - self._sessions.keys())
        agent = self._agents.get(process.node_id)
        if agent is None:
            return False
        try:
            call = getattr(agent, method).remote(process.role, process.pid, *arguments)
            hit: bool = ray.get(call, timeout=_CALL_TIMEOUT_S)
        except ray.exceptions.RayActorError:
            self._forget(process.node_id)
            return False
        except ray.exceptions.RayError as error:
            raise TransientError(
                f"the fault agent on node {process.node_id} does not answer: {error}"
            ) from None
        return hit

    def _start(self, node_id: str) -> Any:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        from rayflow.actors.fault_agent import FaultAgent

        return (
            ray.remote(FaultAgent)
            .options(
                num_cpus=0,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            )
            .remote()
        )

    def _forget(self, node_id: str) -> None:
        self._agents.pop(node_id, None)
        self._sessions.pop(node_id, None)


def _where(_actor: Any) -> tuple[str, int]:
    """Run by an actor: where it is."""
    import ray

    return ray.get_runtime_context().get_node_id(), os.getpid()


def _our_cluster() -> local_cluster.LocalCluster:
    import ray

    cluster = local_cluster.recorded_cluster()
    address = ray.get_runtime_context().gcs_address
    if cluster is None or not cluster.alive or cluster.address != address:
        raise ConfigError(
            f"nodes can be killed on the cluster that `rayflow cluster up` started; the Ray at {address} is another "
            "one. For clusters of network namespaces see cluster/namespaces.py"
        )
    return cluster
