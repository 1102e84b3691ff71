"""Side outputs: what an operator puts aside reaches who reads it, wherever the operator is in a chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import rayflow as rf
from rayflow import col
from rayflow.api.planning import StreamInfo
from rayflow.api.side_outputs import SideOutputs
from rayflow.operators.contracts import Operator


class PutOddAside(Operator):
    def process(self, batch: pa.RecordBatch, port: int) -> None:
        odd = pa.array([n % 2 == 1 for n in batch.column("n").to_pylist()])
        self.out.emit_side("odd", batch.filter(odd))
        self.out.emit(batch)


def split_odd(stream: rf.DataStream) -> rf.DataStream:
    info = stream._info
    return stream._then(
        "split", PutOddAside, info, side_outputs=SideOutputs({"odd": StreamInfo(schema=info.schema)})
    )


def numbers(parallelism: int = 1) -> Any:
    env = rf.StreamEnvironment(parallelism=parallelism)
    return env, env.from_arrow(pa.table({"n": range(20)}))


@pytest.mark.parametrize("parallelism", [1, 2])
def test_rows_and_side_output_are_read_side_by_side(lab: Any, tmp_path: Path, parallelism: int) -> None:
    env, rows = numbers(parallelism)
    main = split_odd(rows.filter(col("n") >= 4))
    main.with_columns(n=col("n") + 100).write_parquet(tmp_path / "main")
    main.side_output("odd").filter(col("n") > 9).write_parquet(tmp_path / "odd")
    main.side_output("odd").rebalance().write_parquet(tmp_path / "again")
    lab.finish(env)
    assert sorted(lab.read(tmp_path / "main")["n"].to_pylist()) == list(range(104, 120))
    assert sorted(lab.read(tmp_path / "odd")["n"].to_pylist()) == [11, 13, 15, 17, 19]
    assert sorted(lab.read(tmp_path / "again")["n"].to_pylist()) == [5, 7, 9, 11, 13, 15, 17, 19]


def test_two_operators_with_the_same_tag_do_not_mix(lab: Any) -> None:
    _, rows = numbers()
    first = split_odd(rows)
    second = split_odd(first.with_columns(n=col("n") + 100))
    assert first.side_output("odd").execute_and_collect(local=True)["n"].to_pylist() == list(range(1, 20, 2))
    odd = second.side_output("odd").execute_and_collect(local=True)
    assert odd["n"].to_pylist() == list(range(101, 120, 2))


def test_mistakes_are_plan_errors() -> None:
    _, rows = numbers()
    with pytest.raises(rf.PlanError, match="puts nothing aside"):
        rows.side_output("odd")
    with pytest.raises(rf.PlanError, match="no side output 'even'; it has 'odd'"):
        split_odd(rows).side_output("even")
    with pytest.raises(rf.PlanError, match="its columns are known"):
        split_odd(rows).side_output("odd", returns={"n": int})
    with pytest.raises(rf.PlanError, match="is only what one puts aside"):
        split_odd(rows).side_output("odd").name("x")
    with pytest.raises(rf.PlanError, match="a text"):
        split_odd(rows).side_output("")
