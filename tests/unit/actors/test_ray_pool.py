"""What a pool of workers does when it cannot begin, or finds that another manager has the workers. Without Ray."""

from __future__ import annotations

import queue
from types import SimpleNamespace
from typing import Any

import pytest

from rayflow.actors import launcher, ray_pool
from rayflow.actors.ray_pool import RayWorkerPool
from rayflow.actors.specs import NAMESPACE, WorkerSpec, worker_prefix
from rayflow.model.ids import JobId

BOUND_S = 30
SPEC = WorkerSpec(
    job_id=JobId("job"),
    code_paths=(),
    token="",
    lease_s=20,
    reset_timeout_s=5,
    heartbeat_interval_s=1,
    heartbeat_timeout_s=5,
)


class Begun:
    """A pool, and what it tells."""

    def __init__(self, tenure: int | Exception) -> None:
        self.told: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def claim() -> int:
            if isinstance(tenure, Exception):
                raise tenure
            return tenure

        self.pool = RayWorkerPool(
            SPEC,
            b"graph",
            spares=0,
            manager=None,
            claim=claim,
            superseded=lambda: self.told.put("superseded"),
            crashed=self.told.put,
        )
        self.pool.report_to(SimpleNamespace())  # type: ignore[arg-type]

    def tells(self) -> Any:
        return self.told.get(timeout=BOUND_S)


class Store:
    """Ray's control store, as far as a launcher asks it: one worker was left behind, which answers `answer`."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.util = SimpleNamespace(list_named_actors=self._list)

    def _list(self, all_namespaces: bool) -> list[dict[str, str]]:
        if isinstance(self.answer, Exception):
            raise self.answer
        return [{"namespace": NAMESPACE, "name": f"{worker_prefix('job')}1.0"}]

    def get_actor(self, name: str, namespace: str) -> Any:
        return SimpleNamespace(adopt=SimpleNamespace(remote=lambda tenure, manager: "ref"))

    def wait(self, refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
        return refs, []

    def get(self, ref: Any, timeout: float | None = None) -> Any:
        return self.answer

    def kill(self, actor: Any, no_restart: bool) -> None: ...


def begun(monkeypatch: pytest.MonkeyPatch, answer: Any) -> Begun:
    for module in (launcher, ray_pool):
        monkeypatch.setattr(module, "ray", Store(answer))
    return Begun(tenure=2)


def test_a_pool_that_cannot_begin_says_so_instead_of_standing_still() -> None:
    error = RuntimeError("no tenure")
    assert Begun(error).tells() is error


def test_nor_does_it_stand_still_where_rays_control_store_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    error = ConnectionError("the control store is away")
    assert begun(monkeypatch, error).tells() is error


def test_workers_that_obey_a_later_manager_stay_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    # It was held up between its claim and this; another manager has claimed a later tenure and taken them over.
    found = begun(monkeypatch, None)
    assert found.tells() == "superseded"
    found.pool.shutdown()
