"""Faults on the cluster of `cluster/namespaces.py`, from the host: partitions and a lost head, besides the usual.

The host is not part of the cluster. It sees every process under a pid of its own, and the job through the metadata that
the job keeps on its storage, which all nodes and the host share. So nothing here needs a way to the job that a
partition could cut.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from rayflow.client.chaos.schedule import Fault
from rayflow.client.chaos.victims import Process, victims
from rayflow.client.processes import is_alive, started_at
from rayflow.model.errors import ConfigError, TransientError

ROOT = Path(__file__).parents[2]
REJOIN_S = 20.0
"""How long after healing a node may still be told by Ray that it was given up, and end itself."""

_TITLES = {"subtask": "ray::SubtaskActor", "jobmanager": "ray::JobManagerActor"}
_NODES = (
    "import json, ray; ray.init(log_to_driver=False, logging_level='ERROR'); print(json.dumps(ray.nodes()))"
)


def load_namespaces() -> Any:
    """Import cluster/namespaces.py."""
    spec = importlib.util.spec_from_file_location("namespaces", ROOT / "cluster" / "namespaces.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["namespaces"] = module
    spec.loader.exec_module(module)
    return module


class StoredView:
    """A job as its metadata on a shared folder tells it; what `Injector` needs of a `JobHandle`."""

    def __init__(self, storage: Path, job_id: str) -> None:
        self.id, self.name = job_id, job_id
        self._folder = storage / job_id

    def describe(self) -> dict[str, Any]:
        """Return the last description that was stored. TransientError while there is none."""
        try:
            document = json.loads((self._folder / "job.json").read_text())
        except (OSError, ValueError) as error:
            time.sleep(0.2)
            raise TransientError(f"no job.json yet: {error}") from None
        return {**document["describe"], "state": document["state"], "failure": document["failure"]}

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the events that were stored."""
        with suppress(OSError):
            lines = (self._folder / "events.jsonl").read_text().splitlines()
            return [event for event in map(json.loads, lines) if event["seq"] >= since]
        return []


