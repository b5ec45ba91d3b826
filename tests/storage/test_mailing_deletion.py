"""Deleting a mailing, restoring it, and purging what it was made of."""

from __future__ import annotations

import asyncio

import pytest

from chaos.stage import PATIENCE
from notifier.errors import NotFound
from notifier.models import OVER
from notifier.storage import mailing_lifecycle, mailings, queue, statistics
from notifier.storage.database import Connection, Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.mailing_scenes import STATUSES, finished_mailing
from tests.storage.races import while_held, without
from tests.storage.scenes import (
    ME,
    claim_one,
    insert_batch,
    insert_mailing,
    insert_messages,
    let_a_month_pass,
    marked,
    record_one,
    report,
    result,
    running,
)


async def test_any_mailing_is_deleted_and_what_is_not_over_stops(db: Pool) -> None:
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        over_at = await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id)
        await mailings.delete(db, mailing_id)
        row = await db.fetchrow("SELECT status, over_at, deleted_at, version FROM mailings WHERE id = $1", mailing_id)
        assert row is not None
        assert row["status"] == (status if status in OVER else "cancelled")
        assert row["over_at"] == (over_at or row["deleted_at"])
        assert row["version"] == 2
        for call in (
            mailings.get(db, mailing_id),
            mailings.delete(db, mailing_id),
            mailings.act(db, mailing_id, "cancel"),
        ):
            with pytest.raises(NotFound):
                await call


TABLES = ("messages", "slices", "batches", "attempts", "counters", "failures", "series", "mailing_texts", "mailings")


async def rows_left(db: Db) -> dict[str, int]:
    counts = {table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
    return {table: n for table, n in counts.items() if n}


async def _sent_and_failed(db: Db) -> int:
    """A mailing with rows in every table, its messages in three slices."""
    mailing_id, ids = await running(db, 3)
    for _ in range(2):
        more = await insert_messages(db, mailing_id, 3)
        await insert_batch(db, mailing_id, more)
    batch = await claim_one(db)
    await record_one(db, report(batch, 2))
    rejected = result(batch, ids[1], "rejected", "failed", reason="rejected")
    await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, ids[0]), rejected)
    assert not await ledger_errors(db)
    return mailing_id


async def test_a_deleted_mailing_goes_piece_by_piece_and_leaves_nothing(db: Pool) -> None:
    kept = await _sent_and_failed(db)
    await db.execute("UPDATE batches SET due_at = due_at + interval '1 hour'")
    before = await rows_left(db)
    deleted = await _sent_and_failed(db)
    assert await mailing_lifecycle.purge(db) is False
    await mailings.delete(db, deleted)
    assert await mailing_lifecycle.purge(db) is False
    assert not await ledger_errors(db)
    await let_a_month_pass(db)

    messages = []
    while await mailing_lifecycle.purge(db):
        messages.append(await db.fetchval("SELECT count(*) FROM messages WHERE mailing_id = $1", deleted))
        assert not await ledger_errors(db)

    assert messages == [6, 3, 0, 0]
    assert await rows_left(db) == before
    assert (await mailings.get(db, kept)).audience == 9


async def test_nothing_is_purged_while_somebody_owns_a_batch(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)
    assert await mailing_lifecycle.purge(db) is False
    await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
    assert await mailing_lifecycle.purge(db) is False
    assert (await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[1]))).finished
    assert await mailing_lifecycle.purge(db) is True
    assert await mailing_lifecycle.purge(db) is True
    assert await rows_left(db) == {}


async def test_without_waiting_for_the_owner_rows_are_left_that_belong_to_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)
    async with without(db, {"AND b.owner IS NOT NULL)": "AND false)"}) as changed:
        await mailing_lifecycle.purge(changed)
        await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
        while await mailing_lifecycle.purge(changed):
            pass
    assert await ledger_errors(db) == ["1 ledger rows of no message"]


async def test_two_who_purge_pass_each_other(db: Pool) -> None:
    first, second = await _sent_and_failed(db), None
    await mailings.delete(db, first)
    await let_a_month_pass(db)
    async with db.acquire() as conn, conn.transaction():
        assert await mailing_lifecycle.purge(conn)
        assert await asyncio.wait_for(mailing_lifecycle.purge(db), PATIENCE) is False
        assert second is None
    while await mailing_lifecycle.purge(db):
        pass
    assert await rows_left(db) == {}


async def test_a_deleted_mailing_is_restored_whole(db: Pool) -> None:
    """Also when a request was under way at its deletion, and was answered after it."""
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        before = await mailings.get(db, mailing_id)
        await mailings.delete(db, mailing_id)
        assert (await mailings.get_deleted(db, mailing_id)).id == mailing_id
        after = await mailings.restore(db, mailing_id)
        assert after.status == (status if status in OVER else "cancelled")
        assert (after.version, after.text, after.finished_at is not None) == (3, before.text, True)
        assert after.updated_at > before.updated_at
        assert await mailings.restore(db, mailing_id) == after
        with pytest.raises(NotFound):
            await mailings.get_deleted(db, mailing_id)

    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await mailings.delete(db, mailing_id)
    await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
    await mailings.restore(db, mailing_id)
    await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, ids[1]))
    assert not await ledger_errors(db)
    assert await queue.claim(db, ME, after=0) == []
    counts = (await statistics.of_mailing(db, mailing_id)).messages
    assert {status: n for status, n in counts.items() if n} == {"sent": 2, "cancelled": 2}


async def test_what_was_deleted_too_long_ago_is_not_restored(db: Pool) -> None:
    """After 30 days, whether its purge has begun or not; and what an older version has begun to purge at once."""
    expired, begun = await finished_mailing(db), await finished_mailing(db)
    for mailing_id in (expired, begun):
        await mailings.delete(db, mailing_id)
    await db.execute("UPDATE mailings SET deleted_at = deleted_at - interval '30 days' WHERE id = $1", expired)
    await db.execute("DELETE FROM slices WHERE first_id = (SELECT max(first_id) FROM slices)")
    for mailing_id in (expired, begun):
        with pytest.raises(NotFound, match="mailing_purged"):
            await mailings.restore(db, mailing_id)
    with pytest.raises(NotFound, match="no_mailing"):
        await mailings.restore(db, 999)


async def test_a_restore_that_waits_for_a_purge_finds_it_begun(db: Pool) -> None:
    mailing_id = await finished_mailing(db)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)

    async def purge(conn: Connection) -> None:
        await mailing_lifecycle.purge(conn)
        await conn.execute("UPDATE mailings SET deleted_at = now()")  # so that only the purge speaks against it

    with pytest.raises(NotFound):
        await while_held(db, purge, lambda conn: mailings.restore(conn, mailing_id))
