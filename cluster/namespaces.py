#!/usr/bin/env python3
"""A Ray cluster of several hosts on one machine: each node in network, process and mount namespaces of its own.

    python cluster/namespaces.py up --nodes 3        a bridge, a Redis, a head and two workers
    python cluster/namespaces.py exec 0 -- rayflow run jobs/etl.py --detach
    python cluster/namespaces.py partition 1         node 1 is cut off from everybody
    python cluster/namespaces.py partition 1 --from 2 --one-way
    python cluster/namespaces.py heal
    python cluster/namespaces.py kill 0              the head loses power; Redis has what it knew
    python cluster/namespaces.py start 0
    python cluster/namespaces.py down

Needs root, iproute2, iptables, util-linux, and redis-server (`RUNLEVEL=1 apt-get install iptables redis-server`).

Each cluster has a bridge and a /24 of its own (10.77.N.0); node i has the address 10.77.N.(10 + i), and the host, where
Redis runs, 10.77.N.254. A node is a process tree under `unshare --kill-child`: killing its first process ends all
of it at once, as a power failure would. Everything made is recorded in the data folder (`RAYFLOW_HOME`), processes with
their start times, and `down` removes exactly that.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rayflow.client.home import data_folder, write_private
from rayflow.client.processes import end, is_alive, started_at
from rayflow.model.errors import ConfigError, RayflowError, TransientError

START_TIMEOUT_S = 120.0
NODE_CPUS = 2
OBJECT_STORE_BYTES = 100 << 20
REDIS_PORT, GCS_PORT = 6380, 6379
NEEDED = ("ip", "iptables", "unshare", "nsenter")
HEALTH_CHECKS = {
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 1000,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}
_STARTED = "Ray runtime started"
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Node:
    """A node: number 0 is the head. `pid` is its `unshare`, `start` that process's start time."""

    number: int
    pid: int
    start: int

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return is_alive(self.pid, self.start)

    @property
    def init(self) -> int | None:
        """The pid, on the host, of the node's first process; None if it is gone."""
        with suppress(OSError):
            children = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
            return int(children[0]) if children else None
        return None

    def host_pid(self, pid: int) -> int | None:
        """Return the pid, on the host, of the process that the node knows as `pid`."""
        init = self.init
        if init is None:
            return None
        space = os.readlink(f"/proc/{init}/ns/pid")
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    numbers = _status(entry)["NSpid"].split()
                    if numbers[-1] == str(pid) and os.readlink(entry / "ns" / "pid") == space:
                        return int(entry.name)
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespaces:
    """A recorded cluster. `net` numbers its subnet; `redis` is (pid, start time) of its Redis, None without one."""

    net: int
    folder: str
    token: str
    redis: tuple[int, int] | None
    nodes: tuple[Node, ...] = ()

    @property
    def address(self) -> str:
        """Address of its Ray."""
        return f"{self.ip(0)}:{GCS_PORT}"

    def ip(self, number: int) -> str:
        """Address of a node."""
        return f"10.77.{self.net}.{10 + number}"

    @property
    def host_ip(self) -> str:
        """Address of the host, on the bridge."""
        return f"10.77.{self.net}.254"

    def netns(self, number: int) -> str:
        """Name of a node's network namespace."""
        return f"rf{self.net}n{number}"

    def link(self, number: int) -> str:
        """Name of the host's end of a node's link."""
        return f"rfh{self.net}n{number}"

    @property
    def bridge(self) -> str:
        """Name of the bridge."""
        return f"rfbr{self.net}"

    def environment(self) -> dict[str, str]:
        """Environment of every process that talks to the cluster."""
        auth = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}
        return {**auth, "RAY_ADDRESS": self.address, "RAY_USAGE_STATS_ENABLED": "0"}

    def node(self, number: int) -> Node:
        """Return a node; ConfigError if there is none of that number."""
        for node in self.nodes:
            if node.number == number:
                return node
        raise ConfigError(f"there is no node {number}; nodes are {[n.number for n in self.nodes]}")

    # ------------------------------------------------------------------------------- faults

    def kill(self, number: int) -> None:
        """End all processes of a node at once."""
        node = self.node(number)
        init = node.init
        # The kernel ends the whole process namespace with its first process.
        end([(pid, started_at(pid) or 0) for pid in (init, node.pid) if pid is not None], None)

    def start(self, number: int) -> Namespaces:
        """Start a node that was killed, with the address it had."""
        if self.node(number).alive:
            raise ConfigError(f"node {number} runs")
        others = tuple(node for node in self.nodes if node.number != number)
        try:
            node = _start_node(self, number)
        except TransientError:
            # On a busy machine parts of Ray give up waiting for each other: once more.
            node = _start_node(self, number)
        return _with_node(replace(self, nodes=others), node)

    def partition(self, number: int, peer: int | None = None, *, one_way: bool = False) -> None:
        """Cut a node off from everybody, or from `peer` only; `one_way`: what it sends gets through."""
        self.node(number)
        if peer is None and not one_way:
            _ip("link", "set", self.link(number), "down")
            return
        others = [n.number for n in self.nodes if n.number != number] if peer is None else [peer]
        for other in others:
            self._drop(number, "INPUT", "-s", self.ip(other))
            if not one_way:
                self._drop(number, "OUTPUT", "-d", self.ip(other))

    def heal(self, number: int | None = None) -> None:
        """Undo all partitions, or those of one node."""
        for node in self.nodes:
            if number in (None, node.number):
                _ip("link", "set", self.link(node.number), "up")
                for chain in ("INPUT", "OUTPUT"):
                    self._iptables(node.number, "-F", chain)

    def _drop(self, number: int, chain: str, option: str, address: str) -> None:
        self._iptables(number, "-I", chain, option, address, "-j", "DROP")

    def _iptables(self, number: int, *arguments: str) -> None:
        _run("ip", "netns", "exec", self.netns(number), "iptables", "-w", *arguments)

    def command(self, number: int, arguments: Sequence[str]) -> list[str]:
        """Return the command that runs `arguments` on a node, as if logged in there."""
        init = self.node(number).init
        if init is None:
            raise ConfigError(f"node {number} does not run")
        return ["nsenter", "--target", str(init), "--net", "--mount", "--pid", "--wd=.", *arguments]


