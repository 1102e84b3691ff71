"""What a job takes of a machine: memory, file descriptors, plasma of a local cluster, files on storage.

A job's processes are found by the titles that Ray gives to actors' processes, among the cluster's own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rayflow.client.local_cluster import LocalCluster
from rayflow.client.processes import session_members

_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One look. `whole`: the job was running with all its processes, so that samples can be compared."""

    at_s: float
    state: str
    attempt: int
    whole: bool
    processes: int
    rss_bytes: int
    rss_manager_bytes: int
    rss_largest_bytes: int
    fds: int
    plasma_bytes: int
    ray_rss_bytes: int
    checkpoint_files: int
    claim_files: int
    checkpoint_bytes: int
    pending_files: int
    upsert_files: int
    output_files: int
    temporary_files: int

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON data."""
        return asdict(self)


def take_sample(at_s: float, description: dict[str, Any], cluster: LocalCluster, folder: Path) -> Sample:
    """Look at everything once. `folder` has `checkpoints`, `tmp`, and in `out` the outputs `rows` and `counts`."""
    out, checkpoints, temporary = folder / "out", folder / "checkpoints", folder / "tmp"
    actors = list(_actors(cluster))
    sizes = {pid: _rss(pid) for pid, _ in actors}
    managers = [sizes[pid] for pid, title in actors if "JobManagerActor" in title]
    running = [s["pid"] for s in description["subtasks"] if s["state"] == "RUNNING" and s["pid"] is not None]
    files = list(_files(checkpoints))
    rows, counts = list(_files(out / "rows")), list(_files(out / "counts"))
    return Sample(
        at_s=round(at_s, 1),
        state=description["state"],
        attempt=description["attempt"],
        whole=description["state"] == "RUNNING"
        and len(running) == len(description["subtasks"])
        and len(managers) == 1
        and set(running) <= sizes.keys(),
        processes=len(actors),
        rss_bytes=sum(sizes.values()),
        rss_manager_bytes=max(managers, default=0),
        rss_largest_bytes=max(sizes.values(), default=0),
        fds=sum(_fds(pid) for pid in sizes),
        plasma_bytes=plasma_bytes(),
        ray_rss_bytes=sum(_rss(pid) for pid in _ray_processes(cluster)),
        checkpoint_files=sum(not _is_claim(path) for path, _ in files),
        claim_files=sum(_is_claim(path) for path, _ in files),
        checkpoint_bytes=sum(nbytes for _, nbytes in files),
        pending_files=sum("_rayflow" in path.parts for path, _ in (*rows, *counts)),
        upsert_files=sum("_rayflow" not in path.parts for path, _ in counts),
        output_files=sum("_rayflow" not in path.parts for path, _ in rows),
        temporary_files=sum(1 for _ in _files(temporary)),
    )


def plasma_bytes() -> int:
    """Return how much of its object stores the cluster at hand uses."""
    from ray._private import internal_api, state

    reply = internal_api.get_memory_info_reply(state.state, timeout_seconds=10.0)
    return int(reply.store_stats.object_store_bytes_used)


def _actors(cluster: LocalCluster) -> Iterator[tuple[int, str]]:
    for pid, title in _titles(cluster):
        if title.startswith("ray::") and not title.startswith("ray::IDLE"):
            yield pid, title


def _ray_processes(cluster: LocalCluster) -> list[int]:
    return [pid for pid, title in _titles(cluster) if not title.startswith("ray::")]


def _titles(cluster: LocalCluster) -> Iterator[tuple[int, str]]:
    for node in cluster.nodes:
        for pid, _ in session_members(node.pid):
            with suppress(OSError):
                yield pid, Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")


def _rss(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
    return 0


def _fds(pid: int) -> int:
    with suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/fd"))
    return 0


def _is_claim(path: Path) -> bool:
    """Of an attempt or a job manager, of which so many are kept (`rayflow.state.claims`)."""
    return path.parent.name in ("attempts", "managers")


def _files(folder: Path) -> Iterator[tuple[Path, int]]:
    # Files come and go while we look.
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent) / name
            with suppress(OSError):
                yield path.relative_to(folder), path.stat().st_size
