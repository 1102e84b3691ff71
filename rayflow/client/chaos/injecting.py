"""Goes through a schedule of faults on one job, and reports what was hit and how long the job took to recover.

Times count from the moment everything is ready. A fault whose victim is not up (it was hit already and is just
being replaced) waits for it, `VICTIM_WAIT_MS` at most, and is then skipped. Between faults the job is looked at several
times a second. After the last one its recovery is waited for, and all that was left is undone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from rayflow.client.chaos.effects import Effects
from rayflow.client.chaos.recoveries import Look, own_attempt, recovered_ms, recovery_event, summary
from rayflow.client.chaos.schedule import Fault
from rayflow.client.chaos.victims import node_of, processes, victims
from rayflow.model.errors import ConfigError, RayflowError, TransientError

VICTIM_WAIT_MS = 60_000
RECOVERY_WAIT_MS = 120_000
DETAILS_WAIT_MS = 5_000
LOOK_EVERY_S = 0.2
_ENDED = frozenset({"FINISHED", "CANCELLED", "FAILED", "STOPPED"})
_MANAGER_WAIT_MS = 300_000
_MAX_LOOKS = 100_000


class Job(Protocol):
    """What is needed of a `JobHandle`."""

    id: str
    name: str

    def describe(self) -> dict[str, Any]:
        """See `JobHandle.describe`."""

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        """See `JobHandle.events`."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Injector:
    """Injects faults into one job. `on_fault` is called with each fault's report once it has been injected or
    skipped. `now_ms` (since the epoch) and `sleep` (seconds) are the clock."""

    def __init__(
        self,
        job: Job,
        effects: Effects,
        *,
        replace_nodes: bool = False,
        on_fault: Callable[[dict[str, Any]], None] = lambda fault: None,
        now_ms: Callable[[], int] = _now_ms,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._now_ms, self._sleep = now_ms, sleep
        self._job = job
        self._effects = effects
        self._replace_nodes = replace_nodes
        self._on_fault = on_fault
        self._looks: list[Look] = []
        self._faults: list[dict[str, Any]] = []
        self._state = ""

    def run(self, faults: Iterable[Fault]) -> None:
        """Inject the faults at their times, until there is none left or the job has ended."""
        description = self._look()
        self._effects.prepare({process.node_id for process in processes(description)})
        begun_ms = self._now_ms()
        for fault in faults:
            if not self._wait_until(begun_ms + fault.at_ms):
                return
            self._inject(fault)
        self._await_recovery()

    def close(self) -> None:
        """Undo what lasts."""
        self._effects.close()

    def report(self, seed: int | None) -> dict[str, Any]:
        """Return what happened, as JSON data."""
        events = self._job.events()
        times = [fault["at_ms"] for fault in self._faults]
        for fault, next_ms in zip(self._faults, [*times[1:], None]):
            self._add_recovery(fault, next_ms, events)
        description = self._job.describe()
        return {
            "job_id": self._job.id,
            "name": self._job.name,
            "seed": seed,
            "state": description["state"],
            "injected": sum(fault["outcome"] == "injected" for fault in self._faults),
            "skipped": sum(fault["outcome"] != "injected" for fault in self._faults),
            "restarts": description["restarts_total"],
            "recovery": summary(self._faults),
            "faults": [dict(fault) for fault in self._faults],
        }

    # ------------------------------------------------------------------------------- looking

    def _look(self) -> dict[str, Any]:
        description = self._described()
        look = Look(self._now_ms(), description["attempt"], description["state"])
        # Only changes are kept: how long the chaos goes on is not bounded.
        if not self._looks or (self._looks[-1].attempt, self._looks[-1].state) != (look.attempt, look.state):
            self._looks.append(look)
            del self._looks[:-_MAX_LOOKS]
        self._state = look.state
        return description

    def _described(self) -> dict[str, Any]:
        # A job manager that was killed cannot answer until it is up again.
        given_up_ms = self._now_ms() + _MANAGER_WAIT_MS
        while True:
            try:
                return self._job.describe()
            except TransientError:
                if self._now_ms() > given_up_ms:
                    raise

    def _wait_until(self, due_ms: int) -> bool:
        """Look at the job until it is time; return False if it has ended by then."""
        while self._state not in _ENDED:
            left_s = (due_ms - self._now_ms()) / 1000
            if left_s <= 0:
                return True
            self._sleep(min(left_s, LOOK_EVERY_S))
            self._look()
        return False

    def _await_recovery(self) -> None:
        """Wait for the recovery from the last fault."""
        if not self._faults:
            return
        last = self._faults[-1]
        lasts_ms = last.get("for_ms", 0) if last["action"] != "kill" else 0
        deadline_ms = self._now_ms() + lasts_ms + RECOVERY_WAIT_MS
        while self._now_ms() < deadline_ms and self._state not in _ENDED:
            over = self._now_ms() >= last["at_ms"] + lasts_ms
            seen = recovered_ms(last["at_ms"], last["attempt"], self._looks) is not None
            # What only lasted a while need not have cost an attempt.
            if over and (seen or (last["action"] != "kill" and self._state == "RUNNING")):
                self._await_details(last)
                return
            self._sleep(LOOK_EVERY_S)
            self._look()

    def _await_details(self, fault: dict[str, Any]) -> None:
        """Give the job time to tell about the recovery itself, if an attempt followed."""
        deadline_ms = self._now_ms() + DETAILS_WAIT_MS
        while (
            self._looks[-1].attempt > fault["attempt"]
            and self._state not in _ENDED
            and self._now_ms() < deadline_ms
            and recovery_event(fault["at_ms"], fault["attempt"], self._job.events()) is None
        ):
            self._sleep(LOOK_EVERY_S)
            self._look()

    def _add_recovery(self, fault: dict[str, Any], next_ms: int | None, events: list[dict[str, Any]]) -> None:
        fault["recovered_ms"], fault["breakdown"] = None, None
        if fault["outcome"] != "injected":
            return
        at_ms, attempt = fault["at_ms"], fault["attempt"]
        if fault["action"] != "kill" and not own_attempt(at_ms, attempt, next_ms, events, self._looks):
            return
        told = recovery_event(fault["at_ms"], fault["attempt"], events)
        if told is not None:
            fault["recovered_ms"], fault["breakdown"] = told
        else:
            fault["recovered_ms"] = recovered_ms(fault["at_ms"], fault["attempt"], self._looks)

    # ------------------------------------------------------------------------------- acting

    def _inject(self, fault: Fault) -> None:
        report: dict[str, Any] = {"number": len(self._faults), **fault.to_json(), "planned_ms": fault.at_ms}
        deadline_ms = self._now_ms() + VICTIM_WAIT_MS
        outcome = ""
        while True:
            description = self._look()
            self._effects.prepare({process.node_id for process in processes(description)})
            report |= {
                "at_ms": self._now_ms(),
                "attempt": description["attempt"],
                "state": description["state"],
                "victims": [],
            }
            if description["state"] in _ENDED:
                outcome = f"skipped: the job had ended as {description['state']}"
                break
            hit = self._hit(fault, description)
            if hit:
                outcome, report["victims"] = "injected", hit
                break
            if self._now_ms() > deadline_ms:
                outcome = f"skipped: {fault.target} was not up for {VICTIM_WAIT_MS // 1000} s"
                break
            self._sleep(LOOK_EVERY_S)
        report["outcome"] = outcome
        self._faults.append(report)
        self._on_fault(report)

    def _hit(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        """Do it; return who was hit, nobody if nobody was there."""
        effects = self._effects
        if fault.action == "kill" and fault.target.startswith("node:"):
            return self._hit_node(fault, description)
        found = victims(fault.target, description)
        match fault.action:
            case "kill" if fault.target != "head":
                if fault.target == "all":
                    # First who would take the places of the others.
                    found = [*effects.hidden(description), *found]
                hit = [p for p in found if effects.kill(p)]
            case "stop":
                hit = [p for p in found if effects.stop(p, fault.for_ms)]
            case "storage_errors":
                hit = [p for p in found if effects.fail_writes(p, fault.for_ms)]
            case _:
                return effects.special(fault, description)
        return [f"{process.name} (process {process.pid} on {process.node_id[:8]})" for process in hit]

    def _hit_node(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        killable = self._effects.killable_nodes()
        if not killable:
            raise ConfigError(
                "no node besides the head is left to kill; `rayflow cluster add-node` adds one, --replace-nodes "
                "one for each that is killed"
            )
        node_id = node_of(fault.target, description, killable)
        if node_id is None:
            return []
        hit = [self._effects.kill_node(node_id)]
        if self._replace_nodes:
            try:
                hit.append(f"replaced by {self._effects.replace_node()}")
            except RayflowError as error:
                hit.append(f"not replaced: {error}")
        return hit
