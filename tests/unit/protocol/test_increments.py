"""What a checkpoint may build on, against a model that remembers everything."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rayflow.model.ids import CheckpointId
from rayflow.protocol.increments import MAX_LINKS, Increments


@dataclass(frozen=True)
class File:
    uid: str = "op"
    part: str = "state"
    link: int | None = 0
    nbytes: int = 100
    written_for: int = 0


def numbered(value: int) -> CheckpointId:
    return CheckpointId(value)


def test_nothing_is_built_on_before_a_checkpoint_is_complete() -> None:
    increments = Increments[File]()
    increments.written(numbered(1), [File()])
    assert increments.plan(numbered(2)) is None
    increments.completed(numbered(1))
    planned = increments.plan(numbered(3))
    assert planned is not None
    assert (planned.since, planned.chains) == (1, {("op", "state"): (File(),)})


def test_files_that_are_in_no_chain_are_not_built_on() -> None:
    increments = Increments[File]()
    increments.written(numbered(1), [File(link=None), File(uid="other")])
    increments.completed(numbered(1))
    planned = increments.plan(numbered(2))
    assert planned is not None
    assert list(planned.chains) == [("other", "state")]


def test_a_chain_that_has_grown_ends() -> None:
    def goes_on(*files: File) -> bool:
        increments = Increments[File]()
        increments.written(numbered(1), files)
        increments.completed(numbered(1))
        planned = increments.plan(numbered(2))
        return planned is not None and bool(planned.chains)

    assert goes_on(File(), File(link=1, nbytes=50))
    assert not goes_on(File(), File(link=1, nbytes=30), File(link=2, nbytes=30))
    links = [File(link=n, nbytes=1) for n in range(1, MAX_LINKS + 1)]
    assert goes_on(File(), *links[:-1])
    assert not goes_on(File(), *links)


@given(st.lists(st.sampled_from(["begin", "write", "complete", "abort"]), max_size=40), st.data())
def test_what_is_built_on_is_the_newest_complete_one_that_was_written(steps: list[str], data: Any) -> None:
    increments = Increments[File]()
    begun, written, over = [0], set[int](), set[int]()
    complete: int | None = None
    for step in steps:
        if step == "begin":
            begun.append(begun[-1] + 1)
            planned = increments.plan(numbered(begun[-1]))
            assert (planned.since if planned else None) == complete
            if planned:
                assert {f.written_for for chain in planned.chains.values() for f in chain} == {complete}
            continue
        number = data.draw(st.sampled_from(begun))
        if number in over or number == 0:
            continue
        if step == "write":
            increments.written(numbered(number), [File(written_for=number)])
            written.add(number)
        elif step == "complete":
            # Told late, or of one that this subtask had no part in.
            increments.completed(numbered(number))
            if number in written:
                complete = max(complete or 0, number)
                over |= {older for older in begun if older <= number}
        elif number != complete:
            increments.aborted(numbered(number))
            over.add(number)
            written.discard(number)
