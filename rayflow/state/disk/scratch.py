"""The folder for state on disk: one per process and configured place, gone when the process is.

`<state.dir>/rayflow-state-<user id>/<pid>-<token>/` holds the stores of one process. The process keeps its file `lock`
locked as long as it lives; whoever begins there removes the folders whose lock nobody holds, which processes left that
were killed. Process ids alone would not tell: they are used again.
"""

from __future__ import annotations

import atexit
import ctypes
import fcntl
import os
import secrets
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pyarrow as pa

from rayflow.model.errors import ConfigError
from rayflow.state.disk.rocks import RocksRows
from rayflow.state.disk.row_store import RowStore
from rayflow.state.storage import LocalStore, ObjectStore

_LOCK = "lock"
# glibc's; others do without.
_libc = ctypes.CDLL(None)
_trim: Callable[[int], object] = getattr(_libc, "malloc_trim", lambda pad: None)
_mallopt: Callable[[int, int], object] = getattr(_libc, "mallopt", lambda option, value: None)
_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8
_LARGE_BYTES = 256 << 10
_ARENAS = 2


class Scratch:
    """A process's folder below `parent`. Made with its first store, removed by `remove` or by who comes later."""

    def __init__(self, parent: Path) -> None:
        self._parent = parent
        self._guard = threading.Lock()
        self._count = 0
        self._lock: int | None = None
        self._owner = 0
        self.path = parent

    def open_rows(self, name: str, memory_bytes: int, appended: bool = False) -> RowStore:
        """Open an empty store; `name` is for people who look there, `appended` as in `RocksRows`. ConfigError where the
        folder cannot be used."""
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "_" for c in name)[:80]
        return RocksRows(self._new(safe), memory_bytes, appended)

    def spool(self) -> LocalStore:
        """Return an empty object store, removed when nobody refers to it."""
        folder = self._new("restored")
        folder.mkdir()
        store = LocalStore(folder)
        weakref.finalize(store, shutil.rmtree, folder, ignore_errors=True)
        return store

    def _new(self, name: str) -> Path:
        with self._guard:
            if self._lock is None or self._owner != os.getpid():
                self._begin()
            self._count += 1
            return self.path / f"{name}-{self._count}"

    def remove(self) -> None:
        """Remove the folder with all that is in it."""
        with self._guard:
            if self._lock is not None and self._owner == os.getpid():
                shutil.rmtree(self.path, ignore_errors=True)
                os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        try:
            self._parent.mkdir(parents=True, exist_ok=True)
            with _exclusive(self._parent):
                self._sweep()
                self.path = self._parent / f"{os.getpid()}-{secrets.token_hex(4)}"
                self.path.mkdir()
                self._lock = os.open(self.path / _LOCK, os.O_CREAT | os.O_RDWR, 0o600)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
                self._owner = os.getpid()
                atexit.register(self.remove)
        except OSError as error:
            raise ConfigError(
                f"state.dir: {self._parent} cannot hold state: {error.strerror or error}; name a folder on a local "
                "disk that can be written"
            ) from None

    def _sweep(self) -> None:
        for folder in sorted(self._parent.iterdir()):
            if folder.is_dir() and _is_abandoned(folder):
                shutil.rmtree(folder, ignore_errors=True)


def _is_abandoned(folder: Path) -> bool:
    try:
        lock = os.open(folder / _LOCK, os.O_RDWR)
    except OSError:
        # Folders get their lock while nobody else may look: this one's maker died in between, or it is being removed.
        return True
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(lock)
    return True


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    lock = os.open(folder / f".{_LOCK}", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


@cache
def _bound_malloc() -> None:
    """Have malloc keep little of what is freed, and Arrow use it. By itself it would have eight heaps per core, each as
    large as its threads ever needed, and, once arrays of up to 32 MiB have been freed, take such arrays from these.
    Arrow's own pool has a heap per thread that once allocated, of which `release_unused` gives back the caller's."""
    _mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    _mallopt(_M_ARENA_MAX, _ARENAS)
    pa.set_memory_pool(pa.system_memory_pool())


_scratches: dict[Path, Scratch] = {}
_making = threading.Lock()


def scratch_of(state_dir: str | None) -> Scratch:
    """Return this process's scratch in `state_dir`; None: the system's folder for temporary files."""
    parent = Path(state_dir or tempfile.gettempdir()) / f"rayflow-state-{os.getuid()}"
    with _making:
        if parent not in _scratches:
            _scratches[parent] = Scratch(parent)
        return _scratches[parent]


class LocalDisk:
    """The disk of this node (`runtime.ports.Disk`)."""

    def open_rows(self, folder: str | None, name: str, memory_bytes: int, appended: bool) -> RowStore:
        """Open an empty store in this process's scratch below `folder`."""
        _bound_malloc()
        return scratch_of(folder).open_rows(name, memory_bytes, appended)

    def spool(self, folder: str | None) -> ObjectStore:
        """Return an empty object store there."""
        return scratch_of(folder).spool()

    def give_back(self) -> None:
        """Return to the system what Arrow's pool and malloc hold and do not use."""
        pa.default_memory_pool().release_unused()
        _trim(0)

    def ticks_ns(self) -> int:
        """Nanoseconds of a clock that only goes forward."""
        return time.perf_counter_ns()
