"""One job: looked at while it runs through its manager, afterwards through its stored metadata.

Each call asks the job manager; where that is gone for good (the job has ended, or its cluster has), the
storage answers. A manager that Ray is just restarting is waited for, within bounds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from os import PathLike
from typing import Any

from rayflow.client.registry import JobRecord
from rayflow.client.stored_job import StoredJob
from rayflow.model.errors import ConfigError, JobFailed, TransientError
from rayflow.model.results import JobResult

Duration = str | timedelta

ENDED = frozenset({"FINISHED", "CANCELLED", "FAILED", "STOPPED"})

_CALL_TIMEOUT_S = 10.0
_PATIENCE_S = 60.0
_RETRY_S = 0.5
_POLL_S = (0.05, 0.5)


class JobHandle:
    """A job, running or ended. Not for several threads at a time.

    `manager` is its manager actor, if there is one on the `cluster` at hand. With `echo` this process prints what
    the job's subtasks print, whenever it looks at the job.
    """

    def __init__(
        self, record: JobRecord, manager: Any | None, cluster: str | None, *, echo: bool = False
    ) -> None:
        self.id = record.job_id
        self.name = record.name
        self._record = record
        self._cluster = cluster
        self._stored = StoredJob(record, cluster)
        self._manager = manager
        self._seat = 0
        self._echo = echo
        self._echoed = 0

    def status(self) -> str:
        """Return the job's state, such as `RUNNING` (API.md section 4)."""
        self._echo_output()
        state: str = self._ask(lambda m: m.status, self._stored_status)[0]
        return state

    def wait(self, timeout: float | None = None) -> JobResult:
        """Wait, at most `timeout` seconds, for the job's end. Raises JobFailed, or TimeoutError."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        pause_s = _POLL_S[0]
        while self.status() not in ENDED:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise TimeoutError(f"job {self.id} is {self.status()} after {timeout} s; it goes on")
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.2, _POLL_S[1])
        state, failure = self._ask(lambda m: m.status, self._stored_status)
        if failure is not None:
            raise JobFailed(*failure)
        return JobResult(job_id=self.id, name=self.name, state=state, description=self.describe())

    def cancel(self) -> None:
        """Have the job end as CANCELLED; nothing new is committed. Returns at once; harmless when it has ended."""
        self._ask(lambda m: m.cancel, lambda: None)

    def clean(self) -> list[dict[str, Any]]:
        """Have the sinks of a job that is over clean up once more; return what `rayflow clean --json` prints. Raises
        ConfigError where it is not over."""
        from rayflow.client.cleaning import clean

        folder, state = self._stored.folder, self.status()
        if state not in ENDED:
            raise ConfigError(
                f"job {self.id} is {state}; cancel it first, or, if it died with its cluster, "
                f"`rayflow clean {folder} --force`"
            )
        found = clean(folder, self._stored.options, force=True)
        return [finding.to_json() for finding in found]

    def describe(self) -> dict[str, Any]:
        """Return what `rayflow describe --json` prints (API.md section 6)."""
        self._echo_output()
        description: dict[str, Any] = self._ask(lambda m: m.describe, self._stored_description)
        return description

    def metrics(self) -> dict[str, Any]:
        """Return what `rayflow metrics --json` prints: the metrics of each operator, by uid, and of each subtask."""
        metrics: dict[str, Any] = self._ask(lambda m: m.metrics, self._stored_metrics)
        return metrics

    def backpressure(self) -> list[dict[str, Any]]:
        """Return each subtask's `operator`, `index` and its shares of time (0 to 1) over the last seconds."""
        keys = ("operator", "index", "busy", "backpressured", "idle")
        return [{key: subtask[key] for key in keys} for subtask in self.describe()["subtasks"]]

    def checkpoints(self) -> list[dict[str, Any]]:
        """Return the job's checkpoints, oldest first (API.md section 6)."""
        found: list[dict[str, Any]] = self._ask(
            lambda m: m.checkpoints, lambda: (self._stored.document() or {}).get("checkpoints", [])
        )
        return found

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """Return the events whose `seq` is `since` or more, oldest first."""
        found: list[dict[str, Any]] = self._ask(lambda m: m.events, lambda: self._stored.events(since), since)
        return found

    def logs(self) -> dict[str, str]:
        """Return the last lines that each process of the job printed and logged, by process."""
        found: dict[str, str] = self._ask(lambda m: m.logs, self._stored.logs)
        return found

    def chaos(
        self,
        *,
        kill: str | Sequence[str] = (),
        stop: Duration | None = None,
        storage_errors: Duration | None = None,
        every: Duration | None = None,
        times: int | None = None,
        seed: int | None = None,
        schedule: str | PathLike[str] | None = None,
        replace_nodes: bool = False,
    ) -> dict[str, Any]:
        """Inject faults into the running job, and return what `rayflow chaos --json` prints: which they were, and how
        long the job took to recover from each.

        `kill`: one or more of `"subtask"`, `"jobmanager"`, `"node"`, `"all"`. `stop`: stop a subtask's process for so
        long. `storage_errors`: have the job's writes to files fail for so long. What happens is drawn with `seed`,
        every `every`, `times` times; without both it is one fault at once, without `times` they go on until the job
        ends. `schedule`: a file that says which faults happen when. `replace_nodes`: add a node for each one killed.
        """
        from rayflow.client.chaos.running import request, run_chaos

        asked = request(
            kill=kill,
            stop=stop,
            storage_errors=storage_errors,
            every=every,
            times=times,
            seed=seed,
            schedule=schedule,
            replace_nodes=replace_nodes,
        )
        report, _ = run_chaos(self, asked)
        return report

    # ------------------------------------------------------------------------------- the manager

    def _ask(self, method: Callable[[Any], Any], stored: Callable[[], Any], *args: Any) -> Any:
        """Call the manager, else look into the storage."""
        if self._manager is None:
            return stored()
        import ray
        from ray.exceptions import ActorDiedError, ActorUnavailableError, GetTimeoutError, RayTaskError

        given_up_s = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return ray.get(method(self._manager).remote(*args), timeout=_CALL_TIMEOUT_S)
            except ActorDiedError:
                self._manager = None
                return stored()
            except (ActorUnavailableError, GetTimeoutError, RayTaskError) as e:
                # Being restarted, or restarted and not yet running the job again; or its standby does.
                if time.monotonic() > given_up_s:
                    raise TransientError(f"the manager of job {self.id} does not answer: {e}") from e
                self._try_other_seat()
                time.sleep(_RETRY_S)

    def _try_other_seat(self) -> None:
        from rayflow.actors.standby import find_seat

        other = find_seat(self.id, 1 - self._seat)
        if other is not None:
            self._seat, self._manager = 1 - self._seat, other

    def _echo_output(self) -> None:
        while self._echo and self._manager is not None:
            self._echoed, lines = self._ask(lambda m: m.output, lambda: (self._echoed, []), self._echoed)
            for line in lines:
                if line.stream != "log":
                    print(line.text, file=sys.stdout if line.stream == "out" else sys.stderr)
            if not lines:
                return

    # ------------------------------------------------------------------------------- the storage

    def _stored_document(self) -> dict[str, Any]:
        """job.json. A job that did not end, and can have no manager any more, counts as failed."""
        document = self._stored.document()
        if document is None:
            document = {"state": "CREATED", "failure": None, "describe": self._bare_description()}
        if document["state"] not in ENDED and self._record.is_gone_from(self._cluster):
            cause = "the job's Ray cluster ended before the job did"
            failure = {"cause": cause, "operator": None, "location": None}
            description = {**document["describe"], "state": "FAILED", "failure": failure}
            document = {**document, "state": "FAILED", "failure": failure, "describe": description}
        return document

    def _bare_description(self) -> dict[str, Any]:
        return {
            "job_id": self.id,
            "name": self.name,
            "state": "CREATED",
            "attempt": 0,
            "failure": None,
            "restarts": [],
            "restarts_total": 0,
            "operators": [],
            "subtasks": [],
            "job_manager": {"pid": None, "node_id": None},
            "checkpoints": {"completed": 0, "failed": 0, "latest": None},
        }

    def _stored_status(self) -> tuple[str, tuple[str, str, str | None, str | None] | None]:
        document = self._stored_document()
        why = document["failure"] if document["state"] == "FAILED" else None
        failure = None if why is None else (self.id, why["cause"], why["operator"], why["location"])
        return document["state"], failure

    def _stored_description(self) -> dict[str, Any]:
        description: dict[str, Any] = self._stored_document()["describe"]
        return description

    def _stored_metrics(self) -> dict[str, Any]:
        document = self._stored_document()
        description = document["describe"]
        kept = {key: description[key] for key in ("job_id", "attempt", "subtasks")}
        stored = document.get("metrics", {"at": None, "operators": {}})
        return {**kept, **stored, "state": description["state"]}
