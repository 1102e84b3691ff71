"""Which Ray cluster this process talks to.

In this order: the one it is connected to already; the address given; `RAY_ADDRESS`; the one that `rayflow
cluster up` recorded, if it lives; else a local one, started here and ended with this process. The address `local`
always means the last. Workers' output does not come through Ray's log forwarding but from the
job manager (complete, and without prefixes), so that is off.
"""

from __future__ import annotations

import atexit
import importlib
import logging
import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass
from typing import Any

from rayflow.client.local_cluster import recorded_cluster
from rayflow.model.errors import TransientError

_log = logging.getLogger(__name__)

LOCAL_OBJECT_STORE_BYTES = 200 << 20
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True, slots=True)
class RaySession:
    """A connection to a cluster. `outlives_us`: the cluster does not end with this process."""

    address: str
    outlives_us: bool


_ours: list[RaySession] = []
"""The session of the local Ray that this process started, while it runs."""


def open_session(address: str | None = None, *, may_start: bool = True) -> RaySession | None:
    """Connect to Ray; None if there is no cluster and none may be started. TransientError if it cannot be reached."""
    os.environ.update({key: value for key, value in _QUIET.items() if key not in os.environ})
    import ray

    if ray.is_initialized():
        return _ours[0] if _ours else RaySession(ray.get_runtime_context().gcs_address, True)
    if address != "local":
        address = address or os.environ.get("RAY_ADDRESS") or None
        cluster = recorded_cluster()
        if cluster is not None and address in (None, cluster.address) and cluster.alive:
            _authenticate(cluster.environment())
            return _connect(ray, cluster.address)
        if address is not None:
            return _connect(ray, address)
    return _start(ray) if may_start else None


def _connect(ray: Any, address: str) -> RaySession:
    _quiet()
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as e:
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise TransientError(f"cannot connect to the Ray cluster at {address}: {reason}") from e
    return RaySession(ray.get_runtime_context().gcs_address, outlives_us=True)


def _start(ray: Any) -> RaySession:
    _quiet()
    # Ray puts sockets below this folder, whose paths must stay short.
    folder = tempfile.mkdtemp(prefix="rayflow-", dir="/tmp")
    if "RAY_AUTH_MODE" not in os.environ:
        _authenticate({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
    try:
        ray.init(
            address="local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=LOCAL_OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
    except Exception as e:
        shutil.rmtree(folder, ignore_errors=True)
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise TransientError(f"a local Ray could not be started: {reason}") from e
    session = RaySession(ray.get_runtime_context().gcs_address, outlives_us=False)
    _ours.append(session)
    atexit.register(_stop, folder)
    return session


def close_session() -> None:
    """End the local Ray that this process started, if it did; else disconnect."""
    import ray

    ray.shutdown()
    _ours.clear()


def _authenticate(environment: dict[str, str]) -> None:
    """Have Ray, in this process and those it starts, use a token. Ray has read its environment when it was imported."""
    os.environ.update(environment)
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()


def _quiet() -> None:
    """Keep Ray from printing into this process's stdout what it thinks of dead workers; rayflow reports them."""
    worker: Any = importlib.import_module("ray._private.worker")
    worker.print_to_stdstream = lambda data, ignore_prefix: _log.debug("ray: %s", data.get("lines"))


def _stop(folder: str) -> None:
    close_session()
    shutil.rmtree(folder, ignore_errors=True)
