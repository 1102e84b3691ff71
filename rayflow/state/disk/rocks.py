"""`RowStore` in RocksDB (through rocksdict): state on the node's disk.

Memory. Everything that RocksDB allocates by itself is bounded by `memory_bytes`: a quarter are memtables (two of
them), half is the block cache, which holds index and filter blocks too, and the rest is left for what compactions and
open files take for a while.

Compaction is by sorted runs (universal): keys come in no order, so by levels every few small memtables would have the
whole first level written again. Keys that are *appended* (what is written later lies behind what is there, and is read
in order, about once) have files that do not overlap: by levels these are moved, and nothing is written again. They need
no cache.

Durability. There is none: no write-ahead log, no fsync. The folder is removed with the store.

Views. rocksdict's snapshots pin point reads only, their iterators read what is there now (0.3.29); but an iterator
pins what it saw when it was made. So a view is one.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rayflow.model.errors import StorageError
from rayflow.state.disk.row_store import Pairs

_MIN_MEMTABLE_BYTES = 64 << 10
_MIN_CACHE_BYTES = 256 << 10
_BLOCK_BYTES = 4 << 10
_BLOOM_BITS_PER_KEY = 10
_COMPACTION_READ_BYTES = 256 << 10
_FILE_BYTES = 16 << 20
_BACKGROUND_JOBS = 2
_SORTED_RUNS = 8
_OPEN_FILES = 256


class _Database:
    """An open database in the folder `path`: deleted when all who use it have let go, the store and its views."""

    def __init__(self, path: Path, db: Any) -> None:
        self.path, self.db = path, db
        self._users = 1
        self._lock = threading.Lock()

    def take(self) -> None:
        """Use it, too."""
        with self._lock:
            self._users += 1

    def let_go(self) -> None:
        """Do not use it any more."""
        with self._lock:
            self._users -= 1
            if self._users:
                return
        # Dropped rather than closed, which would first write what is in memory. Now nothing writes any more.
        self.db = None
        shutil.rmtree(self.path, ignore_errors=True)


class RocksView:
    """The rows at one moment. For one thread, any."""

    def __init__(self, database: _Database) -> None:
        self._iterator = database.db.iter()
        self._database = database
        self._origin = str(database.path)
        database.take()

    def __del__(self) -> None:
        self._iterator = None
        self._database.let_go()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `RowView`."""
        found: list[bytes | None] = []
        iterator = self._iterator
        try:
            for key in keys:
                iterator.seek(key)
                there = iterator.valid() and iterator.key() == key
                found.append(iterator.value() if there else None)
            iterator.status()
        except Exception as error:
            raise failed("read", self._origin, error) from None
        return found

    def scan(self, start: bytes, stop: bytes, limit: int) -> Pairs:
        """See `RowView`."""
        return list(zip(*self.scan_apart(start, stop, limit)))

    def scan_apart(self, start: bytes, stop: bytes, limit: int) -> tuple[list[bytes], list[bytes]]:
        """See `RowView`."""
        return _scan(self._iterator, start, stop, limit, self._origin)


