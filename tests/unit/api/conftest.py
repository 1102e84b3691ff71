"""Environments for the API's tests."""

from __future__ import annotations

import pyarrow as pa
import pytest

from rayflow.api.environment import StreamEnvironment
from rayflow.api.streams import DataStream

ROWS = pa.table(
    {
        "k": pa.array(["a", "b"]),
        "n": pa.array([1, 2], pa.int64()),
        "x": pa.array([0.5, 1.5]),
        "t": pa.array([0, 1000], pa.timestamp("ms")),
        "tags": pa.array([["p"], ["q", "r"]]),
    }
)


@pytest.fixture
def env() -> StreamEnvironment:
    """An empty environment."""
    return StreamEnvironment(name="test", parallelism=2)


@pytest.fixture
def rows(env: StreamEnvironment) -> DataStream:
    """A stream of k (string), n (int64), x (double), t (timestamp[ms]) and tags (list<string>)."""
    return env.from_arrow(ROWS)
