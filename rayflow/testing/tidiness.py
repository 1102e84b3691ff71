"""What is checked, in any simulated job, of the files that a manager leaves on storage while the job runs, by number.

I10  what is of no use goes there and then, and not only when the end of the job sweeps up: a checkpoint that newer ones
     replace, the files of one that is aborted, and what an attempt finds of one that never completed. (A job that runs
     for months would leave more and more of it.)

It is looked at as the end of the job begins, with nothing under way. Passed over is what could not be deleted, is
damaged, or was written by others, or afterwards: that is for the sweep.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rayflow.testing.storage import MANIFEST

if TYPE_CHECKING:
    from rayflow.testing.coordination import Coordination
    from rayflow.testing.managers import SimManager


def check_tidied(manager: SimManager, coordination: Coordination) -> None:
    """I10, of the newest manager, whose job is about to be closed."""
    sim, job_id = manager.sim, manager.job.id
    storage = sim.storage
    if (
        storage.tidying_failed
        or manager.master._ctx.background.critical
        or not storage.is_current(manager.process)
    ):
        return
    excused = storage.undeleted | {path.rpartition("/")[0] for path in storage.damaged | storage.by_outsiders}
    below = f"{sim.storage_url}/{job_id}/chk-"
    complete: set[int] = set()
    found: set[int] = set()
    for path in sim.store().list(job_id):
        directory, _, name = f"{sim.storage_url}/{path}".rpartition("/")
        digits = directory.removeprefix(below)
        if digits.isdigit() and directory not in excused:
            found.add(int(digits))
            if name == MANIFEST:
                complete.add(int(digits))
    retained = coordination.config.checkpoint_retained
    if coordination.completed and len(complete) > retained:
        sim.world.violated(
            f"I10: {sorted(complete)} are there as {job_id} ends, where {retained} are retained"
        )
    for number in sorted(found - complete):
        # Of one that was complete files may stay that others were built on, until the next is complete.
        written_ms = storage.written_ms.get(f"{below}{number}", sim.world.now)
        if f"{below}{number}" not in storage.published and written_ms <= coordination.useless_ms(number):
            sim.world.violated(
                f"I10: files of checkpoint {number} of {job_id}, which never completed, are left"
            )
