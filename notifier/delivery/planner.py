"""The audience of a mailing → its messages and batches, slice by slice, mailings in turn."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from notifier import telemetry
from notifier.delivery import windows
from notifier.errors import Stale
from notifier.models import Window
from notifier.storage import audience
from notifier.storage.database import Db

# The first slice is small, so that the first message leaves soon; the others are as large as a lock of a mailing's row
# for about a tenth of a second allows.
FIRST, NEXT = 500, 5_000
# Ids taken at once; the first slice of a mailing leaves most of them, for those of others.
BLOCK = 5_000
# Somebody else plans the same mailing, or it was changed: look again after so many seconds.
STALE = 0.05


class Planner:
    """Plans running mailings; ``on_batches`` is called when there is something to claim."""

    def __init__(self, db: Db, *, default_zone: ZoneInfo, on_batches: Callable[[], None]) -> None:
        self._db = db
        self._default_zone = default_zone
        self._on_batches = on_batches
        self._begun: set[int] = set()
        self._last = 0
        self._ids = range(0)  # taken, and not given to messages yet

    async def poll(self) -> float:
        """Plan one slice of the mailing whose turn it is; 0 while there is more to plan."""
        waiting = {mailing.id: mailing for mailing in await audience.unplanned(self._db)}
        self._begun.intersection_update(waiting)
        if not waiting:
            return 1.0
        fresh = [mailing_id for mailing_id in waiting if mailing_id not in self._begun]
        mailing_id = fresh[0] if fresh else min(waiting, key=lambda m: (m <= self._last, m))
        self._last = mailing_id
        self._begun.add(mailing_id)  # before the work: one that always fails must not keep the others waiting
        size = FIRST if fresh else NEXT
        ids = self._ids
        if len(ids) < size:
            first_id = await audience.take_ids(self._db, BLOCK)
            ids = range(first_id, first_id + BLOCK)
        self._ids = range(0)  # until it is known which of them were written
        try:
            slice_ = await audience.plan_slice(self._db, waiting[mailing_id], size, ids.start, self._due_at)
        except Stale:
            self._ids = ids
            return STALE if len(waiting) == 1 else 0.0
        self._ids = ids[slice_.messages :]
        if slice_.messages:
            telemetry.PLANNED.inc(slice_.messages)
            self._on_batches()
        return 0.0

    def _due_at(self, now: datetime, window: Window, timezone: str | None) -> datetime:
        return windows.opens_at(now, window, windows.zone(timezone, self._default_zone)).astimezone(UTC)
