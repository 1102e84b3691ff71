"""What becomes of a *poison row*, one on which an operator raises: the job fails, or the row is left out.

| policy | the row | the job |
|---|---|---|
| `"fail"` | is named in the error | restarts, and fails when it happens again |
| `"skip"` | is dropped and counted in `rows_poisoned` | goes on |
| `SideOutput(tag)` | comes out of `side_output(tag)`, with `error` and `operator`, and is counted | goes on |
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from rayflow.model.errors import PlanError

ERROR_COLUMN, OPERATOR_COLUMN = "error", "operator"
"""What a side output adds to the poison rows: type and text of the error, name of the operator."""


@dataclass(frozen=True, slots=True)
class SideOutput:
    """Have rows on which the operator raises put aside under `tag`: `map(fn, on_error=rf.SideOutput("bad"))`, then
    `.side_output("bad")` reads them."""

    tag: str


ErrorPolicy = Literal["fail", "skip"] | SideOutput


def checked_policy(what: str, policy: Any) -> ErrorPolicy:
    """Return `policy`. Raises PlanError where it is none."""
    if isinstance(policy, SideOutput):
        if isinstance(policy.tag, str) and policy.tag:
            return policy
        raise PlanError(f"{what}: rf.SideOutput({policy.tag!r}): expected a tag, which is a text")
    if policy == "fail" or policy == "skip":
        return "fail" if policy == "fail" else "skip"
    raise PlanError(f"{what}: on_error={policy!r}: expected 'fail', 'skip' or rf.SideOutput(tag)")
