"""A local cluster of real Ray nodes that outlives the command that started it (`rayflow cluster`).

Each node is a `ray start --block` in a Unix session of its own, with the same address of this machine and free ports;
the head also runs Ray's control store. What was started is recorded in the user's data folder: address,
folder, token, and per node the process's pid and start time. `down` ends exactly the processes of those
sessions, and looks at the start time first, so it never touches a process that is not ours.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rayflow.client.home import data_folder, write_private
from rayflow.client.processes import end, is_alive, session_members, started_at
from rayflow.model.errors import ConfigError, TransientError

START_TIMEOUT_S = 90.0
END_GRACE_S = 1.0
NODE_CPUS = 2
NODE_OBJECT_STORE_BYTES = 100 << 20
_ATTEMPTS = 2
_POLL_S = 0.1
_STARTED = "Ray runtime started"
_HEALTH_CHECKS = {
    # Quicker than Ray's default (a dead node is known after about 5 s), and still patient with a busy machine.
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node: number 0 is the head. `pid` leads the node's session; `start` is its start time."""

    number: int
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether the node's main process runs."""
        return is_alive(self.pid, self.start)

    def kill(self) -> None:
        """End every process of the node at once and unasked, as a power failure would."""
        end(session_members(self.pid), None)

    def end(self) -> None:
        """End every process of the node."""
        # Its leader too may be gone already, and leave processes: they keep the session's number.
        if self.alive or started_at(self.pid) is None:
            end(session_members(self.pid), END_GRACE_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalCluster:
    """A recorded cluster. `folder` is its temporary folder, `token` what Ray's calls must carry."""

    address: str
    folder: str
    token: str
    nodes: tuple[ClusterNode, ...]

    @property
    def alive(self) -> bool:
        """Whether its head runs."""
        return bool(self.nodes) and self.nodes[0].alive

    def environment(self) -> dict[str, str]:
        """Environment variables of every process that talks to the cluster."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}


def recorded_cluster() -> LocalCluster | None:
    """Return the cluster that `up` recorded last, dead or alive."""
    try:
        found = json.loads(_record_path().read_text(encoding="utf-8"))
        nodes = tuple(ClusterNode(**node) for node in found.pop("nodes"))
        return LocalCluster(**found, nodes=nodes)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def up(nodes: int = 1) -> LocalCluster:
    """Start a cluster of that many nodes, and record it. ConfigError if one runs; TransientError if Ray fails."""
    if nodes < 1:
        raise ConfigError(f"a cluster has at least one node; got {nodes}")
    running = recorded_cluster()
    if running is not None and running.alive:
        raise ConfigError(f"a cluster runs at {running.address}; `rayflow cluster down` ends it")
    if running is not None:
        down()
    for attempt in range(_ATTEMPTS):
        try:
            return _start(nodes)
        except TransientError:
            # A free port can be taken, and Ray can time out on a busy machine: once more, then give up.
            down()
            if attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def add_node() -> ClusterNode:
    """Start one more node in the recorded cluster. ConfigError if none runs; TransientError if Ray fails."""
    cluster = _running_cluster()
    number = max(node.number for node in cluster.nodes) + 1
    role = (f"--address={cluster.address}",)
    node = _start_node(cluster, number, cluster.address.rpartition(":")[0], role)
    _with_node(cluster, node)
    return node


def kill_node(number: int) -> ClusterNode:
    """Kill a node of the recorded cluster with SIGKILL, all its processes at once; 0 is the head. ConfigError if there
    is no such node alive."""
    cluster = _running_cluster()
    alive = {node.number: node for node in cluster.nodes if node.alive}
    if number not in alive:
        raise ConfigError(f"the cluster has no living node {number}; alive are {', '.join(map(str, alive))}")
    alive[number].kill()
    return alive[number]


def _running_cluster() -> LocalCluster:
    cluster = recorded_cluster()
    if cluster is None or not cluster.alive:
        raise ConfigError("no cluster runs; `rayflow cluster up` starts one")
    return cluster


def down() -> bool:
    """End the recorded cluster and forget it; return whether there was one."""
    cluster = recorded_cluster()
    if cluster is None:
        return False
    for node in reversed(cluster.nodes):
        node.end()
    shutil.rmtree(cluster.folder, ignore_errors=True)
    _record_path().unlink(missing_ok=True)
    return True


def _start(nodes: int) -> LocalCluster:
    host, port = _own_address(), _free_port()
    cluster = LocalCluster(
        address=f"{host}:{port}",
        # Ray puts sockets below this folder, whose paths must stay short.
        folder=tempfile.mkdtemp(prefix="rayflow-", dir="/tmp"),
        token=secrets.token_hex(32),
        nodes=(),
    )
    head = (
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        f"--ray-client-server-port={_free_port()}",
        f"--temp-dir={cluster.folder}",
        f"--system-config={json.dumps(_HEALTH_CHECKS)}",
    )
    for number in range(nodes):
        role = head if number == 0 else (f"--address={cluster.address}",)
        cluster = _with_node(cluster, _start_node(cluster, number, host, role))
    return cluster


def _with_node(cluster: LocalCluster, node: ClusterNode) -> LocalCluster:
    # Recorded node by node: what is started can be ended, whatever happens next.
    grown = LocalCluster(
        address=cluster.address, folder=cluster.folder, token=cluster.token, nodes=(*cluster.nodes, node)
    )
    write_private(_record_path(), json.dumps(asdict(grown)))
    return grown


def _start_node(cluster: LocalCluster, number: int, host: str, role: tuple[str, ...]) -> ClusterNode:
    log = Path(cluster.folder) / f"node-{number}.log"
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={host}", f"--num-cpus={NODE_CPUS}"),
        f"--object-store-memory={NODE_OBJECT_STORE_BYTES}",
        *role,
    ]
    environment = {**os.environ, **cluster.environment(), "RAY_USAGE_STATS_ENABLED": "0"}
    # A cluster of its own, whatever this shell is set up for.
    environment.pop("RAY_ADDRESS", None)
    with open(log, "wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment,
        )
    node = ClusterNode(number, process.pid, started_at(process.pid) or 0)
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while _STARTED not in (said := log.read_text(errors="replace")):
        if process.poll() is not None or time.monotonic() > deadline_s:
            node.end()
            raise TransientError(f"Ray node {number} did not start: {(said.strip() or 'no output')[-500:]}")
        time.sleep(_POLL_S)
    return node


def _own_address() -> str:
    """This machine's address. Not the loopback one: Ray resolves that to this on other nodes of the cluster."""
    from ray.util import get_node_ip_address

    address: str = get_node_ip_address()
    return address


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port


def _record_path() -> Path:
    return data_folder() / "cluster.json"
