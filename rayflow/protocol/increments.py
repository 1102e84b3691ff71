"""What a subtask's next checkpoint may build on: instead of all of a state, the changes since an earlier checkpoint.

Theory of operation. A *chain* is how one state of one subtask lies on storage: the files of its base, which hold all
rows, and of its links, each the changes since the one before. A checkpoint extends the chain of the newest checkpoint
that is known to be complete: so what was written for one that came to nothing is never built on, and its changes are in
the next one again. Where the links together have grown to more than half of the base, or there are `MAX_LINKS` of them,
the next checkpoint writes a new base: restoring reads at most half as much again as there is.

Knowledge is of one attempt, and of the checkpoint that it was restored from: nothing else that an earlier one wrote is
built on. `written` may be called on any thread.

Invariants:

1. What a plan extends is the chain that a complete checkpoint, older than the planned one, consists of: one of this
   attempt, or the one that it was restored from.
2. The links of a chain are numbered from 1 without a gap; its base is 0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rayflow.model.ids import CheckpointId

MAX_LINKS = 10
MAX_LINKS_SHARE = 0.5


class ChainFile(Protocol):
    """A file of a chain."""

    @property
    def uid(self) -> str:
        """Of the operator."""

    @property
    def part(self) -> str:
        """Name of the state."""

    @property
    def link(self) -> int | None:
        """Which link of a chain it belongs to, 0 for the base; None: to no chain."""

    @property
    def nbytes(self) -> int:
        """Its size."""


F = TypeVar("F", bound=ChainFile)
Chain = tuple[F, ...]


@dataclass(frozen=True, slots=True)
class Increment(Generic[F]):
    """Checkpoint `since` is complete; `chains` are those worth extending, by operator and state. States that are not in
    it are written in full."""

    since: CheckpointId
    chains: Mapping[tuple[str, str], Chain[F]]


class Increments(Generic[F]):
    """The chains of one subtask in one attempt."""

    def __init__(self) -> None:
        self._written: dict[CheckpointId, dict[tuple[str, str], Chain[F]]] = {}
        self._complete: CheckpointId | None = None

    def plan(self, checkpoint_id: CheckpointId) -> Increment[F] | None:
        """Return what checkpoint `checkpoint_id` may build on; None: nothing."""
        since = self._complete
        if since is None or since >= checkpoint_id:
            return None
        worth = {key: chain for key, chain in self._written[since].items() if _worth_extending(chain)}
        return Increment(since, worth)

    def written(self, checkpoint_id: CheckpointId, files: Iterable[F]) -> None:
        """These files, older ones that it builds on included, are the chains of the checkpoint."""
        chains: dict[tuple[str, str], list[F]] = defaultdict(list)
        for file in files:
            if file.link is not None:
                chains[file.uid, file.part].append(file)
        self._written[checkpoint_id] = {key: tuple(chain) for key, chain in chains.items()}

    def completed(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint is complete. Harmless when told twice, late, or of one that was never written here."""
        if checkpoint_id in self._written and (self._complete is None or checkpoint_id > self._complete):
            self._complete = checkpoint_id
            for older in [c for c in list(self._written) if c < checkpoint_id]:
                del self._written[older]

    def aborted(self, checkpoint_id: CheckpointId) -> None:
        """The checkpoint will not complete."""
        if checkpoint_id != self._complete:
            self._written.pop(checkpoint_id, None)


def _worth_extending(chain: Chain[F]) -> bool:
    base = sum(file.nbytes for file in chain if not file.link)
    links = sum(file.nbytes for file in chain if file.link)
    return max(file.link or 0 for file in chain) < MAX_LINKS and links <= MAX_LINKS_SHARE * base
