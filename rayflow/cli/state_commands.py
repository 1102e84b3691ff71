"""`rayflow state`: what a checkpoint holds, without a cluster and without the job's code; and its removal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from rayflow.cli.tables import echo_arrow, echo_json, echo_table
from rayflow.model.config import STORAGE_OPTION_KEYS, parse_assignments, with_environment
from rayflow.model.errors import CorruptCheckpointError
from rayflow.runtime.master.events import iso_utc

if TYPE_CHECKING:
    from rayflow.state.finding import ResolvedCheckpoint
    from rayflow.state.manifest import Manifest
    from rayflow.state.storage import ObjectStore

_SET = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="A storage option, such as s3.endpoint=URL."
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group("state")
def state_group() -> None:
    """Look into a checkpoint."""


@state_group.command("ls")
@click.argument("path")
@_SET
@_JSON
def ls_command(path: str, settings: tuple[str, ...], as_json: bool) -> None:
    """List the complete checkpoints below PATH, or the state files of the checkpoint that PATH is.

    PATH is a folder or URL: a checkpoint storage, a job's folder in it, or a checkpoint.
    """
    from rayflow.client.stores import open_any_store
    from rayflow.state.manifest import MANIFEST

    store = open_any_store(path, _storage_options(settings))
    directories = [
        p.removesuffix(MANIFEST).rstrip("/") for p in store.list("") if p.split("/")[-1] == MANIFEST
    ]
    if not directories:
        raise CorruptCheckpointError(f"no complete checkpoint at or below {store.url}")
    if directories == [""]:
        _list_files(store, as_json)
    else:
        _list_checkpoints(store, directories, as_json)


@state_group.command("read")
@click.argument("path")
@click.option("--operator", metavar="UID", help="Only this operator's state.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=50, show_default=True, help="Rows shown of a part."
)
@_SET
@_JSON
def read_command(
    path: str, operator: str | None, limit: int, settings: tuple[str, ...], as_json: bool
) -> None:
    """Print the state in the checkpoint PATH as tables. A job's folder means its newest checkpoint.

    With --json all rows are printed, whatever --limit says.
    """
    from rayflow.client.stores import open_any_store
    from rayflow.state.files import operator_state
    from rayflow.state.finding import resolve_checkpoint
    from rayflow.state.manifest import CheckpointFiles

    options = _storage_options(settings)
    checkpoint = resolve_checkpoint(path, options, open_any_store)
    manifest = checkpoint.manifest
    files = CheckpointFiles(checkpoint.url, lambda url: open_any_store(url, options))
    uids = [operator] if operator else sorted({f.uid for f in manifest.files} | manifest.sources.keys())
    state = {uid: operator_state(files, manifest, uid) for uid in uids}
    sources = {uid: _splits(manifest, uid) for uid in uids if uid in manifest.sources}
    if as_json:
        tables = {
            uid: {part: table.to_pylist() for part, table in parts.items()} for uid, parts in state.items()
        }
        echo_json({**_summary(manifest, checkpoint.url), "operators": tables, "sources": sources})
        return
    _print_heading(checkpoint)
    for uid in uids:
        if uid in sources:
            click.echo(f"\n{uid}: {len(sources[uid])} splits")
            echo_table(
                ("split", "position", "finished"), [tuple(split.values()) for split in sources[uid][:limit]]
            )
        for part, table in state[uid].items():
            click.echo(f"\n{uid} / {part}: {table.num_rows:,} rows")
            echo_arrow(table, limit)
        if uid not in sources and not state[uid]:
            click.echo(f"\n{uid}: no state")


@state_group.command("rm")
@click.argument("path")
@click.option("--force", is_flag=True, help="Remove what belongs to a job that has not ended, too.")
@_SET
def rm_command(path: str, force: bool, settings: tuple[str, ...]) -> None:
    """Remove the checkpoint or the job's folder that PATH is, with everything in it.

    Refused where the job runs. For rayobj://, PATH may also be a whole store.
    """
    from rayflow.client.removing import remove

    removed = remove(path, _storage_options(settings), force=force)
    click.echo(f"removed {removed} objects below {path}")


def _list_files(store: ObjectStore, as_json: bool) -> None:
    from rayflow.state.manifest import read_manifest

    manifest = read_manifest(store, "")
    files: list[dict[str, Any]] = [
        {
            "operator": f.uid,
            "part": f.part,
            "subtask": f.subtask_index,
            "key_groups": None if f.key_groups is None else list(f.key_groups),
            "rows": f.rows,
            "bytes": f.nbytes,
            "path": f.path if f.origin is None else f"../chk-{f.origin}/{f.path}",
        }
        for f in manifest.files
    ]
    if as_json:
        echo_json({**_summary(manifest, store.url), "files": files})
        return
    click.echo(_heading(manifest, store.url))
    echo_table(
        ("operator", "part", "subtask", "key groups", "rows", "bytes", "path"),
        [
            (*list(f.values())[:3], _range_text(f["key_groups"]), f["rows"], f["bytes"], f["path"])
            for f in files
        ],
    )


def _list_checkpoints(store: ObjectStore, directories: list[str], as_json: bool) -> None:
    from rayflow.state.manifest import read_manifest

    manifests = [(f"{store.url}/{d}", read_manifest(store, d)) for d in directories]
    manifests.sort(key=lambda found: (found[1].job_id, found[1].checkpoint_id))
    summaries = [_summary(manifest, url) for url, manifest in manifests]
    if as_json:
        echo_json(summaries)
        return
    echo_table(
        ("job", "checkpoint", "kind", "triggered at", "operators", "bytes", "path"),
        [
            (s["job_id"], s["id"], s["kind"], s["triggered_at"], s["operator_count"], s["bytes"], s["path"])
            for s in summaries
        ],
    )


def _summary(manifest: Manifest, url: str) -> dict[str, Any]:
    return {
        "job_id": manifest.job_id,
        "id": manifest.checkpoint_id,
        "kind": manifest.kind,
        "triggered_at": iso_utc(manifest.time_ms),
        "attempt": manifest.attempt,
        "operator_count": len(manifest.operators),
        "bytes": manifest.nbytes,
        "path": url,
    }


def _heading(manifest: Manifest, url: str) -> str:
    return (
        f"{manifest.kind} {manifest.checkpoint_id} of job {manifest.job_id} (attempt {manifest.attempt}, "
        f"{iso_utc(manifest.time_ms)}), {manifest.nbytes:,} bytes, at {url}"
    )


def _print_heading(checkpoint: ResolvedCheckpoint) -> None:
    click.echo(_heading(checkpoint.manifest, checkpoint.url))


def _splits(manifest: Manifest, uid: str) -> list[dict[str, Any]]:
    return [
        {
            "split": json.loads(s.split)["id"],
            "position": None if s.position is None else json.loads(s.position),
            "finished": s.finished,
        }
        for s in manifest.sources[uid]
    ]


def _range_text(key_groups: list[int] | None) -> str | None:
    return None if key_groups is None else f"{key_groups[0]}–{key_groups[1] - 1}"


def _storage_options(settings: tuple[str, ...]) -> Mapping[str, str]:
    flat = with_environment(parse_assignments(settings), os.environ)
    return {key: str(value) for key, value in flat.items() if key in STORAGE_OPTION_KEYS}
