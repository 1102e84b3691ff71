"""Who is hit when, on a job and a world that are made up: the clock is virtual."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

import pytest

from rayflow.client.chaos.asking import Request
from rayflow.client.chaos.effects import RayEffects
from rayflow.client.chaos.injecting import Injector
from rayflow.client.chaos.recoveries import Look, recovered_ms
from rayflow.client.chaos.schedule import Fault
from rayflow.client.chaos.victims import Process, node_of, victims
from rayflow.model.errors import ConfigError, TransientError

RECOVERY_MS = 1_500


class World:
    """A clock, a job of two subtasks and a manager on two nodes, and effects on it: who is killed is back, in a new
    attempt and process, `RECOVERY_MS` later."""

    def __init__(self) -> None:
        self.id, self.name = "job-1", "job"
        self.clock_ms = 1_000_000
        self.attempt = 1
        self.state = "RUNNING"
        self.pids: dict[str, int | None] = {"map[0]": 100, "map[1]": 101, "jobmanager": 102}
        self.nodes = {"map[0]": "aa", "map[1]": "bb", "jobmanager": "aa"}
        self.log: list[tuple[int, str]] = []
        self.told: list[dict[str, Any]] = []
        self.ends_at_ms: int | None = None
        self.silent = 0
        self._back_at_ms: int | None = None

    def sleep(self, seconds: float) -> None:
        self.clock_ms += int(seconds * 1000)
        if self._back_at_ms is not None and self.clock_ms >= self._back_at_ms:
            self._back_at_ms = None
            self.state = "RUNNING"
            self.attempt += 1
            self.pids = {name: pid or 1000 + self.clock_ms for name, pid in self.pids.items()}
        if self.ends_at_ms is not None and self.clock_ms >= self.ends_at_ms:
            self.state = "FINISHED"

    def describe(self) -> dict[str, Any]:
        if self.silent:
            self.silent -= 1
            raise TransientError("no answer")
        subtasks = [
            {"operator": "map", "index": i, "pid": self.pids[f"map[{i}]"], "node_id": self.nodes[f"map[{i}]"]}
            for i in range(2)
        ]
        manager = {"pid": self.pids["jobmanager"], "node_id": self.nodes["jobmanager"]}
        restarts = [{}] * (self.attempt - 1)
        return {
            "state": self.state,
            "attempt": self.attempt,
            "subtasks": subtasks,
            "job_manager": manager,
            "restarts": restarts,
            "restarts_total": len(restarts),
        }

    def events(self, since: int = 0) -> list[dict[str, Any]]:
        return self.told

    def prepare(self, node_ids: set[str]) -> None: ...

    def hidden(self, description: dict[str, Any]) -> list[Process]:
        return [
            Process(role="subtask", name="spare", pid=7, node_id="bb"),
            Process(role="jobmanager", name="standby", pid=8, node_id="bb"),
        ]

    def kill(self, process: Process) -> bool:
        self.log.append((self.clock_ms, f"kill {process.name} {process.pid}"))
        self.pids[process.name] = None
        self.state = "RESTARTING"
        self._back_at_ms = self.clock_ms + RECOVERY_MS
        return True

    def stop(self, process: Process, for_ms: int) -> bool:
        self.log.append((self.clock_ms, f"stop {process.name} {for_ms}"))
        return True

    def fail_writes(self, process: Process, for_ms: int) -> bool:
        self.log.append((self.clock_ms, f"fail writes {process.name} {for_ms}"))
        return True

    def killable_nodes(self) -> list[str]:
        return ["bb", "cc"]

    def kill_node(self, node_id: str) -> str:
        self.log.append((self.clock_ms, f"kill node {node_id}"))
        return f"node {node_id}"

    def replace_node(self) -> str:
        raise TransientError("Ray node 3 did not start")

    def special(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        self.log.append((self.clock_ms, str(fault)))
        return ["somebody"]

    def close(self) -> None:
        self.log.append((self.clock_ms, "close"))


@pytest.fixture
def world() -> World:
    return World()


def injector(world: World, **options: Any) -> Injector:
    return Injector(world, world, now_ms=lambda: world.clock_ms, sleep=world.sleep, **options)


def kill(at_ms: int, target: str) -> Fault:
    return Fault(at_ms=at_ms, action="kill", target=target)


def test_faults_happen_at_their_times_to_who_has_the_role_then(world: World) -> None:
    # map[0] has another process when it is hit again
    chaos = injector(world)
    chaos.run([kill(0, "subtask:map[0]"), kill(5_000, "subtask:map[0]")])
    (first, one), (second, two) = world.log
    assert (first, one) == (1_000_000, "kill map[0] 100")
    assert 1_005_000 <= second < 1_005_500
    assert two.startswith("kill map[0] 100")
    assert two != one
    report = chaos.report(3)
    assert [f["outcome"] for f in report["faults"]] == ["injected", "injected"]
    assert all(RECOVERY_MS <= f["recovered_ms"] < RECOVERY_MS + 500 for f in report["faults"])
    assert report["recovery"]["kill subtask"]["recovered"] == 2
    assert (report["seed"], report["restarts"], report["injected"]) == (3, 2, 2)


def test_a_victim_that_is_just_being_replaced_is_waited_for(world: World) -> None:
    chaos = injector(world)
    chaos.run([kill(0, "subtask:map[0]"), kill(100, "subtask:map[0]")])
    (_, _), (second, _) = world.log
    assert second >= 1_000_000 + RECOVERY_MS


def test_a_victim_that_never_comes_is_skipped(world: World) -> None:
    chaos = injector(world)
    chaos.run([kill(0, "subtask:gone[7]"), kill(10, "subtask:map[1]")])
    report = chaos.report(None)
    assert report["faults"][0]["outcome"] == "skipped: subtask:gone[7] was not up for 60 s"
    assert (report["skipped"], report["injected"]) == (1, 1)


def test_all_are_hit_at_once_with_whoever_would_take_their_places_the_manager_last(world: World) -> None:
    chaos = injector(world)
    chaos.run([kill(0, "all")])
    everyone = ["spare", "standby", "map[0]", "map[1]", "jobmanager"]
    assert [what.split()[1] for _, what in world.log] == everyone
    assert len({at for at, _ in world.log}) == 1
    assert chaos.report(1)["faults"][0]["victims"][1] == "standby (process 8 on bb)"


def test_the_end_of_the_job_ends_the_chaos(world: World) -> None:
    world.ends_at_ms = world.clock_ms + 3_000
    chaos = injector(world)
    chaos.run(kill(2_000 * k, "subtask:map[0]") for k in range(1_000))
    report = chaos.report(1)
    assert report["state"] == "FINISHED"
    assert 1 <= report["injected"] <= 2
    assert world.clock_ms < 1_010_000


def test_a_manager_that_does_not_answer_for_a_while_does_not_end_it(world: World) -> None:
    world.silent = 3
    chaos = injector(world)
    chaos.run([kill(0, "jobmanager")])
    assert chaos.report(1)["injected"] == 1


def test_what_lasts_a_while_is_waited_out_and_need_not_cost_an_attempt(world: World) -> None:
    chaos = injector(world)
    chaos.run([Fault(at_ms=0, action="stop", target="subtask:map[1]", for_ms=4_000)])
    assert world.clock_ms >= 1_004_000
    (fault,) = chaos.report(1)["faults"]
    assert (fault["outcome"], fault["recovered_ms"]) == ("injected", None)


def test_what_cost_no_attempt_is_not_charged_with_a_later_faults_recovery(world: World) -> None:
    chaos = injector(world)
    stop = Fault(at_ms=0, action="stop", target="subtask:map[1]", for_ms=3_000)
    chaos.run([stop, kill(60_000, "subtask:map[0]")])
    stopped, killed = chaos.report(1)["faults"]
    assert (stopped["outcome"], stopped["recovered_ms"]) == ("injected", None)
    assert RECOVERY_MS <= killed["recovered_ms"] < RECOVERY_MS + 500


def test_storage_errors_hit_every_process(world: World) -> None:
    injector(world).run([Fault(at_ms=0, action="storage_errors", target="storage", for_ms=500)])
    assert [what for _, what in world.log] == [
        f"fail writes {who} 500" for who in ("map[0]", "map[1]", "jobmanager")
    ]


def test_nodes_that_run_nothing_of_the_job_are_left_alone(world: World) -> None:
    chaos = injector(world, replace_nodes=True)
    for number in range(3):
        chaos.run([kill(0, f"node:{number}")])
    assert {what for _, what in world.log} == {"kill node bb"}
    assert chaos.report(1)["faults"][0]["victims"] == ["node bb", "not replaced: Ray node 3 did not start"]


def test_what_is_special_to_a_cluster_is_left_to_it(world: World) -> None:
    faults = [
        Fault(at_ms=0, action="partition", target="node:1", peer="node:2", for_ms=900, one_way=True),
        Fault(at_ms=0, action="kill", target="head", for_ms=2_000),
        Fault(at_ms=0, action="slow_storage", target="storage", for_ms=900, delay_ms=50),
    ]
    injector(world).run(faults)
    assert [what for _, what in world.log] == [str(fault) for fault in faults]


def test_a_cluster_without_anything_special_says_where_there_is(world: World) -> None:
    fault = Fault(at_ms=0, action="partition", target="node:1")
    with pytest.raises(ConfigError, match=r"partition node:1: not something .*tests\.chaos --long"):
        RayEffects().special(fault, world.describe())


def test_the_jobs_own_report_of_a_recovery_counts(world: World) -> None:
    chaos = injector(world)
    chaos.run([kill(0, "subtask:map[0]")])
    at = datetime.fromtimestamp(1_000_700 / 1000, tz=timezone.utc).isoformat(timespec="milliseconds")
    world.told = [
        {
            "seq": 1,
            "at": at,
            "type": "recovered",
            "message": "",
            "attempt": 2,
            "detect_ms": 20,
            "reset_ms": 50,
        }
    ]
    (fault,) = chaos.report(1)["faults"]
    assert fault["recovered_ms"] == 700
    assert fault["breakdown"] == {"attempt": 2, "detect_ms": 20, "reset_ms": 50}


def test_running_in_the_old_attempt_is_not_recovered() -> None:
    looks = [
        Look(10, 1, "RUNNING"),
        Look(20, 1, "RESTARTING"),
        Look(30, 2, "RESTARTING"),
        Look(45, 2, "RUNNING"),
    ]
    assert recovered_ms(12, 1, looks) == 33
    assert recovered_ms(12, 2, looks) is None


def test_roles(world: World) -> None:
    description = world.describe()
    assert [p.pid for p in victims("subtask:map[1]", description)] == [101]
    assert [p.pid for p in victims("jobmanager", description)] == [102]
    assert victims("subtask:map[2]", description) == []
    assert [node_of(f"node:{n}", description, ["bb", "aa"]) for n in range(3)] == ["bb", "aa", "bb"]
    assert node_of("node:1", description, ["cc"]) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "no fault was asked for"),
        ({"kill": ("dog",)}, "what can be killed is subtask, jobmanager, node, all; got 'dog'"),
        ({"kill": ("all",), "times": 0}, "at least one fault"),
    ],
)
def test_what_makes_no_sense_is_said(asked: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Request(**asked).check()


def test_without_a_pace_it_is_one_fault_at_once(world: World) -> None:
    description = world.describe()
    faults, seed = Request(kill=("subtask",)).faults(description)
    assert [f.at_ms for f in faults] == [0]
    assert seed is not None
    times, _ = Request(kill=("subtask",), times=3, seed=5).faults(description)
    assert len(list(times)) == 3
    again, _ = Request(kill=("subtask",), times=3, seed=5).faults(description)
    assert list(again) == list(Request(kill=("subtask",), times=3, seed=5).faults(description)[0])
