"""Who is the manager of a job: tenures on storage."""

from __future__ import annotations

import pytest

from rayflow.actors.tenure import claim_patiently, claim_tenure, is_superseded
from rayflow.model.errors import StorageError
from rayflow.state.storage import open_store


@pytest.fixture
def store(tmp_path):
    return open_store(tmp_path.as_uri(), {})


def test_each_claim_gets_a_number_of_its_own_and_supersedes_those_before(store):
    first = claim_tenure(store, "job", 1)
    assert first == 1
    assert not is_superseded(store, "job", first)
    assert claim_tenure(store, "other", 1) == 1
    assert claim_tenure(store, "job", 2) == 2
    assert is_superseded(store, "job", first)
    assert not is_superseded(store, "job", 2)


def test_a_claim_that_somebody_was_quicker_with_goes_to_the_next_number(store):
    class Late:
        """Lists as if nothing were claimed yet."""

        create = store.create

        def list(self, prefix):
            return []

    claim_tenure(store, "job", 1)
    claim_tenure(store, "job", 2)
    assert claim_tenure(Late(), "job", 3) == 3


def test_storage_that_is_away_is_asked_again_and_given_up_in_the_end(store, monkeypatch):
    monkeypatch.setattr("rayflow.actors.tenure._RETRY_S", 0.001)
    calls = []

    def away():
        calls.append(1)
        raise StorageError("away")

    with pytest.raises(StorageError, match="away"):
        claim_patiently(away, "job", 1, 0.02)
    assert len(calls) > 1
    answers = iter([away, lambda: store])
    assert claim_patiently(lambda: next(answers)(), "job", 1, 60) == 1


def test_storage_that_is_away_supersedes_nobody():
    class Away:
        def list(self, prefix):
            raise StorageError("away")

    assert not is_superseded(Away(), "job", 1)
