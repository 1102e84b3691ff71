"""Runs `rayflow` in this process, as a user in a fresh folder."""

from __future__ import annotations

import sys

import pytest

from rayflow.cli.errors import exit_code_of
from rayflow.cli.main import cli


@pytest.fixture
def rayflow(tmp_path, monkeypatch, capsys):
    """Run `rayflow` in a fresh folder; the answer is (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def run(*arguments):
        before = set(sys.modules)
        code = exit_code_of(cli, [str(a) for a in arguments], prog_name="rayflow")
        for name in set(sys.modules) - before:
            if not name.startswith(("rayflow", "pyarrow", "numba", "numpy")):
                sys.modules.pop(name)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run