def recorded() -> Namespaces | None:
    """Return the cluster that `up` recorded last, dead or alive."""
    try:
        found = json.loads(_record().read_text(encoding="utf-8"))
        nodes = tuple(Node(**node) for node in found.pop("nodes"))
        redis = found.pop("redis")
        return Namespaces(**found, redis=tuple(redis) if redis else None, nodes=nodes)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def up(nodes: int = 3, *, with_redis: bool = True) -> Namespaces:
    """Start a cluster and record it. ConfigError where one is recorded already or something needed is missing."""
    require((*NEEDED, *(["redis-server"] if with_redis else [])))
    if recorded() is not None:
        raise ConfigError("a cluster of namespaces is recorded already; `down` ends it")
    net = _free_net()
    cluster = Namespaces(
        net=net,
        folder=tempfile.mkdtemp(prefix="rayflow-ns-", dir="/tmp"),
        token=secrets.token_hex(32),
        redis=None,
    )
    _save(cluster)
    try:
        _ip("link", "add", cluster.bridge, "type", "bridge")
        _ip("addr", "add", f"{cluster.host_ip}/24", "dev", cluster.bridge)
        _ip("link", "set", cluster.bridge, "up")
        if with_redis:
            cluster = replace(cluster, redis=_start_redis(cluster))
            _save(cluster)
        for number in range(nodes):
            _make_host(cluster, number)
            cluster = _with_node(cluster, _start_node(cluster, number))
    except BaseException:
        down()
        raise
    return cluster


def down() -> bool:
    """End everything that was recorded, and forget it; return whether there was anything."""
    cluster = recorded()
    if cluster is None:
        return False
    for node in reversed(cluster.nodes):
        if node.alive:
            cluster.kill(node.number)
    if cluster.redis is not None:
        end([cluster.redis], 1.0)
    for name in _names("netns", f"rf{cluster.net}n"):
        subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)
    for name in (*_names("link", f"rfh{cluster.net}n"), cluster.bridge):
        subprocess.run(["ip", "link", "del", name], check=False, capture_output=True)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    _record().unlink(missing_ok=True)
    return True


