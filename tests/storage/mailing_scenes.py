"""Mailings of the tests of storage: one as the API makes it, one that is finished, and the texts that one had."""

from __future__ import annotations

from typing import Any

from notifier.models import Filter, Mailing, MailingStatus
from notifier.storage import mailings
from notifier.storage.database import Db
from tests.storage.scenes import insert_ledger, insert_mailing, insert_messages, soon

STATUSES = [status.value for status in MailingStatus]


async def create(db: Db, **changes: Any) -> Mailing:
    """Create a scheduled mailing that starts now and ends in an hour; ``changes`` are fields of `mailings.create`."""
    fields = {
        "name": "spring",
        "text": "Hi",
        "filter": Filter(),
        "starts_at": None,
        "ends_at": soon(3600),
        "window": None,
        "priority": 0,
        "draft": False,
        **changes,
    }
    return await mailings.create(db, **fields)


async def texts_of(db: Db, mailing_id: int) -> list[tuple[int, str]]:
    """Every text that the mailing had: (version, text)."""
    rows = await db.fetch("SELECT version, text FROM mailing_texts WHERE mailing_id = $1 ORDER BY 1", mailing_id)
    return [tuple(row) for row in rows]


async def finished_mailing(db: Db) -> int:
    """A finished mailing with three messages in two slices, all sent."""
    mailing_id = await insert_mailing(db, "finished", over_for=5)
    for message_id in [*await insert_messages(db, mailing_id, 2), *await insert_messages(db, mailing_id, 1)]:
        await insert_ledger(db, mailing_id, message_id, ("accepted", "sent", None))
    return mailing_id
