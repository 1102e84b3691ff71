"""The commands of README and cluster/README run: quick ones as they stand; of the others all is parsed."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml

from rayflow.cli.main import cli

ROOT = Path(__file__).resolve().parents[3]
BLOCK = re.compile(r"^```(\w+)(?: (\w+))?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall((ROOT / "README.md").read_text())
CLUSTER_BLOCKS = BLOCK.findall((ROOT / "cluster" / "README.md").read_text())


def blocks(language, mark=None):
    return [text for lang, got, text in BLOCKS if lang == language and (mark is None or got == mark)]


def rayflow_commands():
    texts = [text for lang, _, text in [*BLOCKS, *CLUSTER_BLOCKS] if lang == "bash"]
    lines = [line for text in texts for line in text.splitlines()]
    return sorted({found for line in lines for found in re.findall(r"\brayflow (?:[^|)&>]*)", line)})


@pytest.fixture
def checkout(tmp_path):
    """A folder that looks like the repository, for commands to write into."""
    (tmp_path / "jobs").symlink_to(ROOT / "jobs")
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    return tmp_path


@pytest.mark.parametrize("block", blocks("bash", "quick"))
def test_quick_commands_run_as_they_stand(block, checkout):
    environ = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block],
        cwd=checkout,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert ran.stdout


@pytest.mark.parametrize("block", blocks("python", "quick"))
def test_quick_python_prints_what_its_comments_say(block):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, "README.md", "exec"), {"__name__": "readme"})
    expected = re.findall(r"^# (\{.*\})$", block, re.MULTILINE)
    assert out.getvalue().splitlines() == expected


@pytest.mark.parametrize("line", rayflow_commands())
def test_every_command_and_option_exists(line, checkout, monkeypatch):
    monkeypatch.chdir(checkout)
    monkeypatch.setattr(sys, "path", list(sys.path))
    command: click.Command = cli
    arguments = shlex.split(line)[1:]
    context = click.Context(cli)
    while isinstance(command, click.Group):
        name = arguments.pop(0)
        found = command.get_command(context, name)
        assert found is not None, f"no command {name}"
        command = found
    if "--help" not in arguments:
        command.make_context(command.name, list(arguments))


def test_both_setup_commands_are_one_line_and_begin_with_nothing_but_python():
    for mark in ("demo", "tests"):
        (block,) = blocks("bash", mark)
        assert len(block.splitlines()) == 1
        assert block.startswith("python3 -m venv .venv && .venv/bin/pip install -q -e ")


def test_what_ray_up_reads_is_valid():
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((ROOT / "cluster" / "ray-cluster.yaml").read_text())
    validate_config(prepare_config(config))
    for command in [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]:
        if "--system-config" in command:
            (checks,) = re.findall(r"--system-config='(.*)'", command)
            assert json.loads(checks)


def test_the_kubernetes_manifest_is_a_ray_cluster_of_the_version_tested():
    manifest = yaml.safe_load((ROOT / "cluster" / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    assert manifest["spec"]["rayVersion"].startswith("2.60")
    groups = [manifest["spec"]["headGroupSpec"], *manifest["spec"]["workerGroupSpecs"]]
    for group in groups:
        (container,) = group["template"]["spec"]["containers"]
        assert container["image"]
    text = (ROOT / "cluster" / "README.md").read_text()
    assert f"service/{manifest['metadata']['name']}-head-svc" in text


def test_ci_runs_the_readmes_test_command():
    script = (ROOT / ".ci" / "run").read_text()
    (extract,) = re.findall(r"^tests=\$\((awk .*)\)$", script, re.MULTILINE)
    ran = subprocess.run(["bash", "-c", extract], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [ran.stdout] == blocks("bash", "tests")
