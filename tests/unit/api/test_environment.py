from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

import rayflow as rf
from rayflow.model.errors import ConfigError, PlanError


def test_every_public_name_loads() -> None:
    for name in rf.__all__:
        assert getattr(rf, name) is not None, name
    assert set(rf.__all__) <= set(dir(rf))
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = rf.Nonsense  # type: ignore[attr-defined]


def test_importing_is_cheap_and_planning_needs_no_ray() -> None:
    script = """
import sys, rayflow as rf
heavy = {"ray", "numba", "pandas", "polars", "pyarrow", "numpy"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
env = rf.StreamEnvironment()
env.from_rows([{"k": "a"}]).key_by("k").aggregate(n=rf.count()).print()
env.plan()
heavy -= {"pyarrow", "numpy", "pandas"}  # pyarrow itself looks for pandas when it converts Python values
assert not heavy & set(sys.modules), heavy & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": " "}, "name="),
        ({"parallelism": 0}, "parallelism="),
        ({"parallelism": 4, "max_parallelism": 2}, "expected 1 to 2"),
        ({"max_parallelism": 100_000}, "max_parallelism="),
    ],
)
def test_a_bad_environment_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(PlanError, match=says):
        rf.StreamEnvironment(**arguments)


def test_configuration_may_be_nested_and_is_checked_at_once() -> None:
    env = rf.StreamEnvironment(config={"checkpoint": {"interval": "5s"}, "batch.rows": 10})
    assert env.config == {"checkpoint.interval": "5s", "batch.rows": 10}
    with pytest.raises(ConfigError, match="did you mean"):
        rf.StreamEnvironment(config={"checkpoint": {"intervall": "5s"}})


def test_a_job_without_a_sink_is_refused() -> None:
    env = rf.StreamEnvironment()
    env.from_rows([{"a": 1}])
    with pytest.raises(PlanError, match="writes nowhere"):
        env.execute(local=True)


def test_a_stream_that_nobody_reads_is_warned_about_and_left_out(env: Any, rows: Any) -> None:
    rows.discard()
    rows.map(lambda row: row)
    graph = env.plan()
    assert len(graph.vertices) == 1
    assert "nothing reads 'map'" in graph.warnings[0]
    assert "test_environment.py" in graph.warnings[0]


def test_rows_that_are_put_aside_for_nobody_are_warned_about() -> None:
    env = rf.StreamEnvironment()
    rows = env.from_rows([{"a": 1}])
    kept = rows.map(lambda row: row, returns={"a": "int64"}, on_error=rf.SideOutput("bad"))
    kept.discard()
    (warning,) = env.plan().warnings
    assert "'bad'" in warning
    assert "test_environment.py" in warning
    assert "they are dropped" in warning
    kept.side_output("bad").discard()
    assert env.plan().warnings == ()


def test_warnings_about_the_configuration_are_in_the_plan() -> None:
    env = rf.StreamEnvironment(config={"checkpoint.interval": "200ms"})
    env.from_rows([{"a": 1}]).discard()
    assert any("checkpoint.interval is 200ms" in warning for warning in env.plan().warnings)
