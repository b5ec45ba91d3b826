"""Verbs of people: they create, edit, pause, cancel, resolve, archive and delete."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from hypothesis import strategies as st

from notifier.models import MAILING_TRANSITIONS, OVER, Filter, MailingStatus, MessageState
from notifier.storage import audience, clients, ledger, mailings
from notifier.storage.database import Db, transaction
from tests.storage.machine.knowledge import ZONES, rows_written
from tests.storage.machine.verbs import BOOL, PICK, SELDOM, WINDOW, Effect, verb
from tests.storage.machine.world import World
from tests.storage.scenes import insert_clients, let_a_month_pass


class People(World):
    @verb(most=1, pick=PICK)
    async def delete_client(self, db: Db, pick: int) -> None:
        ids = [row["id"] for row in await db.fetch("SELECT id FROM clients ORDER BY id")]
        if ids:
            await clients.delete(db, self.pick(ids, pick))

    @verb(
        when=lambda self: sum(self.seen.status(id_) not in OVER for id_ in self.seen.mailings) < 3,
        weight=3,
        count=st.integers(0, 4),
        zone=st.sampled_from(ZONES),
        window=WINDOW,
        draft=SELDOM,
        tagged=BOOL,
        later=SELDOM,
        priority=st.sampled_from([0, 5]),
    )
    async def create(self, db: Db, count: int, zone: str, **given: Any) -> None:
        await insert_clients(db, count, timezone=zone)
        await self.store_mailing(**given)
        await audience.begin_due(db)

    @verb(
        most=8, beside=True, pick=PICK, name=st.sampled_from(["pause", "resume", "resume", "resume", "start", "cancel"])
    )
    async def act(self, db: Db, pick: int, name: str) -> None:
        if not (shown := self.seen.shown()):
            return
        mailing_id = self.pick(shown, pick)
        mailing, status = self.seen.mailings[mailing_id], self.seen.status(mailing_id)
        legal = status in MAILING_TRANSITIONS[name][0] and not (name in ("start", "resume") and mailing["ended"])

        async def counted() -> int:
            async with transaction(db) as conn:
                before = await rows_written(conn)
                await mailings.act(conn, mailing_id, name)
                return await rows_written(conn) - before

        wrote = await self.allowed(counted(), legal)
        assert wrote in (None, 1), f"{name} wrote {wrote} rows"

    @verb(
        most=5,
        beside=True,
        pick=PICK,
        changes=st.sampled_from(["text", "open", "closed", "no window", "priority", "filter", "later", "end", "over"]),
    )
    async def edit(self, db: Db, pick: int, changes: str) -> None:
        if not (shown := self.seen.shown()):
            return
        mailing_id = self.pick(shown, pick)
        mailing = self.seen.mailings[mailing_id]
        if changes == "over":  # no editor may say so
            await db.execute(
                """
                UPDATE mailings SET starts_at = least(starts_at, now() - interval '1 hour'), ends_at = now()
                WHERE id = $1 AND ends_at > now()
                """,
                mailing_id,
            )
            return
        values: dict[str, Any] = {
            "text": {"text": f"Hi {pick}"},
            "open": {"window": self.window("open")},
            "closed": {"window": self.window("closed")},
            "no window": {"window": None},
            "priority": {"priority": pick % 3},
            "filter": {"filter": Filter(tags=["a"])},
            "later": {"starts_at": self.now + timedelta(hours=1), "ends_at": self.now + timedelta(days=1)},
            "end": {"ends_at": self.now + timedelta(days=3)},
        }
        fixed = mailing["begun"] and changes in ("filter", "later")
        legal = self.seen.status(mailing_id) not in OVER and not fixed
        await self.allowed(mailings.edit(db, mailing_id, values[changes]), legal)

    @verb(
        weight=6,
        when=lambda self: any(self.seen.state(id_) is MessageState.UNKNOWN for id_ in self.seen.messages),
        beside=True,
        pick=PICK,
        decision=st.sampled_from(["sent", "failed", "again", "again"]),
    )
    async def resolve(self, db: Db, pick: int, decision: ledger.Decision) -> Effect | None:
        shown = set(self.seen.shown())
        ids = [id_ for id_, (mailing_id, _) in self.seen.messages.items() if mailing_id in shown]
        unknown = [id_ for id_ in ids if self.seen.state(id_) is MessageState.UNKNOWN]
        if not ids:
            return None
        message_id = self.pick(unknown if unknown and pick % 4 else ids, pick)
        mailing_id, rows = self.seen.messages[message_id]
        mailing, status = self.seen.mailings[mailing_id], self.seen.status(mailing_id)
        legal = self.seen.state(message_id) is MessageState.UNKNOWN or (
            self.seen.state(message_id) is MessageState.DOUBTFUL
            and status in OVER
            and (message_id, len(rows) + 1) not in self.seen.marked
        )
        if decision == "again" and (status is MailingStatus.CANCELLED or mailing["ended"]):
            legal = False

        async def resolved() -> list[int]:
            await ledger.resolve(db, message_id, decision)
            return [message_id] if decision == "again" else []

        again = await self.allowed(resolved(), legal) or []
        return lambda: self.asked_again.update(again)

    @verb(most=3, beside=True, pick=PICK, archived=BOOL)
    async def archive(self, db: Db, pick: int, archived: bool) -> None:
        if shown := self.seen.shown():
            mailing_id = self.pick(shown, pick)
            legal = self.seen.status(mailing_id) in OVER
            await self.allowed(mailings.archive(db, mailing_id, archived), legal)

    @verb(when=lambda self: self.some(deleted=True), most=2, beside=True, pick=PICK)
    async def restore(self, db: Db, pick: int) -> None:
        deleted = [id_ for id_, mailing in self.seen.mailings.items() if mailing["deleted"]]
        if deleted:
            mailing_id = self.pick(deleted, pick)
            await self.allowed(mailings.restore(db, mailing_id), not self.seen.mailings[mailing_id]["expired"])

    @verb(when=lambda self: self.some(deleted=True), most=2)
    async def a_month_passes(self, db: Db) -> None:
        await let_a_month_pass(db)

    @verb(when=lambda self: len(self.seen.shown()) > 1, most=1, beside=True, pick=PICK)
    async def delete(self, db: Db, pick: int) -> None:
        if shown := self.seen.shown():
            await self.allowed(mailings.delete(db, self.pick(shown, pick)), legal=True)
