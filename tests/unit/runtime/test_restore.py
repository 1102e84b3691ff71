from __future__ import annotations

import pytest

from rayflow.graph.plan import JobGraph, JobVertex, OperatorSpec
from rayflow.model.ids import SubtaskId, VertexId
from rayflow.runtime.master.restore import RestorePoint
from rayflow.state.manifest import Manifest, StateFile
from rayflow.state.parts import PartKind


def written(kind: PartKind, index: int, key_groups: tuple[int, int] | None = None) -> StateFile:
    return StateFile(
        path=f"{kind}-{index}.arrow",
        uid="op",
        part=kind,
        kind=kind,
        subtask_index=index,
        nbytes=1,
        sha256="",
        rows=1,
        key_groups=key_groups,
    )


FILES = (
    written("keyed", 0, (0, 4)),
    written("keyed", 1, (4, 8)),
    written("list", 0),
    written("list", 1),
    written("broadcast", 0),
    written("in-flight", 0, (0, 4)),
    written("in-flight", 1),
)


@pytest.mark.parametrize(
    ("parallelism", "expected"),
    [
        (1, [{"keyed-0", "keyed-1", "list-0", "list-1", "broadcast-0", "in-flight-0", "in-flight-1"}]),
        (
            2,
            [
                {"keyed-0", "list-0", "broadcast-0", "in-flight-0"},
                {"keyed-1", "list-1", "broadcast-0", "in-flight-1"},
            ],
        ),
        (
            3,
            [
                {"keyed-0", "list-0", "broadcast-0", "in-flight-0"},
                {"keyed-0", "keyed-1", "list-1", "broadcast-0", "in-flight-0", "in-flight-1"},
                {"keyed-1", "broadcast-0"},
            ],
        ),
    ],
)
def test_keyed_parts_go_by_key_group_list_parts_are_dealt_out_broadcast_parts_go_to_all(
    parallelism: int, expected: list[set[str]]
) -> None:
    spec = OperatorSpec(uid="op", name="op", kind="operator", payload=None)
    vertex = JobVertex(id=VertexId("op"), operators=(spec,), parallelism=parallelism)
    graph = JobGraph(name="job", max_parallelism=8, vertices=(vertex,), edges=())
    manifest = Manifest(
        job_id="job",
        attempt=1,
        checkpoint_id=1,
        time_ms=0,
        max_parallelism=8,
        operators={"op": 2},
        files=FILES,
    )
    point = RestorePoint(manifest, "memory://x", "x")
    infos = [point.info(graph, SubtaskId(vertex.id, index)) for index in range(parallelism)]
    assert all(info.rescaled == (parallelism != 2) for info in infos)
    got = [info.files for info in infos]
    assert [{file.path.removesuffix(".arrow") for file in files} for files in got] == expected
