"""What a process prints, on its way to the job manager."""

from __future__ import annotations

import io

import pytest

from rayflow.actors.output_capture import MAX_LINE_CHARACTERS, OutputBuffer, OutputLine, _Tee


class Process:
    """One that prints."""

    def __init__(self) -> None:
        self.buffer = OutputBuffer("map[0]", max_lines=3)
        self.original = io.StringIO()
        self.stdout = _Tee(self.original, self.buffer, "out")

    def prints(self, text: str) -> None:
        assert self.stdout.write(text) == len(text)

    def texts(self) -> list[str]:
        return [line.text for line in self.buffer.take()]


@pytest.fixture
def process() -> Process:
    return Process()


def test_whole_lines_are_kept_with_who_said_them_and_passed_on(process: Process) -> None:
    process.prints("a\nb")
    assert process.buffer.take() == [OutputLine("map[0]", "out", "a")]
    process.buffer.name("map[1]")
    process.prints("c\n")
    assert process.buffer.take() == [OutputLine("map[1]", "out", "bc")]
    assert process.original.getvalue() == "a\nbc\n"


def test_lines_that_find_no_room_are_counted(process: Process) -> None:
    process.prints("a\nb\nc\nd\ne\n")
    note = "[rayflow: 2 lines were printed faster than they could be sent, and dropped]"
    assert process.texts() == ["a", "b", "c", note]
    assert process.texts() == []


def test_a_line_that_never_ends_takes_no_more_memory_than_one_that_does(process: Process) -> None:
    """A progress bar goes on and on in one line."""
    for _ in range(100):
        process.prints("\r" + "x" * 1_000)
    assert len(process.stdout._partial) == MAX_LINE_CHARACTERS
    process.prints("\nnext\n")
    assert [len(text) for text in process.texts()] == [MAX_LINE_CHARACTERS, 4]


def test_what_is_no_text_can_be_stored_and_printed_all_the_same(process: Process) -> None:
    """A file name of other bytes, for one. The manager could not store the job's logs, and ended."""
    process.prints("caf\udce9\n")
    assert process.texts() == ["caf\\udce9"]
