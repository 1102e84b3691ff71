"""Identifiers, as types of their own so that two of them cannot be swapped silently.

A *vertex* is a chain of operators that runs in one task; it is named by the uid of the chain's head
operator. A *subtask* is one parallel instance of a vertex, a *channel* the ordered stream of records
from one subtask to another. An *attempt* counts the executions of a whole job: it only grows, and every
effect (ack, upload, commit, credit) carries it.
"""

from __future__ import annotations

import secrets
from typing import NamedTuple, NewType

JobId = NewType("JobId", str)
"""Names one submission of a job; unique, safe in file names."""

VertexId = NewType("VertexId", str)
"""Uid of the head operator of a chain."""

EdgeId = NewType("EdgeId", int)
"""Position of an edge in the job graph's list of edges."""

Attempt = NewType("Attempt", int)
"""Execution attempt of a job, from 1; only grows."""

CheckpointId = NewType("CheckpointId", int)
"""Number of a checkpoint within a job, from 1; only grows, over attempts too."""


# Tuples, since every frame and every message is looked up by these: hashed and compared without a call of Python code.


class SubtaskId(NamedTuple):
    """One parallel instance of a vertex; `index` counts from 0."""

    vertex: VertexId
    index: int  # type: ignore[assignment]

    def __str__(self) -> str:
        return f"{self.vertex}[{self.index}]"


class ChannelId(NamedTuple):
    """The ordered stream of records over one edge from one subtask to another."""

    edge: EdgeId
    producer: SubtaskId
    consumer: SubtaskId

    def __str__(self) -> str:
        return f"{self.producer}→{self.consumer}#{self.edge}"


def new_job_id(name: str) -> JobId:
    """Return a fresh job id: the job's name reduced to `[a-z0-9-]`, and eight random hex digits."""
    stem = "".join(c if c.isascii() and c.isalnum() else "-" for c in name.lower()).strip("-")
    return JobId(f"{stem[:40] or 'job'}-{secrets.token_hex(4)}")
