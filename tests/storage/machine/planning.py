"""Verbs of the scheduler, and of time: mailings begin, are planned, closed and purged, and hours pass."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from hypothesis import strategies as st

from notifier import windows
from notifier.errors import Stale
from notifier.models import Window
from notifier.storage import audience, mailing_lifecycle
from notifier.storage.database import Db
from tests.storage.machine.verbs import PICK, verb
from tests.storage.machine.world import World
from tests.storage.scenes import plan_slice


class Planning(World):
    @verb(when=lambda self: self.some(status="scheduled", started=True), beside=True)
    async def begin(self, db: Db) -> None:
        await audience.begin_due(db)

    @verb(
        weight=6,
        when=lambda self: self.some(status="running", planned=False),
        beside=True,
        pick=PICK,
        size=st.integers(1, 3),
    )
    async def plan(self, db: Db, pick: int, size: int) -> None:
        if waiting := await audience.unplanned(db):
            first_id = await audience.take_ids(self.db, size)
            with suppress(*() if db is self.db else (Stale,)):  # what stands beside it may change the mailing
                await plan_slice(db, self.pick(waiting, pick), size, first_id, self.opens)

    @staticmethod
    def opens(now: datetime, window: Window, timezone: str | None) -> datetime:
        return windows.opens_at(now, window, windows.zone(timezone, ZoneInfo("Etc/UTC")))

    @verb(when=lambda self: any(self.some(status=status, ended=True) for status in ("running", "paused")), beside=True)
    async def finish_ended(self, db: Db) -> None:
        await mailing_lifecycle.finish_ended(db)

    @verb(weight=4, when=lambda self: self.some(status="running", batches=0, planned=True), beside=True)
    async def close(self, db: Db) -> None:
        for mailing_id in await mailing_lifecycle.worked_off(db):
            await mailing_lifecycle.close(db, mailing_id)

    @verb(when=lambda self: bool(self.seen.mailings), most=2, pick=PICK)
    async def close_any(self, db: Db, pick: int) -> None:
        mailing_id = self.pick(list(self.seen.mailings), pick)
        mailing = self.seen.mailings[mailing_id]
        done = mailing["status"] in ("running", "paused") and mailing["planned"] and not mailing["batches"]
        assert await mailing_lifecycle.close(db, mailing_id) == done

    @verb(when=lambda self: self.some(expired=True), beside=True)
    async def purge(self, db: Db) -> None:
        await mailing_lifecycle.purge(db)

    @verb(weight=3, hours=st.sampled_from([0.4, 0.4, 0.4, 7]))
    async def time_passes(self, db: Db, hours: float) -> None:
        passed = timedelta(hours=hours)
        await db.execute("UPDATE batches SET due_at = due_at - $1::interval", passed)
        await db.execute(
            "UPDATE mailings SET starts_at = starts_at - $1::interval, ends_at = ends_at - $1::interval", passed
        )
