"""What is submitted means the same wherever the job's processes were started. Without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rayflow as rf
from rayflow.client import submitting
from rayflow.client.ray_session import RaySession
from rayflow.client.registry import records


@pytest.fixture
def specs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """The specs of the managers that are started, in a folder of the user's."""
    started: list[Any] = []
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(submitting, "open_session", lambda *a, **k: RaySession("here:1", outlives_us=True))
    monkeypatch.setattr(submitting, "_start_manager", lambda spec, graph: started.append(spec))
    return started


def submit(config: dict[str, Any], restore_from: str | None = None) -> None:
    env = rf.StreamEnvironment(name="job", config=config)
    env.from_rows([{"a": 1}]).discard()
    submitting.submit(env.plan(), env.config, "job", restore_from=restore_from)


def test_relative_paths_are_those_of_the_folder_that_the_job_is_submitted_from(
    specs: list[Any], tmp_path: Path
) -> None:
    submit({"checkpoint.storage": "kept", "state.dir": Path("scratch")}, restore_from="kept/old/chk-3")
    (spec,) = specs
    assert spec.config["checkpoint.storage"] == f"{tmp_path}/kept"
    assert spec.config["state.dir"] == f"{tmp_path}/scratch"
    assert spec.restore_from == f"{tmp_path}/kept/old/chk-3"
    # Whoever lists the job later, from anywhere, finds it.
    assert [record.storage for record in records()] == [f"{tmp_path}/kept"]


def test_urls_and_what_is_not_given_stay_as_they_are(specs: list[Any]) -> None:
    submit({"checkpoint.storage": "rayobj://main"}, restore_from="s3://bucket/old")
    (spec,) = specs
    assert (spec.config["checkpoint.storage"], spec.restore_from) == ("rayobj://main", "s3://bucket/old")
    assert "state.dir" not in spec.config
