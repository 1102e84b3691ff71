"""What a file sink has committed: its output, read like anybody would read it."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa
import pyarrow.dataset as ds
from pyarrow import fs

from rayflow.connectors.file_sink import FileSink
from rayflow.connectors.filesystems import open_filesystem


def committed(sink: FileSink, options: Mapping[str, str]) -> ds.FileSystemDataset:
    """Return the sink's committed files as one data set. `options` are `s3.*` settings."""
    filesystem, path = open_filesystem(sink.url, options)
    suffix = sink.format.suffix
    found = filesystem.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    # Only names with the suffix are committed; what is pending has another one.
    files = sorted(info.path for info in found if info.is_file and info.path.endswith(suffix))
    return _dataset(sink, filesystem, path, files)


def committed_rows(sink: FileSink, options: Mapping[str, str]) -> pa.Table:
    """Return all committed rows. Files of different schemas are brought to one that all can be widened to, else
    their columns to text."""
    whole = committed(sink, options)
    path = open_filesystem(sink.url, options)[1]
    tables = [_dataset(sink, whole.filesystem, path, [file]).to_table() for file in whole.files]
    if not tables:
        return pa.table({})
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        texts = [t.cast(pa.schema([(name, pa.string()) for name in t.column_names])) for t in tables]
        return pa.concat_tables(texts, promote_options="default")


def _dataset(sink: FileSink, filesystem: fs.FileSystem, path: str, files: list[str]) -> ds.FileSystemDataset:
    suffix = sink.format.suffix
    return ds.dataset(
        files,
        filesystem=filesystem,
        format="json" if suffix == ".jsonl" else suffix[1:],
        partitioning="hive" if sink.partition_by else None,
        partition_base_dir=path,
    )
