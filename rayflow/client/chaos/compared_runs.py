"""A job run twice, without and with faults, and its committed outputs compared: they must be the same rows.

The file sinks of the job's graph are pointed at a scratch folder, one below it for each run; nothing else of the job is
changed. Jobs whose input never ends, and those without a file sink, cannot be compared in this way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rayflow.client.chaos.asking import Request
from rayflow.client.chaos.running import run_chaos
from rayflow.client.chaos.schedule import Schedule
from rayflow.client.handle import JobHandle
from rayflow.client.submitting import submit
from rayflow.connectors.committed import committed_rows
from rayflow.graph.plan import JobGraph
from rayflow.model.config import STORAGE_OPTION_KEYS
from rayflow.model.errors import JobFailed, PlanError
from rayflow.testing.comparison import compare
from rayflow.testing.outputs import file_sinks, redirected

DEFAULTS = {"checkpoint.interval": "2s", "restart.max_attempts": 1_000_000}
"""Settings of a job that has none of its own: many checkpoints, and no limit to the faults it may take."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """What to run. `scratch` is a path or URL that every node reaches; columns `ignore` are not compared."""

    graph: JobGraph
    config: Mapping[str, Any]
    asked: Request
    scratch: str
    address: str | None = None
    ignore: tuple[str, ...] = ()

    def check(self) -> None:
        """Raise PlanError for a job whose runs cannot be compared, ConfigError for faults that make no sense."""
        self.asked.check()
        for vertex in self.graph.vertices:
            first = vertex.operators[0]
            if first.kind == "source" and not first.payload.bounded:
                raise PlanError(
                    f"source {first.name!r} never ends, so there is no end result to compare; start the job with "
                    "`rayflow run --detach`, and give its name to `rayflow chaos`",
                    first.location,
                )
        if not file_sinks(self.graph):
            raise PlanError("the job writes no files, so there is nothing to compare")

    def run(
        self, say: Callable[[str], None], on_fault: Callable[[dict[str, Any]], None]
    ) -> tuple[dict[str, Any], Schedule]:
        """Run it twice; return the report and the faults. JobFailed if the run without faults fails."""
        self.check()
        say("running the job without faults …")
        calm, before_s = redirected(self.graph, f"{self.scratch}/without"), time.monotonic()
        self._to_its_end(self._submit(calm))
        without_s = time.monotonic() - before_s
        say(f"done in {without_s:.1f} s; running it with faults …")
        stormy, before_s = redirected(self.graph, f"{self.scratch}/with"), time.monotonic()
        job = self._submit(stormy)
        try:
            report, schedule = run_chaos(job, self.asked, on_fault=on_fault)
            failure = self._failure(job)
        except BaseException:
            job.cancel()
            raise
        report |= {
            "state": job.status(),
            "failure": failure,
            "seconds_without": round(without_s, 1),
            "seconds_with": round(time.monotonic() - before_s, 1),
            "outputs": self._outputs(calm, stormy) if failure is None else [],
        }
        return {**report, "exact": failure is None and all(o["exact"] for o in report["outputs"])}, schedule

    def _submit(self, graph: JobGraph) -> JobHandle:
        return submit(graph, {**DEFAULTS, **self.config}, graph.name, self.address)

    def _to_its_end(self, job: JobHandle) -> None:
        try:
            job.wait()
        except BaseException:
            job.cancel()
            raise

    def _failure(self, job: JobHandle) -> str | None:
        try:
            job.wait()
        except JobFailed as error:
            return str(error)
        return None

    def _outputs(self, calm: JobGraph, stormy: JobGraph) -> list[dict[str, Any]]:
        options = {key: str(self.config[key]) for key in STORAGE_OPTION_KEYS if key in self.config}
        return [
            {
                "uid": expected.uid,
                "path": found.payload.url.partition("?")[0],
                **compare(
                    committed_rows(expected.payload, options),
                    committed_rows(found.payload, options),
                    self.ignore,
                ).to_json(),
            }
            for expected, found in zip(file_sinks(calm), file_sinks(stormy), strict=True)
        ]
