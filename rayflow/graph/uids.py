"""Uids: how an operator is found again in a checkpoint, whatever chain or parallelism it now has.

A user's `.uid()` is taken as it is. Every other operator gets `<name>-<n>`: its name reduced to
`[a-z0-9_-]` and its position among the operators of that name, in the order they were written; the same
code gives the same uids on every plan. Uids are used as names of files and vertices.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from rayflow.graph.plan import OperatorSpec, StreamNode
from rayflow.model.errors import PlanError

_UID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_NOT_IN_NAME = re.compile(r"[^a-z0-9_]+")


def check_uid(uid: str, location: str | None = None) -> None:
    """Raise PlanError unless `uid` can name an operator, and files of its state."""
    if not isinstance(uid, str) or not _UID.fullmatch(uid):
        raise PlanError(
            f"uid {uid!r}: expected 1 to 100 letters, digits, '_', '-' or '.', not beginning with '-' or '.'",
            location,
        )


def assign_uids(nodes: Sequence[StreamNode]) -> dict[int, OperatorSpec]:
    """Return every node's spec, by node id, with a uid that no other has.

    Raises PlanError, with both lines, where two nodes were given one uid.
    """
    given = _given_uids(nodes)
    counts: Counter[str] = Counter()
    specs: dict[int, OperatorSpec] = {}
    for node in nodes:
        specs[node.id] = node.spec if node.spec.uid else _with_generated(node.spec, given, counts)
    return specs


def _given_uids(nodes: Sequence[StreamNode]) -> dict[str, OperatorSpec]:
    given: dict[str, OperatorSpec] = {}
    for spec in (node.spec for node in nodes if node.spec.uid):
        other = given.setdefault(spec.uid, spec)
        if other is not spec:
            raise PlanError(
                f"two operators have the uid {spec.uid!r}: "
                f"{other.name!r} ({other.location or 'unknown line'}) and {spec.name!r}; "
                "give one of them another .uid()",
                spec.location,
            )
    return given


def _with_generated(spec: OperatorSpec, given: dict[str, OperatorSpec], counts: Counter[str]) -> OperatorSpec:
    stem = _NOT_IN_NAME.sub("-", spec.name.lower()).strip("-")[:80] or "operator"
    while True:
        counts[stem] += 1
        uid = f"{stem}-{counts[stem]}"
        if uid not in given:
            return replace(spec, uid=uid)
