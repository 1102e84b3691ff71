"""Has the sinks of a job that is over clean up once more, on a user's word.

Theory of operation. At its end a job has its sinks remove what it staged or prepared, and no checkpoint can commit.
Some things escape that: a target that was away just then; a job whose cluster died, which nobody saw off; and a process
that stood still, and that prepares a transaction after the job's end, before its lease ends it. (When the leases of
workers that it lost have lapsed the job manager has another look: `Closing.clean_up_again`.) A prepared transaction
stays in a database for ever, with its locks. The ids of transactions, and the names of staged files, say whose they
are; so all of it can be found by the job's graph, which lies on the checkpoint storage.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping

from rayflow.client.stores import open_any_store
from rayflow.graph.plan import JobGraph
from rayflow.model.errors import ConfigError
from rayflow.model.ids import Attempt, CheckpointId, JobId
from rayflow.protocol.lifecycle import JobState
from rayflow.runtime.master.job import Job
from rayflow.runtime.master.sink_cleanup import Finding, clean_up_sinks
from rayflow.state.claims import newest_claim
from rayflow.state.finding import list_checkpoints, restorable
from rayflow.state.storage import MissingObject, join_url, parent_url

_NEEDED = ("job.json", "graph.pkl")


def clean(folder: str, options: Mapping[str, str], *, force: bool = False) -> list[Finding]:
    """Have every sink of the job whose folder on checkpoint storage this is clean up; return what is to be told.

    Raises ConfigError where there is no such job, where its code cannot be loaded, and, without `force`, where it has
    not ended by what it last stored. It must not run any more.
    """
    storage, job_id = parent_url(folder), folder.partition("?")[0].rstrip("/").rpartition("/")[2]
    store = open_any_store(storage, options)
    try:
        document, pickled = (store.read(f"{job_id}/{name}") for name in _NEEDED)
    except MissingObject as error:
        raise ConfigError(
            f"nothing to clean up at {folder}: {error}; expected a job's folder, CHECKPOINT-STORAGE/JOB-ID"
        ) from None
    stored = json.loads(document)
    state = JobState(stored["state"])
    if not (state.ended or force):
        raise ConfigError(
            f"{folder} belongs to a job that is {state.value} by what it last stored; cancel it first, or, if it died "
            "with its cluster, give --force"
        )
    completed = max(restorable(store, job_id, list_checkpoints(store, job_id), stored), default=None)
    return clean_up_sinks(
        Job.of(JobId(job_id), _load(pickled), {**options, "checkpoint.storage": storage}),
        Attempt(newest_claim(store, f"{job_id}/attempts")),
        succeeded=state is JobState.FINISHED,
        completed=None if completed is None else CheckpointId(completed),
        way_back=None if completed is None else join_url(folder, f"chk-{completed}").partition("?")[0],
    )


def _load(pickled: bytes) -> JobGraph:
    try:
        graph: JobGraph = pickle.loads(pickled)
    except Exception as error:
        raise ConfigError(
            f"the job's code cannot be loaded: {type(error).__name__}: {error}; the modules that its file imports must "
            "be found: give the folder they are in as PYTHONPATH"
        ) from error
    return graph
