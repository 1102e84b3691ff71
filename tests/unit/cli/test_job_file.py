from __future__ import annotations

import subprocess
import sys

import click
import cloudpickle
import pytest

from rayflow.cli.errors import JobFileError
from rayflow.cli.job_file import job_of, load_job


@pytest.fixture(autouse=True)
def _clean_imports(monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        del sys.modules[name]


@pytest.fixture
def job(tmp_path):
    def write(text, name="my_job.py"):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write


def test_job_is_named_after_its_file_and_titled_by_its_docstring(job):
    loaded = load_job(job('def build(env):\n    """Count things.\n\n    More."""\n'))
    assert (loaded.name, loaded.title) == ("my_job", "Count things.")


def test_modules_beside_the_file_can_be_imported(job):
    job("FACTOR = 3\n", name="my_helper.py")
    loaded = load_job(job("from my_helper import FACTOR\ndef build(env):\n    return FACTOR\n"))
    assert loaded.build(None) == 3


def test_functions_of_the_file_are_pickled_by_value(job):
    loaded = load_job(job("def double(x):\n    return 2 * x\ndef build(env):\n    return double(21)\n"))
    pickled = cloudpickle.dumps(loaded.build)
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(None))"
    # A process of its own, which cannot import the file.
    ran = subprocess.run([sys.executable, "-c", code], input=pickled, capture_output=True, check=True)
    assert ran.stdout.strip() == b"42"


def test_a_job_called_like_a_loaded_module_does_not_replace_it(job):
    import json

    load_job(job("def build(env): ...\n", name="json.py"))
    assert sys.modules["json"] is json


def test_missing_file_is_bad_usage(tmp_path):
    with pytest.raises(click.UsageError, match=r"nope\.py does not exist"):
        load_job(tmp_path / "nope.py")


def test_syntax_error_shows_file_line_and_caret(job):
    with pytest.raises(JobFileError, match=r"(?s)cannot load .*my_job\.py.*line 2.*\^.*SyntaxError"):
        load_job(job("import os\ndef build(env:\n"))


def test_error_while_importing_shows_the_users_lines_only(job):
    path = job("def helper():\n    return 1 / 0\nhelper()\n")
    with pytest.raises(JobFileError) as caught:
        load_job(path)
    text = str(caught.value)
    assert "ZeroDivisionError: division by zero" in text
    assert f"at {path}:2: return 1 / 0\n  at {path}:3: helper()" in text
    assert "rayflow/cli" not in text
    assert "importlib" not in text


def test_file_without_build_says_so(job):
    with pytest.raises(JobFileError, match=r"defines no function build\(env"):
        load_job(job("x = 1\n"))


def test_job_of_a_function_at_hand_is_named_after_its_file():
    def build(env): ...

    assert job_of(build).name == "test_job_file"
