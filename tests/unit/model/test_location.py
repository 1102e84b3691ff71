from __future__ import annotations

from rayflow.api.window_specs import Tumbling
from rayflow.model.errors import PlanError
from rayflow.model.location import SourceLocation, caller_location


def test_the_callers_line_is_found_with_its_text() -> None:
    location = caller_location()
    assert location is not None
    assert location.file == __file__
    assert location.text == "location = caller_location()"
    assert str(SourceLocation("f.py", 3, "x = 1")) == "f.py:3: x = 1"
    assert str(SourceLocation("f.py", 3, "")) == "f.py:3"


def test_frames_of_generated_methods_are_not_the_users() -> None:
    try:
        Tumbling("never")
    except PlanError as error:
        caught = error
    assert 'Tumbling("never")' in str(caught.location)
