"""Which node a new subtask goes to: the one with the fewest of the job's subtasks, save where one was just lost.

Ray's own spreading does not count actors that ask for no resources, and still places on a node that has
died until its health checks say so; a lost worker is an earlier sign.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

SUSPECT_S = 30.0


class Placement:
    """Counts a job's workers by node. `now_s` is any steady clock's."""

    def __init__(self) -> None:
        self._workers: Counter[str] = Counter()
        self._lost_s: dict[str, float] = {}

    def choose(self, nodes: Sequence[str], now_s: float) -> str:
        """Return one of `nodes` (not empty), and count a worker there. The first of equals."""
        self._forget_gone(nodes)
        trusted = [n for n in nodes if now_s - self._lost_s.get(n, now_s - SUSPECT_S) >= SUSPECT_S]
        node = min(trusted or nodes, key=lambda n: self._workers[n])
        self.add(node)
        return node

    def _forget_gone(self, nodes: Sequence[str]) -> None:
        """Nodes come and go for as long as a job runs."""
        for node in [n for n, count in self._workers.items() if count <= 0 and n not in nodes]:
            del self._workers[node]
            self._lost_s.pop(node, None)

    def add(self, node: str) -> None:
        """A worker is on `node` already."""
        self._workers[node] += 1

    def remove(self, node: str, now_s: float, *, lost: bool) -> None:
        """A worker on `node` ended; if it was `lost` others avoid the node for a while."""
        self._workers[node] -= 1
        if lost:
            self._lost_s[node] = now_s
