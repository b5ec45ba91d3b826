"""A late result while a mailing is being closed, and after it."""

from __future__ import annotations

from typing import Any

from notifier.storage import ledger, mailing_lifecycle, mailings
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.ledger_scenes import all_but_unknown
from tests.storage.races import while_held, without
from tests.storage.scenes import LATER, ME, batches_of, result


async def test_close_waits_for_a_late_row_and_finds_its_batch(db: Pool) -> None:
    """The last message is unknown; a late answer says that it was not sent, while the mailing is about to be closed."""
    mailing_id, message_id = await all_but_unknown(db)
    closed = await while_held(db, _not_sent(message_id), lambda conn: mailing_lifecycle.close(conn, mailing_id))
    assert not closed
    assert (await mailings.get(db, mailing_id)).status == "running"
    assert not await ledger_errors(db)


def _not_sent(message_id: int) -> Any:
    late = result(0, message_id, "unavailable", "retrying", reason="dns", due_at=LATER)
    return lambda conn: ledger.append_late(conn, ME, late)


async def test_without_a_second_look_under_the_lock_a_mailing_is_closed_with_a_message_to_send(db: Pool) -> None:
    """As one statement: its snapshot is older than the lock it waited for, and does not show the new batch."""
    mailing_id, message_id = await all_but_unknown(db)
    closed = await while_held(
        db,
        _not_sent(message_id),
        lambda conn: mailing_lifecycle.close(conn, mailing_id),
        replace={
            "AND planned FROM": "AND planned AND NOT EXISTS (SELECT FROM batches WHERE mailing_id = $1) FROM",
            "SELECT EXISTS (SELECT FROM batches WHERE mailing_id = $1)": "SELECT $1::bigint IS NULL",
        },
    )
    assert closed
    await _is_stranded(db, mailing_id)


async def _is_stranded(db: Db, mailing_id: int) -> None:
    assert (await mailings.get(db, mailing_id)).status == "finished"
    (batch,) = await batches_of(db, mailing_id)
    assert batch["state"] == "retrying"  # shown as expired long before the end


async def test_without_the_mailings_lock_a_mailing_is_closed_with_a_message_to_send(db: Pool) -> None:
    mailing_id, message_id = await all_but_unknown(db)
    async with without(db, {"FOR UPDATE OF m": ""}) as changed, changed.transaction():
        await _not_sent(message_id)(changed)
        assert await mailing_lifecycle.close(db, mailing_id)
    await _is_stranded(db, mailing_id)


async def test_without_the_lock_in_close_what_it_found_holds_no_longer_when_it_writes(db: Pool) -> None:
    mailing_id, message_id = await all_but_unknown(db)
    assert await while_held(
        db,
        _not_sent(message_id),
        lambda conn: mailing_lifecycle.close(conn, mailing_id),
        replace={"WHERE id = $1 FOR UPDATE": "WHERE id = $1"},
    )
    await _is_stranded(db, mailing_id)


async def test_a_late_row_after_the_close_opens_the_mailing_again(db: Pool) -> None:
    """Its end has not come, the message was surely not sent: it goes on instead of expiring at once."""
    mailing_id, message_id = await all_but_unknown(db)
    assert await mailing_lifecycle.close(db, mailing_id)
    await _not_sent(message_id)(db)
    mailing = await mailings.get(db, mailing_id)
    assert (mailing.status, mailing.status_reason) == ("running", None)
    assert not await mailing_lifecycle.close(db, mailing_id)
    assert not await ledger_errors(db)


async def test_a_late_row_does_not_open_what_is_over(db: Pool) -> None:
    for verb in ("cancel", "end"):
        mailing_id, message_id = await all_but_unknown(db)
        if verb == "end":
            await db.execute("UPDATE mailings SET ends_at = now() WHERE id = $1", mailing_id)
            await mailing_lifecycle.finish_ended(db)
        else:
            await mailings.act(db, mailing_id, "cancel")
        await _not_sent(message_id)(db)
        assert (await mailings.get(db, mailing_id)).status == ("finished" if verb == "end" else "cancelled")
        assert not await ledger_errors(db)
