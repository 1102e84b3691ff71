"""A damaged checkpoint is found before anything runs from it; the job falls back, or stops where rows may be out."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow.protocol.lifecycle import JobState
from rayflow.state.storage import ObjectStore, open_store

KEYS, ROWS = 5, 4_000

SEEN: dict[str, dict[int, int]] = {}


class Latest(rf.Sink):
    """Not transactional: keeps the largest count per key, which a second run from any checkpoint reaches again."""

    accepts_upserts = True

    def __init__(self, name: str) -> None:
        self.name = name

    def write(self, batch: pa.RecordBatch) -> None:
        seen = SEEN.setdefault(self.name, {})
        for row in batch.to_pylist():
            seen[row["k"]] = max(seen.get(row["k"], 0), row["n"])


def numbers(start: int, count: int) -> pa.RecordBatch:
    n = range(start, start + count)
    return pa.record_batch({"n": n, "k": [i % KEYS for i in n]})


def a_job(out: Path | None, name: str, rate: int | None = 8_000) -> rf.StreamEnvironment:
    """Count by key, into a transactional sink at `out`, or into `Latest`."""
    env = rf.StreamEnvironment(name="damaged", parallelism=2)
    counts = env.generate(numbers, rows=ROWS, rate_limit=rate).uid("read").key_by("k")
    counted = counts.aggregate(n=rf.count()).uid("count")
    if out is None:
        counted.sink_to(Latest(name))
    else:
        counted.write_parquet(str(out), mode="upsert").uid("out")
    return env


# ------------------------------------------------------------------------------------------- damages


def flip(store: ObjectStore, path: str) -> None:
    data = bytearray(store.read(path))
    data[len(data) // 2] ^= 1
    store.write(path, bytes(data))


def truncate(store: ObjectStore, path: str) -> None:
    store.write(path, store.read(path)[:-9])


def remove(store: ObjectStore, path: str) -> None:
    store.delete(path)


def renumber(store: ObjectStore, path: str) -> None:
    """Change what a manifest says, so that it still parses."""
    document = json.loads(store.read(path))
    for file in document["files"]:
        file["rows"] += 1
    store.write(path, json.dumps(document).encode())


Damage = Callable[[ObjectStore, str], None]
STATE_FILE, MANIFEST = ".arrow", "manifest.json"
DAMAGES: list[tuple[Damage, str, str]] = [
    (flip, STATE_FILE, "is corrupt: its"),
    (truncate, STATE_FILE, "is corrupt: its"),
    (remove, STATE_FILE, "is missing, although the manifest names it"),
    (truncate, MANIFEST, "is not JSON"),
    (renumber, MANIFEST, "its contents have SHA-256"),
    (remove, MANIFEST, "does not exist"),
]
each_damage = pytest.mark.parametrize(
    ("damage", "part", "said"), DAMAGES, ids=[f"{d.__name__}-{p}" for d, p, _ in DAMAGES]
)


def newest(store: ObjectStore) -> str:
    """Return the folder of the newest complete checkpoint."""
    folders = [p.rpartition("/")[0] for p in store.list("") if p.endswith("/manifest.json")]
    return max(folders, key=lambda folder: int(folder.rpartition("-")[2]))


def damaged(store: ObjectStore, damage: Damage, part: str, uid: str = "count") -> str:
    """Damage the newest checkpoint; return its folder."""
    folder = newest(store)
    files = [p for p in store.list(folder) if p.endswith(part) and (part == MANIFEST or f"/{uid}" in p)]
    damage(store, files[0])
    return folder


def while_running(lab: Any, env: rf.StreamEnvironment, store: ObjectStore, damage: Damage, part: str) -> Any:
    """Return a watcher that damages the newest of two checkpoints and makes a subtask die, until that is noticed. The
    job does not end before."""
    rng, done, over = random.Random(1), set(), lab.held_open(env)

    def look(job: Any) -> str | None:
        if "checkpoint_unusable" in [event["type"] for event in job.master.events()]:
            over.set()
        if over.is_set() or lab.completed(job) < 2 or job.master.state is not JobState.RUNNING:
            return None
        if (folder := newest(store)) not in done:
            done.add(folder)
            damaged(store, damage, part)
        return folder if lab.crash(job, rng) else None

    return lab.watch(look)


def falls_back_and_ends_right(  # type: ignore[no-untyped-def]
    lab, url: str, options: dict[str, str], damage: Damage, part: str, said: str, name: str
) -> None:
    env = a_job(None, name)
    watcher = while_running(lab, env, open_store(url, options), damage, part)
    result = lab.finish(
        env,
        on_start=watcher,
        checkpoint__interval="300ms",
        checkpoint__storage=url,
        checkpoint__retained=5,
        restart__delay="10ms",
        **{key.replace(".", "__"): value for key, value in options.items()},
    )
    assert watcher.stop()
    events = [event for event in result.events if event["type"] == "checkpoint_unusable"]
    assert events, "nobody noticed"
    assert said in events[0]["message"]
    assert SEEN.pop(name) == {k: ROWS // KEYS for k in range(KEYS)}


@each_damage
def test_without_commits_a_running_job_falls_back_and_ends_right(  # type: ignore[no-untyped-def]
    lab, tmp_path, damage: Damage, part: str, said: str, request
) -> None:
    url = f"file://{tmp_path}/checkpoints"
    falls_back_and_ends_right(lab, url, {}, damage, part, said, request.node.name)


@pytest.mark.s3
@pytest.mark.parametrize(("damage", "part", "said"), [DAMAGES[0], DAMAGES[-1]])
def test_the_same_on_s3(  # type: ignore[no-untyped-def]
    lab, s3_server, damage: Damage, part: str, said: str, request
) -> None:
    url = f"s3://{s3_server.new_bucket()}/checkpoints"
    falls_back_and_ends_right(lab, url, s3_server.options, damage, part, said, request.node.name)


@each_damage
def test_where_rows_were_committed_a_running_job_stops_and_says_why(  # type: ignore[no-untyped-def]
    lab, tmp_path, damage: Damage, part: str, said: str, request
) -> None:
    url = f"file://{tmp_path}/checkpoints"
    env = a_job(tmp_path / "out", request.node.name)
    watcher = while_running(lab, env, open_store(url, {}), damage, part)
    failed = lab.fail(
        env,
        on_start=watcher,
        checkpoint__interval="300ms",
        checkpoint__storage=url,
        checkpoint__retained=5,
        restart__delay="10ms",
    )
    assert said in failed.cause
    assert "cannot be used" in failed.cause
    assert "its sinks may have committed rows up to checkpoint" in failed.cause
    assert "--allow-duplicates" in failed.cause


@pytest.fixture
def finished(lab, tmp_path):  # type: ignore[no-untyped-def]
    """A finished job's checkpoint storage, with three checkpoints in it."""

    def run(out: Path | None) -> tuple[ObjectStore, str]:
        url = f"file://{tmp_path}/checkpoints"
        lab.finish(a_job(out, "first"), checkpoint__interval="100ms", checkpoint__storage=url)
        store = open_store(url, {})
        return store, f"{url}/{newest(store).rpartition('/')[0]}"

    return run


