"""cluster/namespaces.py says what it needs, and makes and removes only its own. Making a cluster: tests/chaos."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from rayflow.model.errors import ConfigError

SCRIPT = Path(__file__).parents[3] / "cluster" / "namespaces.py"


@pytest.fixture
def namespaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setenv("RAYFLOW_HOME", str(tmp_path))
    spec = importlib.util.spec_from_file_location("namespaces_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "namespaces_under_test", module)
    spec.loader.exec_module(module)
    return module


def test_whoever_is_not_root_is_told(namespaces: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="need root"):
        namespaces.up(3)
    assert namespaces.recorded() is None


def test_what_is_missing_is_named_with_how_to_get_it(
    namespaces: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(ConfigError, match=r"not installed: no-such-thing; .*apt-get install"):
        namespaces.require(("sh", "no-such-thing"))


@pytest.mark.parametrize("command", [["kill", "0"], ["heal"], ["status"], ["exec", "0", "--", "true"]])
def test_without_a_cluster_every_command_says_so(
    namespaces: ModuleType, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert namespaces.main(command) == 2
    assert "there is no cluster; `up` starts one" in capsys.readouterr().err
    assert namespaces.main(["down"]) == 0
    assert capsys.readouterr().out == "there was no cluster\n"


def test_a_record_is_read_back_and_a_process_of_another_start_time_is_not_ours(
    namespaces: ModuleType,
) -> None:
    node = namespaces.Node(1, os.getpid(), 1)
    made = namespaces.Namespaces(net=3, folder="/tmp/none", token="t", redis=(1, 2), nodes=(node,))
    namespaces._save(made)
    assert namespaces.recorded() == made
    assert not node.alive
    assert (made.address, made.ip(1), made.bridge, made.link(1)) == (
        "10.77.3.10:6379",
        "10.77.3.11",
        "rfbr3",
        "rfh3n1",
    )
    with pytest.raises(ConfigError, match=r"no node 7; nodes are \[1\]"):
        made.node(7)
