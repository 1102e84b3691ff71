"""What a user asked for, as faults: kinds to draw from, how often, or a schedule at hand."""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rayflow.client.chaos.schedule import Fault, FaultKind, Schedule, faults
from rayflow.client.chaos.victims import subtask_targets
from rayflow.model.errors import ConfigError

KILLABLE = ("subtask", "jobmanager", "node", "all")
DEFAULT_EVERY_MS = 10_000
_SEEDS = 2**31


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What faults a user wants. Durations in ms, None where not given. Without `every_ms` and `times` it is one
    fault, at once; with `every_ms` alone they go on until the job ends. A `schedule` stands for itself."""

    kill: tuple[str, ...] = ()
    stop_ms: int | None = None
    storage_errors_ms: int | None = None
    every_ms: int | None = None
    times: int | None = None
    seed: int | None = None
    schedule: Schedule | None = None
    replace_nodes: bool = False

    def check(self) -> None:
        """Raise ConfigError for what makes no sense."""
        asked = self.kill or self.stop_ms or self.storage_errors_ms
        if self.schedule is not None and (asked or self.times or self.every_ms or self.seed is not None):
            raise ConfigError(
                "a schedule says which faults happen when: it cannot go with other faults or times"
            )
        if self.schedule is None and not asked:
            raise ConfigError("no fault was asked for: say what to kill or to stop, or give a schedule")
        if unknown := [role for role in self.kill if role not in KILLABLE]:
            raise ConfigError(f"what can be killed is {', '.join(KILLABLE)}; got {unknown[0]!r}")
        if self.times is not None and self.times < 1:
            raise ConfigError(f"expected at least one fault; got times={self.times}")

    def faults(self, description: Mapping[str, Any]) -> tuple[Iterable[Fault], int | None]:
        """Return the faults for a job that describes itself like this, and the seed they are drawn with."""
        self.check()
        if self.schedule is not None:
            return self.schedule.faults, self.schedule.seed
        seed = secrets.randbelow(_SEEDS) if self.seed is None else self.seed
        single = self.every_ms is None and self.times is None
        every_ms = 0 if single else self.every_ms or DEFAULT_EVERY_MS
        endless = faults(self._kinds(subtask_targets(description)), every_ms=every_ms, seed=seed)
        return islice(endless, 1 if single else self.times), seed

    def _kinds(self, subtasks: tuple[str, ...]) -> list[FaultKind]:
        if not subtasks:
            raise ConfigError("the job has no subtasks yet: nothing can be hit")
        targets = {"subtask": subtasks, "jobmanager": ("jobmanager",), "all": ("all",), "node": ()}
        kinds = [FaultKind(action="kill", targets=targets[role]) for role in self.kill]
        if self.stop_ms:
            kinds.append(FaultKind(action="stop", targets=subtasks, for_ms=self.stop_ms))
        if self.storage_errors_ms:
            kinds.append(
                FaultKind(action="storage_errors", targets=("storage",), for_ms=self.storage_errors_ms)
            )
        return kinds