def require(programs: Sequence[str] = (*NEEDED, "redis-server")) -> None:
    """Raise ConfigError naming what is missing, and how to get it."""
    if os.geteuid() != 0:
        raise ConfigError("network namespaces need root: run this as root")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        raise ConfigError(
            f"not installed: {', '.join(missing)}; "
            "`RUNLEVEL=1 apt-get install iproute2 iptables util-linux redis-server`"
        )


# ------------------------------------------------------------------------------------- making it


def _make_host(cluster: Namespaces, number: int) -> None:
    netns, link = cluster.netns(number), cluster.link(number)
    _ip("netns", "add", netns)
    _ip("link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", netns)
    _ip("link", "set", link, "master", cluster.bridge, "up")
    inside = ("netns", "exec", netns, "ip")
    _ip(*inside, "addr", "add", f"{cluster.ip(number)}/24", "dev", "eth0")
    _ip(*inside, "link", "set", "lo", "up")
    _ip(*inside, "link", "set", "eth0", "up")
    # Ray finds a host's own address by asking for the way to the outside.
    _ip(*inside, "route", "add", "default", "via", cluster.host_ip)


def _start_redis(cluster: Namespaces) -> tuple[int, int]:
    log = Path(cluster.folder) / "redis.log"
    command = [
        *("redis-server", "--bind", cluster.host_ip, "--port", str(REDIS_PORT)),
        *("--save", "", "--appendonly", "no", "--protected-mode", "no", "--daemonize", "no"),
    ]
    process = _popen(command, log, dict(os.environ), cwd=cluster.folder)
    _await(lambda: "Ready to accept connections" in log.read_text(errors="replace"), process, log, "Redis")
    return process.pid, started_at(process.pid) or 0


def _start_node(cluster: Namespaces, number: int) -> Node:
    """Start Ray on a host, with a folder of its own where all have the same path."""
    own, log = Path(cluster.folder) / f"node-{number}", Path(cluster.folder) / f"node-{number}.log"
    shared = Path(cluster.folder) / "ray"
    for folder in (own, shared):
        folder.mkdir(exist_ok=True)
    role = [f"--address={cluster.address}"]
    environment = {**os.environ, **cluster.environment()}
    environment.pop("RAY_ADDRESS")
    if number == 0:
        role = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false", f"--temp-dir={shared}"]
        role.append(f"--system-config={json.dumps(HEALTH_CHECKS)}")
        if cluster.redis is not None:
            environment["RAY_REDIS_ADDRESS"] = f"{cluster.host_ip}:{REDIS_PORT}"
    start = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={cluster.ip(number)}", f"--num-cpus={NODE_CPUS}"),
        *(f"--object-store-memory={OBJECT_STORE_BYTES}", *role),
    ]
    bind = f'mount --bind "{own}" "{shared}" && exec "$@"'
    command = [
        *("ip", "netns", "exec", cluster.netns(number)),
        *("unshare", "--fork", "--pid", "--mount-proc", "--kill-child", "sh", "-c", bind, "sh", *start),
    ]
    process = _popen(command, log, environment)
    node = Node(number, process.pid, started_at(process.pid) or 0)
    _await(lambda: _STARTED in log.read_text(errors="replace"), process, log, f"Ray node {number}")
    return node


def _popen(
    command: Sequence[str], log: Path, environment: Mapping[str, str], cwd: str | None = None
) -> subprocess.Popen[bytes]:
    with open(log, "wb") as output:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=dict(environment),
            cwd=cwd,
        )


def _await(ready: Any, process: subprocess.Popen[bytes], log: Path, what: str) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline_s:
            process.kill()  # and with it, by --kill-child, what it started
            said = log.read_text(errors="replace").strip()
            raise TransientError(f"{what} did not start: {said[-800:] or 'no output'}")
        time.sleep(_POLL_S)


def _free_net() -> int:
    """Return a number no bridge here has. Own names only: what others made is left alone."""
    taken = set(_names("link", "rfbr"))
    for net in range(1, 250):
        if f"rfbr{net}" not in taken:
            return net
    raise ConfigError("no subnet 10.77.N.0/24 is free")