@each_damage
def test_from_a_job_whose_newest_checkpoint_is_damaged_stops_where_it_may_have_committed(  # type: ignore[no-untyped-def]
    lab, tmp_path, finished, damage: Damage, part: str, said: str
) -> None:
    store, job_folder = finished(tmp_path / "out")
    damaged(store, damage, part)
    failed = lab.fail(a_job(tmp_path / "out2", "second"), restore_from=job_folder, restart__delay="10ms")
    if (damage, part) == (remove, MANIFEST):
        # What that job noted of itself tells that there was another one.
        assert "its sinks have committed rows up to" in failed.cause
    else:
        assert said in failed.cause
    assert "--allow-duplicates" in failed.cause
    assert not lab.files(tmp_path / "out2")


def test_from_a_job_falls_back_where_duplicates_are_allowed_or_impossible(lab, tmp_path, finished) -> None:  # type: ignore[no-untyped-def]
    store, job_folder = finished(None)
    bad = damaged(store, flip, STATE_FILE)
    SEEN.clear()
    result = lab.finish(a_job(None, "second"), restore_from=job_folder, restart__delay="10ms")
    (event,) = [event for event in result.events if event["type"] == "checkpoint_unusable"]
    assert bad in event["message"]
    assert "is corrupt" in event["message"]


def test_from_a_damaged_checkpoint_that_was_named_itself_never_means_another_one(lab, finished) -> None:  # type: ignore[no-untyped-def]
    store, _ = finished(None)
    bad = damaged(store, flip, STATE_FILE)
    failed = lab.fail(a_job(None, "second"), restore_from=f"{store.url}/{bad}", restart__delay="10ms")
    assert "is corrupt" in failed.cause
    assert bad in failed.cause
    assert "start without --from" in failed.cause


def test_no_subtask_begins_before_every_file_of_all_is_verified(lab, tmp_path, finished) -> None:  # type: ignore[no-untyped-def]
    store, _ = finished(None)
    damaged(store, flip, STATE_FILE, uid="count")
    SEEN.clear()
    bad = f"{store.url}/{newest(store)}"
    lab.fail(a_job(None, "second"), restore_from=bad, restart__delay="10ms")
    assert SEEN == {}
