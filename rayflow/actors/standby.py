"""A warm standby of a job's manager: a second manager actor that is up, and takes over when the first is gone.

Theory of operation. A job with `jobmanager.standby` has two *seats*: actors of the same kind, on two nodes where there
are two. One leads. The other has the job's graph loaded and keeps asking the leader whether it leads; it takes over
when that call fails (Ray tells of a dead process within a second, long before it has started it again), when no
answer comes for `timeout_s`, or when neither leads. What it takes over is fenced like any manager's: it claims the
next tenure (`tenure`), then the next attempt. So if the leader only seemed dead, or both seats take over at once,
one of them learns that it is superseded, ends its process, is started again by Ray, and stands by.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayflow.actors.specs import NAMESPACE, manager_name

_ASK_S = 0.3
_IDLE_ANSWERS = 3
"""So often in a row must the other seat say that it does not lead: it may just be about to."""


def seat_options(job_id: str, seat: int) -> dict[str, Any]:
    """Return the options of the actor in that seat."""
    return {
        "name": manager_name(job_id, seat),
        "namespace": NAMESPACE,
        "lifetime": "detached",
        "get_if_exists": True,
        "num_cpus": 0,
        "max_restarts": -1,
        "max_task_retries": 0,
    }


def find_seat(job_id: str, seat: int) -> Any | None:
    """Return the actor in that seat; None where there is none."""
    try:
        return ray.get_actor(manager_name(job_id, seat), namespace=NAMESPACE)
    except ValueError:
        return None


def start_seat(actor_class: Any, spec: Any, seat: int, own_node: str) -> Any:
    """Start the actor in that seat, unless it is there, on another node than `own_node` if there is one."""
    others = sorted(n["NodeID"] for n in ray.nodes() if n["Alive"] and n["NodeID"] != own_node)
    # Soft: when that node is gone for good Ray may restart it anywhere.
    strategy: Any = NodeAffinitySchedulingStrategy(others[0], soft=True) if others else "DEFAULT"
    options = {**seat_options(spec.job_id, seat), "scheduling_strategy": strategy}
    return ray.remote(actor_class).options(**options).remote(spec, seat)


def leads(actor: Any, timeout_s: float) -> bool | None:
    """Whether the actor leads the job; None where it is dead, or silent for that long."""
    try:
        return bool(ray.get(actor.leads.remote(), timeout=timeout_s))
    except RayError:
        return None


def await_leaders_end(leader: Callable[[], bool | None], patience: int = 1) -> None:
    """Ask `leader` again and again; return once it is gone.

    Until it has once said that it leads, it may say for `patience` times longer that it does not."""
    idle, limit = 0, patience * _IDLE_ANSWERS
    while idle < limit and (answer := leader()) is not None:
        idle, limit = (0, _IDLE_ANSWERS) if answer else (idle + 1, limit)
        time.sleep(_ASK_S)