class RocksRows:
    """Rows in the folder `path`, which must not exist. `appended`: see the module."""

    def __init__(self, path: Path, memory_bytes: int, appended: bool = False) -> None:
        from rocksdict import Rdict, WriteBatch, WriteOptions

        self._path = path
        self._batch = WriteBatch
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            db: Any = Rdict(str(path), _options(memory_bytes, appended))
        except Exception as error:
            raise failed("open", str(path), error) from None
        options: Any = WriteOptions()
        options.disable_wal = True
        db.set_write_options(options)
        self._database = _Database(path, db)
        self._is_open = True

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """See `RowView`."""
        try:
            found: list[bytes | None] = self._db.get(list(keys))
        except Exception as error:
            raise failed("read", str(self._path), error) from None
        return found

    def scan(self, start: bytes, stop: bytes, limit: int) -> Pairs:
        """See `RowView`."""
        return list(zip(*self.scan_apart(start, stop, limit)))

    def scan_apart(self, start: bytes, stop: bytes, limit: int) -> tuple[list[bytes], list[bytes]]:
        """See `RowView`."""
        return _scan(self._db.iter(), start, stop, limit, str(self._path))

    def write(self, puts: Pairs, deletes: Sequence[bytes] = ()) -> None:
        """See `RowStore`."""
        batch = self._batch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for key, value in puts:
            put(key, value)
        for key in deletes:
            delete(key)
        try:
            self._db.write(batch)
        except Exception as error:
            raise failed("write", str(self._path), error) from None

    def delete_range(self, start: bytes, stop: bytes) -> None:
        """See `RowStore`."""
        try:
            self._db.delete_range(start, stop)
        except Exception as error:
            raise failed("write", str(self._path), error) from None

    def view(self) -> RocksView:
        """See `RowStore`."""
        return RocksView(self._database)

    def nbytes(self) -> int:
        """See `RowStore`."""
        on_disk = self._db.property_int_value("rocksdb.live-sst-files-size") or 0
        unflushed = self._db.property_int_value("rocksdb.cur-size-all-mem-tables") or 0
        return int(on_disk + unflushed)

    def close(self) -> None:
        """See `RowStore`."""
        if self._is_open:
            self._is_open = False
            self._database.let_go()

    @property
    def _db(self) -> Any:
        return self._database.db


def _scan(
    iterator: Any, start: bytes, stop: bytes, limit: int, origin: str
) -> tuple[list[bytes], list[bytes]]:
    keys: list[bytes] = []
    values: list[bytes] = []
    put_key, put_value = keys.append, values.append
    valid, key, value, move = iterator.valid, iterator.key, iterator.value, iterator.next
    try:
        iterator.seek(start)
        for _ in range(limit):
            if not valid():
                break
            at = key()
            if at >= stop:
                return keys, values
            put_key(at)
            put_value(value())
            move()
        iterator.status()
    except Exception as error:
        raise failed("read", origin, error) from None
    return keys, values


def failed(verb: str, origin: str, error: Exception) -> StorageError:
    """Return the error of a store at `origin`."""
    text = str(error)
    full = "No space left" in text or "Disk quota" in text
    hint = "; free space there, or keep state elsewhere (state.dir)" if full else ""
    return StorageError(f"cannot {verb} state at {origin}: {text or type(error).__name__}{hint}")


def _options(memory_bytes: int, appended: bool) -> Any:
    from rocksdict import (
        BlockBasedIndexType,
        BlockBasedOptions,
        Cache,
        DBCompactionStyle,
        DBCompressionType,
        Options,
    )

    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(max(_MIN_CACHE_BYTES, memory_bytes // (8 if appended else 2))))
    blocks.set_block_size(_BLOCK_BYTES)
    blocks.set_bloom_filter(_BLOOM_BITS_PER_KEY, False)
    blocks.set_cache_index_and_filter_blocks(True)
    # In pieces: the filter of a large file would not fit a small cache.
    blocks.set_index_type(BlockBasedIndexType.two_level_index_search())
    blocks.set_partition_filters(True)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_error_if_exists(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(max(_MIN_MEMTABLE_BYTES, memory_bytes // 8))
    options.set_max_write_buffer_number(2)
    options.set_target_file_size_base(_FILE_BYTES)
    # Only what is most likely there is asked for (`AbsentKeys`), and nearly all of that is in the last run.
    options.set_optimize_filters_for_hits(True)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_compaction_style(DBCompactionStyle.level() if appended else DBCompactionStyle.universal())
    options.set_level_zero_file_num_compaction_trigger(_SORTED_RUNS)
    options.set_level_zero_slowdown_writes_trigger(3 * _SORTED_RUNS)
    options.set_level_zero_stop_writes_trigger(5 * _SORTED_RUNS)
    options.set_compaction_readahead_size(_COMPACTION_READ_BYTES)
    options.set_max_background_jobs(_BACKGROUND_JOBS)
    options.set_max_open_files(_OPEN_FILES)
    options.set_keep_log_file_num(1)
    options.set_stats_dump_period_sec(0)
    options.set_use_fsync(False)
    return options
