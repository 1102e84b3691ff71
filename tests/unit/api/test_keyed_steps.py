"""What a keyed stream offers beside windows and aggregates: every step of a stream, on rows that lie by key."""

from __future__ import annotations

import rayflow as rf
from rayflow import col


def test_steps_and_sinks_behind_key_by_get_rows_by_key() -> None:
    env = rf.StreamEnvironment(parallelism=2)
    rows = env.from_rows([{"k": i % 3, "v": i} for i in range(9)])
    rows.key_by("k").with_columns(w=col("v") + 1).discard()
    graph = env.plan()
    assert [e.exchange.kind for e in graph.edges] == ["hash"]
    assert graph.edges[0].exchange.keys == ("k",)


def test_rows_of_a_key_meet_in_one_subtask() -> None:
    env = rf.StreamEnvironment(parallelism=2)

    class Mark:
        def open(self, ctx: object) -> None:
            self.index = ctx.subtask_index  # type: ignore[attr-defined]

        def __call__(self, row: dict[str, int]) -> dict[str, int]:
            return {"k": row["k"], "subtask": self.index}

    rows = env.from_rows([{"k": i % 7, "v": i} for i in range(200)])
    table = (
        rows.key_by("k").map(Mark, returns={"k": "int64", "subtask": "int64"}).execute_and_collect(local=True)
    )
    seen = {(r["k"], r["subtask"]) for r in table.to_pylist()}
    assert table.num_rows == 200
    assert len(seen) == 7
    assert {s for _, s in seen} == {0, 1}
