"""How the user's code gets into the processes of a job.

The job file itself is pickled by value with the job's graph. Modules it imports from beside it are
pickled by name; the folders they are in travel with the job and are put on `sys.path` in every process of it. That
is enough where all nodes see the same files (one machine, a shared file system). On other clusters submit
with `rayflow submit`: Ray then ships the folder to every node, as a working directory that Ray puts on the path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable


def current_code_paths(first: Iterable[str] = ()) -> tuple[str, ...]:
    """Folders that this process imports user code from: `first`, then its `sys.path` outside the installation."""
    installed = (sys.prefix, sys.base_prefix)
    own = (os.path.abspath(path) for path in sys.path if not path.endswith(".zip"))
    outside = (path for path in own if os.path.isdir(path) and not path.startswith(installed))
    return tuple(dict.fromkeys([*map(os.path.abspath, first), *outside]))


def use_code_paths(paths: Iterable[str]) -> None:
    """Import from these folders first, in their order."""
    sys.path[:0] = [path for path in paths if path not in sys.path]
