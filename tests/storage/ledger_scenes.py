"""Messages for the tests of the ledger: with every past there may be, and the last unknown one of a mailing."""

from __future__ import annotations

from notifier.models import OPEN_STATES
from notifier.storage.database import Db
from tests.storage.ledger_errors import ledger_errors
from tests.storage.scenes import insert_batch, insert_ledger, insert_mailing, insert_messages

# What a message has behind it, and the number of its attempts in doubt.
PASTS: dict[str, tuple[list[tuple[str, str, str | None]], int]] = {
    "waiting": ([], 0),
    "retrying": ([("unavailable", "retrying", "dns")], 0),
    "doubtful": ([("interrupted", "doubtful", "interrupted")], 1),
    "doubtful twice": ([("interrupted", "doubtful", "interrupted"), ("unknown", "doubtful", "reset")], 2),
    "sent": ([("interrupted", "doubtful", "interrupted"), ("accepted", "sent", None)], 1),
    "delivered": ([("accepted", "sent", None), ("resolved", "delivered", None)], 0),
    "undelivered": ([("accepted", "sent", None), ("resolved", "undelivered", None)], 0),
    "failed": ([("interrupted", "doubtful", "interrupted"), ("rejected", "failed", "rejected")], 1),
    "suppressed": ([("suppressed", "suppressed", "client_deleted")], 0),
    "unknown": ([("interrupted", "unknown", "interrupted")], 1),
    "unknown twice": ([("unknown", "doubtful", "reset"), ("interrupted", "unknown", "interrupted")], 2),
}


async def stands(db: Db, past: str, *, before: int = 0) -> tuple[int, int]:
    """A message with that past, in its batch if it goes on; its mailing, and its id."""
    rows, _ = PASTS[past]
    mailing_id = await insert_mailing(db)
    *others, message_id, last = await insert_messages(db, mailing_id, before + 2)
    await insert_ledger(db, mailing_id, message_id, *rows)
    if not rows or rows[-1][1] in OPEN_STATES:
        state = rows[-1][1] if rows else "waiting"
        await insert_batch(db, mailing_id, [message_id], seq=len(rows) + 1, state=state)
    await insert_batch(db, mailing_id, [*others, last], due_in=60)
    assert not await ledger_errors(db)
    return mailing_id, message_id


async def all_but_unknown(db: Db) -> tuple[int, int]:
    """A mailing of one message, which is unknown: its id, and that of the message."""
    mailing_id = await insert_mailing(db)
    (message_id,) = await insert_messages(db, mailing_id, 1)
    await insert_ledger(db, mailing_id, message_id, ("interrupted", "unknown", "interrupted"))
    return mailing_id, message_id
