"""`rayflow state rm` of what is, or was, on `rayobj://`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from rayflow.client import removing
from rayflow.client.removing import remove
from rayflow.model.errors import ConfigError
from rayflow.state.storage import LostObjects


class Stores:
    """The stores of a cluster, by URL: their objects; None where all holders have died."""

    def __init__(self, objects: dict[str, bytes] | None) -> None:
        self.objects = objects

    def open(self, url: str, options: Mapping[str, str]) -> Any:
        return Below(self, url.removeprefix("rayobj://kept").strip("/"))


class Below:
    """A store at a path of `rayobj://kept`."""

    def __init__(self, stores: Stores, prefix: str) -> None:
        self._stores, self._start = stores, f"{prefix}/" if prefix else ""

    @property
    def _objects(self) -> dict[str, bytes]:
        if self._stores.objects is None:
            raise LostObjects("all holders are dead")
        return self._stores.objects

    def list(self, prefix: str) -> list[str]:
        return [p[len(self._start) :] for p in self._objects if p.startswith(self._start + prefix)]

    def read(self, path: str) -> bytes:
        return self._objects[self._start + path]

    def delete_prefix(self, prefix: str) -> None:
        for path in [p for p in self._objects if p.startswith(self._start + prefix)]:
            del self._objects[path]

    def forget_lost(self) -> bool:
        lost = self._stores.objects is None
        if lost:
            self._stores.objects = {}
        return lost


def stores(monkeypatch: pytest.MonkeyPatch, objects: dict[str, bytes] | None) -> Stores:
    made = Stores(objects)
    monkeypatch.setattr(removing, "open_any_store", made.open)
    return made


ENDED = b'{"state": "FINISHED"}'


@pytest.mark.parametrize("url", ["rayobj://kept", "rayobj://kept/"])
def test_a_store_that_is_lost_begins_anew(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    made = stores(monkeypatch, None)
    assert remove(url, {}) == 0
    assert made.objects == {}


def test_of_a_store_that_is_lost_no_single_job_can_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stores(monkeypatch, None)
    with pytest.raises(LostObjects):
        remove("rayobj://kept/job-1", {})
    assert made.objects is None


def test_a_whole_store_is_removed_with_all_jobs_in_it_if_they_have_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = stores(monkeypatch, {"a/job.json": ENDED, "a/chk-1/manifest.json": b"{}", "b/job.json": ENDED})
    assert remove("rayobj://kept", {}) == 3
    assert made.objects == {}
    made.objects = {"a/job.json": ENDED, "b/job.json": b'{"state": "RUNNING"}'}
    with pytest.raises(ConfigError, match="RUNNING"):
        remove("rayobj://kept", {})
    assert len(made.objects) == 2


def test_one_job_of_a_store_is_removed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = stores(monkeypatch, {"a/job.json": ENDED, "b/job.json": ENDED})
    assert remove("rayobj://kept/a", {}) == 1
    assert made.objects == {"b/job.json": ENDED}
