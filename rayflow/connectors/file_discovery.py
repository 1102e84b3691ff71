"""Which files a path means: one file, a directory (recursively), or a glob; local or on S3.

In a directory, files count by the format's suffixes; names that begin with `.` or `_`, and everything below
directories so named, are hidden (staged output, temporary files). In a glob `*` and `?` stay within a name,
`**` crosses directories. A file must be complete when it appears: move it there under its name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow.fs as pafs

from rayflow.connectors.filesystems import at_server, open_filesystem
from rayflow.model.errors import PlanError


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundFile:
    """A file: its path within the file system, and its size in bytes."""

    path: str
    size: int


def find_files(
    url: str, suffixes: Sequence[str], options: Mapping[str, str], *, may_be_empty: bool = False
) -> tuple[Any, list[FoundFile]]:
    """Return the file system of `url` and the files it means, by name.

    Raises PlanError, naming the path, where there is none (unless `may_be_empty`: then a directory may be
    empty, and a glob match nothing).
    """
    filesystem, path = open_filesystem(url, options)
    try:
        files = _find(filesystem, path, suffixes)
    except (FileNotFoundError, NotADirectoryError):
        files = None
    except OSError as error:
        raise PlanError(f"cannot list {url}{at_server(url, options)}: {_first_line(error)}") from error
    if files is None:
        raise PlanError(f"no such file or directory: {url}")
    if not files and not may_be_empty:
        kinds = ", ".join(suffixes) or "any"
        raise PlanError(
            f"{url} holds no files to read (looked for {kinds}; names starting with . or _ are hidden)"
        )
    return filesystem, sorted(files, key=lambda f: f.path)


def _find(filesystem: Any, path: str, suffixes: Sequence[str]) -> list[FoundFile] | None:
    info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.File:
        return [FoundFile(path=path, size=info.size)]
    if info.type == pafs.FileType.Directory:
        found = _below(filesystem, path)
        return [
            f for f in found if _visible(f.path, path) and (not suffixes or f.path.endswith(tuple(suffixes)))
        ]
    if any(c in path for c in "*?["):
        base = re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
        pattern = re.compile(_glob_regex(path))
        return [f for f in _below(filesystem, base) if pattern.fullmatch(f.path) and _visible(f.path, base)]
    return None


def _below(filesystem: Any, directory: str) -> list[FoundFile]:
    selector = pafs.FileSelector(directory or ".", recursive=True)
    infos = filesystem.get_file_info(selector)
    return [FoundFile(path=i.path, size=i.size) for i in infos if i.type == pafs.FileType.File]


def _visible(path: str, base: str) -> bool:
    relative = path[len(base) :].strip("/")
    return not any(part.startswith((".", "_")) for part in relative.split("/"))


def _glob_regex(glob: str) -> str:
    pieces = re.split(r"(\*\*/?|\*|\?|\[[^\]]+\])", glob)
    special = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(
        special.get(p, p.replace("[!", "[^") if p.startswith("[") and p.endswith("]") else re.escape(p))
        for p in pieces
    )


def _first_line(error: BaseException) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
