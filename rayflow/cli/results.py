"""What a finished job wrote: the first rows of each file sink's committed output, and how many there are.

The plan stays pure: nothing is collected for this. The output's files are read like anybody would read them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import click

from rayflow.cli.tables import echo_arrow
from rayflow.connectors.file_sink import FileSink

if TYPE_CHECKING:
    from rayflow.graph.plan import JobGraph

ROWS_SHOWN = 10


def echo_results(graph: JobGraph, storage_options: Mapping[str, str]) -> None:
    """Print the first rows of what each file sink of the job has committed."""
    for vertex in graph.vertices:
        for operator in vertex.operators:
            if isinstance(operator.payload, FileSink):
                _echo_output(operator.payload, storage_options)


def _echo_output(sink: FileSink, storage_options: Mapping[str, str]) -> None:
    import pyarrow as pa

    from rayflow.connectors.committed import committed

    shown_url = sink.url.partition("?")[0]
    try:
        dataset = committed(sink, storage_options)
        rows, files = dataset.count_rows(), len(dataset.files)
        first = dataset.head(ROWS_SHOWN)
    except (OSError, pa.ArrowException) as error:
        # The job has finished; that its output cannot be shown here (another machine's disk) does not undo it.
        click.echo(f"\n{shown_url} cannot be read here: {error}")
        return
    click.echo(f"\n{shown_url}: {rows:,} rows in {files:,} {'file' if files == 1 else 'files'}")
    if rows:
        echo_arrow(first, None)
    if rows > first.num_rows:
        click.echo(f"… {rows - first.num_rows:,} more rows")
