"""Opens object stores for whoever looks from outside a job: `rayobj://` needs a connection to its cluster first."""

from __future__ import annotations

from collections.abc import Mapping

from rayflow.client.ray_session import open_session
from rayflow.model.errors import StorageError
from rayflow.state.storage import RAY_SCHEME, ObjectStore, open_store


def open_any_store(url: str, options: Mapping[str, str]) -> ObjectStore:
    """Return the store at `url`. StorageError where it lies in a cluster, and none is at hand."""
    if not url.startswith(RAY_SCHEME):
        return open_store(url, options)
    if open_session(may_start=False) is None:
        raise StorageError(
            f"{url} lies in the memory of a Ray cluster, and there is none at hand; set RAY_ADDRESS to its address"
        )
    from rayflow.actors.object_store import RayObjectStore

    return RayObjectStore(url)