class NamespaceEffects:
    """`rayflow.client.chaos.effects.Effects` for the recorded cluster of namespaces."""

    def __init__(self, namespaces: Any) -> None:
        self._namespaces = namespaces
        self._numbers: dict[str, int] = {}
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self.log: list[str] = []

    @property
    def cluster(self) -> Any:
        """The cluster as it is recorded now."""
        return self._namespaces.recorded()

    def prepare(self, node_ids: set[str]) -> None:
        """Learn which hosts these nodes are."""
        if node_ids <= self._numbers.keys():
            return
        for node in self.cluster.nodes:
            if node.alive:
                command = self.cluster.command(node.number, [sys.executable, "-c", _NODES])
                environment = {**os.environ, **self.cluster.environment()}
                with suppress(subprocess.SubprocessError, ValueError, IndexError):
                    done = subprocess.run(
                        command, capture_output=True, text=True, timeout=30, env=environment, check=True
                    )
                    for found in json.loads(done.stdout.splitlines()[-1]):
                        address = found["NodeManagerAddress"]
                        self._numbers[found["NodeID"]] = int(address.rpartition(".")[2]) - 10
                    return

    def hidden(self, description: dict[str, Any]) -> list[Process]:
        """Nobody: from the host, Ray's actors are not asked."""
        return []

    def kill(self, process: Process) -> bool:
        """Kill a process."""
        return self._signal(process, signal.SIGKILL) is not None

    def stop(self, process: Process, for_ms: int) -> bool:
        """Stop a process for a while."""
        pid = self._signal(process, signal.SIGSTOP)
        if pid is None:
            return False
        start = started_at(pid) or 0

        def go_on() -> None:
            if is_alive(pid, start):
                os.kill(pid, signal.SIGCONT)

        self._later(for_ms / 1000, go_on)
        return True

    def fail_writes(self, process: Process, for_ms: int) -> bool:
        """Have a process's writes to files fail for a while."""
        pid = self._pid(process)
        if pid is None:
            return False
        with suppress(ProcessLookupError):
            before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, before[1]))
            start = started_at(pid) or 0

            def restore() -> None:
                if is_alive(pid, start):
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

            self._later(for_ms / 1000, restore)
            return True
        return False

    def killable_nodes(self) -> list[str]:
        """Return the ids of the living workers."""
        alive = {node.number for node in self.cluster.nodes if node.alive and node.number > 0}
        return [node_id for node_id, number in self._numbers.items() if number in alive]

    def kill_node(self, node_id: str) -> str:
        """Kill a node; it is started again as another Ray node of the same address."""
        number = self._numbers[node_id]
        self.cluster.kill(number)
        self._later(5, lambda: self._start(number))
        return f"node {number}"

    def replace_node(self) -> str:
        """Killed nodes come back by themselves."""
        return "itself"

    def special(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        """Kill the head, or make a partition."""
        if fault.target == "head" and fault.action == "kill":
            self.cluster.kill(0)
            self._later(fault.for_ms / 1000, lambda: self._start(0))
            return [f"head, back after {fault.for_ms / 1000:g} s"]
        if fault.action != "partition":
            raise ConfigError(f"{fault}: not on this cluster")
        return self._part(fault, description)

    def close(self) -> None:
        """Heal, bring back every node, and wait for what is under way."""
        for thread in self._threads:
            thread.join(200)
        self.cluster.heal()
        self._revive()

    # ------------------------------------------------------------------------------- partitions

    def _part(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        one = self._host(fault.target, description, other_than=None)
        peer = None if fault.peer is None else self._host(fault.peer, description, other_than=one)
        if one is None or (fault.peer is not None and peer is None):
            return []
        self._later(0, lambda: self._flap(fault, one, peer))
        whom = "everybody" if peer is None else f"node {peer}"
        return [f"node {one} from {whom}{', one way' if fault.one_way else ''}"]

    def _flap(self, fault: Fault, one: int, peer: int | None) -> None:
        for _ in range(fault.flaps):
            self.cluster.partition(one, peer, one_way=fault.one_way)
            time.sleep(fault.for_ms / 1000 / (2 * fault.flaps - 1))
            self.cluster.heal()
            if fault.flaps > 1:
                time.sleep(fault.for_ms / 1000 / (2 * fault.flaps - 1))
        deadline_s = time.monotonic() + REJOIN_S
        while time.monotonic() < deadline_s:
            time.sleep(1)
            self._revive()

    def _host(self, target: str, description: dict[str, Any], other_than: int | None) -> int | None:
        """Return the host of a role; for a subtask that is on the other's host, of the next one that is not."""
        role, _, name = target.partition(":")
        if role == "node":
            numbers = [n.number for n in self.cluster.nodes if n.number != other_than]
            return int(numbers[int(name) % len(numbers)])
        named = victims(target, description)
        others = [p for p in victims("all", description) if p.role == role]
        self.prepare({p.node_id for p in (*named, *others)})
        hosts = [self._numbers.get(p.node_id) for p in (*named, *others)]
        return next((host for host in hosts if host is not None and host != other_than), None)

    def _revive(self) -> None:
        for node in self.cluster.nodes:
            if not node.alive:
                self._start(node.number)

    def _start(self, number: int) -> None:
        with self._lock:
            if not self.cluster.node(number).alive:
                try:
                    self.cluster.start(number)
                except TransientError as error:
                    self.log.append(f"node {number} did not come back: {error}")

    # ------------------------------------------------------------------------------- processes

    def _pid(self, process: Process) -> int | None:
        number = self._numbers.get(process.node_id)
        node = None if number is None else self.cluster.node(number)
        pid = None if node is None or not node.alive else node.host_pid(process.pid)
        if pid is None:
            return None
        with suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            return pid if title.startswith(_TITLES[process.role]) else None
        return None

    def _signal(self, process: Process, number: signal.Signals) -> int | None:
        pid = self._pid(process)
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
                return pid
        return None

    def _later(self, after_s: float, act: Callable[[], None]) -> None:
        def run() -> None:
            time.sleep(after_s)
            act()

        self._threads = [t for t in self._threads if t.is_alive()]
        thread = threading.Thread(target=run, daemon=True)
        self._threads.append(thread)
        thread.start()
