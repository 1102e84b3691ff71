from __future__ import annotations

import pickle
import subprocess
import sys

from rayflow.cli.job_file import load_job
from rayflow.graph.shipping import ship
from rayflow.model.tracebacks import describe_error


def test_an_error_in_a_shipped_function_names_the_users_file_and_line(tmp_path, monkeypatch):
    # cloudpickle alone calls the file "<dynamic-code>".
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "job_that_raises.py"
    path.write_text("def build(env):\n    def inner():\n        raise ValueError('no')\n    inner()\n")
    build = pickle.loads(ship(load_job(path).build))
    try:
        build(None)
    except ValueError as error:
        said = describe_error(error)
    assert said == f"ValueError: no\n  in inner, {path}:3: raise ValueError('no')"


def test_a_process_that_cannot_import_the_functions_file_runs_them(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "job_elsewhere.py"
    path.write_text("def double(x):\n    return 2 * x\ndef build(env):\n    return double(21)\n")
    shipped = ship(load_job(path).build)
    path.unlink()
    code = "import pickle, sys; print(pickle.load(sys.stdin.buffer)(None))"
    ran = subprocess.run([sys.executable, "-c", code], input=shipped, capture_output=True, check=True)
    assert ran.stdout.strip() == b"42"
