"""Mailings as the pages show them."""

from __future__ import annotations

from notifier.storage.database import Pool
from tests.storage.message_scenes import insert_attempts, insert_clients, insert_mailing, insert_slice


async def over_with(db: Pool, **messages: int) -> str:
    """The page of a finished mailing whose messages stand so."""
    mailing_id = await insert_mailing(db, "finished")
    await insert_slice(db, mailing_id, 1, await insert_clients(db, sum(messages.values())))
    first = 1
    for state, count in messages.items():
        for message_id in range(first, first + count):
            if state != "waiting":
                await insert_attempts(db, mailing_id, message_id, ("unknown", state))
        if state != "waiting":
            await db.execute("INSERT INTO counters VALUES ($1, 0, $2, $3, now(), now())", mailing_id, state, count)
        first += count
    await db.execute(
        "UPDATE mailings SET audience = $2, planned = true, over_at = now(), status_reason = 'ended' WHERE id = $1",
        mailing_id,
        sum(messages.values()),
    )
    return f"/admin/mailings/{mailing_id}"
