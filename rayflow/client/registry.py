"""Which jobs this user submitted, and where each keeps its metadata: one small JSON file per job.

Credentials are never kept; reading a job's storage takes them from the environment again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from rayflow.client.home import data_folder, write_private
from rayflow.client.processes import is_alive

_NOT_SECRET = ("s3.endpoint", "s3.region", "s3.allow_http")


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRecord:
    """A submitted job. `cluster` is the Ray address it runs at; `storage` the URL of its checkpoint storage,
    `options` what else is needed to open that, without secrets. `owner` is the process whose own local Ray it
    runs on, as (pid, start time), None on a cluster that outlives its submitter."""

    job_id: str
    name: str
    cluster: str
    storage: str
    submitted_at_ms: int
    options: dict[str, str] = field(default_factory=dict)
    owner: tuple[int, int] | None = None

    def is_gone_from(self, cluster: str | None) -> bool:
        """Whether a job without a manager on `cluster`, the one at hand, can have none anywhere."""
        if self.owner is not None:
            return not is_alive(*self.owner)
        return self.cluster == cluster


def not_secret(options: Mapping[str, str]) -> dict[str, str]:
    """Return those storage options that may be kept on disk."""
    return {key: options[key] for key in _NOT_SECRET if key in options}


def remember(record: JobRecord) -> None:
    """Keep a job's record."""
    write_private(data_folder() / "jobs" / f"{record.job_id}.json", json.dumps(asdict(record)))


def records() -> list[JobRecord]:
    """Return every job's record, oldest first. Files that are no records are passed over."""
    found = []
    for path in (data_folder() / "jobs").glob("*.json"):
        try:
            found.append(JobRecord(**json.loads(path.read_text(encoding="utf-8"))))
        except (ValueError, TypeError, OSError):
            continue
    return sorted(found, key=lambda r: (r.submitted_at_ms, r.job_id))
