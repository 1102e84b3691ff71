"""One local Ray for all integration tests, and a data folder of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def rayflow_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's data folder, empty, for the whole run."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("RAYFLOW_HOME")
    os.environ["RAYFLOW_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["RAYFLOW_HOME"]
    else:
        os.environ["RAYFLOW_HOME"] = before


@pytest.fixture(scope="session")
def local_ray(rayflow_home: Path) -> Iterator[str]:
    """Address of a local Ray, started as rayflow starts one: the first test that asks waits for it."""
    from rayflow.client.ray_session import close_session, open_session

    os.environ.pop("RAY_ADDRESS", None)
    session = open_session("local")
    assert session is not None
    yield session.address
    close_session()
