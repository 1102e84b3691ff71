"""Numbered claims: each number once, old ones forgotten, and nobody who was held up gets one that is gone."""

from __future__ import annotations

import secrets
import threading

import pytest

from rayflow.model.errors import StorageError
from rayflow.state.claims import KEPT, claim_next, claim_path, newest_claim
from rayflow.state.storage import MemoryStore, open_store


@pytest.fixture
def store() -> MemoryStore:
    return open_store(f"memory://claims-{secrets.token_hex(4)}", {})


def claim(store: MemoryStore, first: int = 1) -> int:
    return claim_next(store, "job/attempts", first, lambda path, _: store.create(path, b"{}"))


def test_numbers_grow_from_the_first_asked_for(store: MemoryStore) -> None:
    assert [claim(store), claim(store, 1), claim(store, 9), claim(store, 3)] == [1, 2, 9, 10]
    assert newest_claim(store, "job/attempts") == 10
    assert newest_claim(store, "job/others") == 0


def test_files_stay_few_however_often_a_job_restarts(store: MemoryStore) -> None:
    # An hour of kills, one every 20 s, left 180 files (the soak, 2026-11-24).
    assert [claim(store) for _ in range(180)] == list(range(1, 181))
    assert len(store.list("job/attempts")) == KEPT
    assert claim(store) == 181


def test_one_who_was_held_up_before_creating_does_not_get_a_number_that_was_forgotten(
    store: MemoryStore,
) -> None:
    # zombie: looks (newest is 1) ………………………………………… creates 2, which is gone ─▶ goes above all
    # others:                      claim 2 … 2 + 2·KEPT
    assert claim(store) == 1
    held_up = []

    def create(path: str, number: int) -> bool:
        if not held_up:
            held_up.append(number)
            for _ in range(2 * KEPT):
                claim(store)
            assert claim_path("job/attempts", 2) not in store.list("job/attempts")
        return store.create(path, b"{}")

    assert claim_next(store, "job/attempts", 1, create) == 2 + 2 * KEPT
    assert held_up == [2]


def test_rivals_never_share_a_number(store: MemoryStore) -> None:
    claimed: list[int] = []

    def rival() -> None:
        claimed.extend(claim(store) for _ in range(30))

    threads = [threading.Thread(target=rival) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(claimed) == len(set(claimed)) == 120


def test_a_claim_that_cannot_be_made_says_so(store: MemoryStore) -> None:
    with pytest.raises(StorageError, match="others claim every number"):
        claim_next(store, "job/attempts", 1, lambda path, number: False)


def test_old_claims_that_cannot_be_deleted_hold_nobody_up(
    store: MemoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(KEPT):
        claim(store)

    def refuse(path: str) -> None:
        raise StorageError("read-only today")

    monkeypatch.setattr(store, "delete", refuse)
    assert claim(store) == KEPT + 1
    monkeypatch.undo()
    claim(store)
    assert len(store.list("job/attempts")) == KEPT
