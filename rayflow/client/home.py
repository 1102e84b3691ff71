"""The user's data folder: what rayflow remembers between commands, and default checkpoint storage."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def data_folder() -> Path:
    """Return the folder: `RAYFLOW_HOME`, else the platform's place for user data. It may not exist yet."""
    chosen = os.environ.get("RAYFLOW_HOME")
    return Path(chosen).absolute() if chosen else platformdirs.user_data_path("rayflow", appauthor=False)


def default_storage() -> str:
    """Return the checkpoint storage of jobs that name none, as a URL."""
    return (data_folder() / "checkpoints").as_uri()


def write_private(path: Path, text: str) -> None:
    """Replace a file of the data folder atomically; only the user can read it."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write(text)
    temporary.replace(path)