def _names(kind: str, prefix: str) -> Iterator[str]:
    listed = subprocess.run(["ip", "-j", kind, "show"], capture_output=True, text=True, check=True).stdout
    for entry in json.loads(listed or "[]"):
        name = entry.get("ifname") or entry.get("name")
        if name and name.startswith(prefix):
            yield name


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise TransientError(f"{' '.join(command)}: {(done.stderr or done.stdout).strip()}")


def _status(entry: Path) -> dict[str, str]:
    lines = (entry / "status").read_text().splitlines()
    return {name: value for name, _, value in (line.partition(":") for line in lines)}


def _with_node(cluster: Namespaces, node: Node) -> Namespaces:
    grown = replace(cluster, nodes=tuple(sorted((*cluster.nodes, node), key=lambda n: n.number)))
    _save(grown)
    return grown


def _save(cluster: Namespaces) -> None:
    write_private(_record(), json.dumps(asdict(cluster)))


def _record() -> Path:
    return data_folder() / "namespaces.json"


# ------------------------------------------------------------------------------------- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; what goes wrong is said on standard error."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start a cluster")
    start.add_argument("--nodes", type=int, default=3)
    start.add_argument("--no-redis", action="store_true", help="the head cannot be restarted then")
    for name, text in (("kill", "end a node"), ("start", "start a node that was killed")):
        commands.add_parser(name, help=text).add_argument("node", type=int)
    part = commands.add_parser("partition", help="cut a node off")
    part.add_argument("node", type=int)
    part.add_argument("--from", dest="peer", type=int, help="from this node only")
    part.add_argument("--one-way", action="store_true", help="what it sends gets through")
    commands.add_parser("heal", help="undo partitions").add_argument("node", type=int, nargs="?")
    execute = commands.add_parser("exec", help="run a command on a node")
    execute.add_argument("node", type=int)
    execute.add_argument("arguments", nargs=argparse.REMAINDER)
    commands.add_parser("status", help="show the nodes").add_argument("--json", action="store_true")
    commands.add_parser("down", help="end the cluster, and remove all that was made")
    options = parser.parse_args(arguments)
    try:
        return _obey(options)
    except RayflowError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ConfigError) else 1


def _obey(options: argparse.Namespace) -> int:
    if options.command == "up":
        cluster = up(options.nodes, with_redis=not options.no_redis)
        print(f"cluster at {cluster.address} with {len(cluster.nodes)} nodes; logs are in {cluster.folder}")
        return 0
    if options.command == "down":
        print("the cluster is down" if down() else "there was no cluster")
        return 0
    found = recorded()
    if found is None:
        raise ConfigError("there is no cluster; `up` starts one")
    match options.command:
        case "kill":
            found.kill(options.node)
        case "start":
            found.start(options.node)
        case "partition":
            found.partition(options.node, options.peer, one_way=options.one_way)
        case "heal":
            found.heal(options.node)
        case "exec":
            return _execute(found, options)
        case "status":
            _show(found, options.json)
    return 0


def _execute(cluster: Namespaces, options: argparse.Namespace) -> int:
    arguments = options.arguments[1:] if options.arguments[:1] == ["--"] else options.arguments
    if not arguments:
        raise ConfigError("exec NODE -- COMMAND: there is no command")
    process = subprocess.Popen(
        cluster.command(options.node, arguments), env={**os.environ, **cluster.environment()}
    )
    # Ctrl-C reaches the command as well; its answer is what counts.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return process.wait()


def _show(cluster: Namespaces, as_json: bool) -> None:
    nodes = [
        {"node": n.number, "address": cluster.ip(n.number), "pid": n.pid, "alive": n.alive}
        for n in cluster.nodes
    ]
    if as_json:
        print(json.dumps({"address": cluster.address, "folder": cluster.folder, "nodes": nodes}, indent=2))
        return
    print(f"cluster at {cluster.address}, logs in {cluster.folder}")
    for node in nodes:
        role = "worker" if node["node"] else "head"
        print(f"  {node['node']}  {role:<6}  {node['address']:<14}  {'up' if node['alive'] else 'dead'}")


if __name__ == "__main__":
    sys.exit(main())
