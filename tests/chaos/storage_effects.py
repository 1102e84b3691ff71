"""Faults of the checkpoint storage itself, besides the usual: an S3 server behind a proxy that refuses, or is slow."""

from __future__ import annotations

import threading
from typing import Any

from rayflow.client.chaos.effects import RayEffects
from rayflow.client.chaos.schedule import Fault
from rayflow.client.chaos.victims import Process
from rayflow.model.errors import ConfigError
from tests.faulty_proxy import FaultyProxy

_METHODS = ("GET", "PUT", "POST", "HEAD", "DELETE")


class StorageEffects(RayEffects):
    """`Effects` of a job on the connected cluster whose checkpoints go through `proxy`."""

    def __init__(self, proxy: FaultyProxy) -> None:
        super().__init__()
        self._proxy = proxy
        self._healing: threading.Timer | None = None

    def fail_writes(self, process: Process, for_ms: int) -> bool:
        """Have every request of everybody refused (503), also those that only read, for a while."""
        if not self._proxy.faults:
            for method in _METHODS:
                self._proxy.fail("refuse", method, "")
            self._heal_after(for_ms)
        return True

    def special(self, fault: Fault, description: dict[str, Any]) -> list[str]:
        """Have every request take longer for a while."""
        if fault.action != "slow_storage":
            raise ConfigError(f"{fault}: not on this cluster")
        self._proxy.delay_s = fault.delay_ms / 1000
        self._heal_after(fault.for_ms)
        return [f"storage, slower by {fault.delay_ms} ms"]

    def close(self) -> None:
        """Heal."""
        if self._healing is not None:
            self._healing.cancel()
        self._proxy.heal()
        super().close()

    def _heal_after(self, for_ms: int) -> None:
        if self._healing is not None:
            self._healing.cancel()
        self._healing = threading.Timer(for_ms / 1000, self._proxy.heal)
        self._healing.daemon = True
        self._healing.start()
