"""Jobs whose checkpoints and metadata lay in the memory of a cluster, when that cluster is not at hand."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from rayflow.client.finding import Client
from rayflow.client.handle import JobHandle
from rayflow.client.registry import JobRecord, remember
from rayflow.model.errors import StorageError


@pytest.fixture
def listening() -> Iterator[str]:
    """An address where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def closed() -> str:
    """An address where nothing does."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def record(cluster: str, **more: Any) -> JobRecord:
    return JobRecord(
        job_id="job-1", name="job", cluster=cluster, storage="rayobj://main", submitted_at_ms=0, **more
    )


def listed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch, job: JobRecord) -> dict[str, Any]:
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path))
    remember(job)
    (summary,) = Client(None).jobs()
    return summary


def test_a_cluster_that_has_ended_took_the_storage_along(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    summary = listed(tmp_path, monkeypatch, record(closed))
    assert summary["state"] == (
        "UNKNOWN (its storage is gone: rayobj://main was in the memory of the job's Ray cluster, "
        f"{closed}, which has ended)"
    )


def test_so_did_the_local_ray_of_a_process_that_has_ended(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, listening: str
) -> None:
    # Somebody else's may listen there by now.
    summary = listed(tmp_path, monkeypatch, record(listening, owner=(os.getpid(), 1)))
    assert "its storage is gone" in summary["state"]


def test_one_that_may_run_is_to_be_named(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch, listening: str
) -> None:
    summary = listed(tmp_path, monkeypatch, record(listening))
    assert f"{listening}, which is not at hand: give its --address" in summary["state"]


def test_another_cluster_is_not_asked_for_it(closed: str) -> None:
    # It would say that there is nothing, as if the job had never begun.
    with pytest.raises(StorageError, match="its storage is gone"):
        JobHandle(record(closed), None, "10.0.0.1:6379").status()
