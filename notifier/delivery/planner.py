"""The audience of a mailing → its messages and batches, slice by slice, mailings in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from notifier import telemetry, windows
from notifier.errors import Stale
from notifier.models import Window
from notifier.storage import audience
from notifier.storage.audience import Slice, Unplanned
from notifier.storage.database import Db

# The first slice is small, so that the first message leaves soon; the others are as large as a lock of a mailing's row
# for about a tenth of a second allows.
FIRST, NEXT = 500, 5_000
# Tries to find a client for the first slice before other mailings have their turn.
LOOKS = 10
# Ids taken at once; what a slice leaves is for the next one, of whatever mailing.
BLOCK = 20_000
# Somebody else plans the same mailing, or it was changed: try again after so many seconds.
STALE = 0.05


class Planner:
    """Plans running mailings; ``on_batches`` is called when there is something to claim."""

    def __init__(self, db: Db, *, default_zone: ZoneInfo, on_batches: Callable[[], None]) -> None:
        self._db = db
        self._default_zone = default_zone
        self._on_batches = on_batches
        self._fresh: list[Unplanned] = []  # just begun, by priority
        self._begun: set[int] = set()  # whose first slice was tried
        self._ahead: Slice | None = None  # chosen while the slice before it was written
        self._last = 0  # whose turn it was
        self._ids = range(0)  # taken, and not given to messages yet

    def begin(self, begun: list[Unplanned]) -> None:
        """Take in mailings that have just begun: their first slices are next."""
        fresh = [mailing for mailing in begun if mailing.id not in self._begun]
        self._fresh = sorted(self._fresh + fresh, key=_by_priority)

    async def poll(self) -> float:
        """Write one slice of the mailing whose turn it is, and choose the next one meanwhile; 0 while there is more."""
        if self._fresh:
            await self._store(await self._first(self._fresh.pop(0)))
            return 0.0
        slice_, self._ahead = self._ahead, None
        if slice_ is None:
            slice_ = await self._choose(None)
        if slice_ is None:
            return 1.0
        stored, ahead = await asyncio.gather(self._store(slice_), self._choose(slice_), return_exceptions=True)
        if isinstance(stored, BaseException):
            raise stored
        if isinstance(ahead, BaseException):
            raise ahead
        if stored or (ahead is not None and ahead.mailing.id != slice_.mailing.id):
            self._ahead = ahead
            return 0.0
        return STALE

    async def _first(self, mailing: Unplanned) -> Slice:
        self._begun.add(mailing.id)  # before the work: one that always fails must not keep the others waiting
        slice_ = await audience.choose(self._db, mailing, FIRST, self._due_at)
        for _ in range(LOOKS - 1):
            if slice_.size or slice_.done:
                break
            rest = replace(mailing, cursor=slice_.cursor)
            slice_ = replace(await audience.choose(self._db, rest, FIRST, self._due_at), mailing=mailing)
        return slice_

    async def _choose(self, after: Slice | None) -> Slice | None:
        """The next slice of the mailing whose turn it is, ``after`` taken as written; None when all is planned."""
        waiting = {mailing.id: mailing for mailing in await audience.unplanned(self._db)}
        if after is not None and after.mailing.id in waiting:
            if after.done:
                del waiting[after.mailing.id]
            else:
                waiting[after.mailing.id] = replace(waiting[after.mailing.id], cursor=after.cursor)
        if not waiting:
            return None
        self._begun &= waiting.keys()
        if fresh := sorted((m for m in waiting.values() if m.id not in self._begun), key=_by_priority):
            self._fresh = [mailing for mailing in self._fresh if mailing.id != fresh[0].id]
            return await self._first(fresh[0])
        # Before the work here too.
        self._last = min(waiting, key=lambda mailing_id: (mailing_id <= self._last, mailing_id))
        return await audience.choose(self._db, waiting[self._last], NEXT, self._due_at)

    async def _store(self, slice_: Slice) -> bool:
        """Give a slice its ids and write it; False when its mailing was changed or planned on meanwhile."""
        ids = self._ids
        if len(ids) < slice_.size:
            first_id = await audience.take_ids(self._db, BLOCK)
            ids = range(first_id, first_id + BLOCK)
        self._ids = range(0)  # until it is known which of them were written
        try:
            await audience.store(self._db, slice_, ids.start)
        except Stale:
            self._ids = ids
            return False
        self._ids = ids[slice_.size :]
        if slice_.clients:
            telemetry.PLANNED.inc(slice_.size)
            self._on_batches()
        return True

    def _due_at(self, now: datetime, window: Window, timezone: str | None) -> datetime:
        return windows.opens_at(now, window, windows.zone(timezone, self._default_zone)).astimezone(UTC)


def _by_priority(mailing: Unplanned) -> tuple[int, int]:
    return -mailing.priority, mailing.id
