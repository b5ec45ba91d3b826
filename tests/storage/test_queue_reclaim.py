"""Reclaiming batches of other owners, and the order in which records and late results take their locks."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

from chaos.stage import PATIENCE
from notifier.storage import ledger, mailing_lifecycle, mailings, queue
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import waiting_for_a_lock, while_held
from tests.storage.scenes import (
    LATER,
    ME,
    PEER,
    adopt_all,
    batches_of,
    claim_one,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    let_a_month_pass,
    marked,
    record_one,
    report,
    result,
    running,
)


async def _owned_by(db: Db, replica: int, **batch: Any) -> int:
    mailing_id, ids = await running(db)
    ids = await insert_messages(db, mailing_id, 2)
    return await insert_batch(db, mailing_id, range(ids[0], ids[-1] + 1), replica=replica, **batch)


async def test_only_what_is_as_it_was_seen_is_taken_over(db: Pool) -> None:
    """Finished, given back, or gone on with meanwhile: not taken."""
    taken, finished, released, marked_on, recorded = [await _owned_by(db, 99) for _ in range(5)]
    seen = await queue.owned(db)
    assert [(batch.id, batch.replica, batch.over) for batch in seen] == [
        (batch_id, 99, False) for batch_id in (taken, finished, released, marked_on, recorded)
    ]
    await db.execute("DELETE FROM batches WHERE id = $1", finished)
    await db.execute("UPDATE batches SET owner = NULL, replica = NULL WHERE id = $1", released)
    await db.execute("UPDATE batches SET watermark = watermark + 1 WHERE id = $1", marked_on)
    await db.execute("UPDATE batches SET watermark = watermark + 1, done = done + 1 WHERE id = $1", recorded)
    (reclaimed,) = await queue.reclaim(db, ME, seen)
    assert reclaimed.id == taken
    assert await queue.reclaim(db, PEER, seen) == []


async def test_two_who_take_over_at_once_do_not_wait_for_each_other(db: Pool) -> None:
    batches = [await _owned_by(db, 99) for _ in range(3)]
    async with db.acquire() as first, db.acquire() as second, first.transaction():
        some = await adopt_all(first, ME)
        rest = await asyncio.wait_for(adopt_all(second, PEER), PATIENCE)
    assert sorted(batch.id for batch in some) == batches
    assert rest == []


async def test_without_skip_locked_a_second_taker_waits(db: Pool) -> None:
    await _owned_by(db, 99)
    reclaimed = await while_held(
        db,
        lambda conn: adopt_all(conn, ME),
        lambda conn: adopt_all(conn, PEER),
        replace={" SKIP LOCKED": ""},
    )
    assert reclaimed == []


async def test_an_owner_who_records_while_it_is_taken_over_loses(db: Pool) -> None:
    """The record waits for the take-over's lock, and finds another owner behind it."""
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    recorded = await while_held(
        db,
        lambda conn: adopt_all(conn, PEER),
        lambda conn: record_one(conn, report(batch), result(batch, ids[0])),
    )
    assert not recorded.owned
    assert not await ledger_errors(db)
    assert mailing_id


async def test_a_take_over_passes_an_owner_who_is_recording(db: Pool) -> None:
    _, ids, batch = await marked(db, 2, watermark=2)
    async with db.acquire() as conn, conn.transaction():
        await record_one(conn, report(batch), result(batch, ids[0]))
        assert await adopt_all(db, PEER) == []
    assert not await ledger_errors(db)


async def test_two_records_of_one_mailing_wait_for_each_other_in_one_order(db: Pool) -> None:
    """Two replicas of one slot count into the same rows: the second waits, nobody is chosen as a victim."""
    await running(db, 2, 2)
    works = [await claim_one(db), await claim_one(db, PEER)]
    for batch in works:
        await record_one(db, report(batch, 2))

    def write(batch: queue.Claimed) -> Any:
        rows = [result(batch, batch.ids[0]), result(batch, batch.ids[1], "rejected", "failed", reason="rejected")]
        return lambda conn: record_one(conn, report(batch, 2, old_watermark=2), *rows)

    recorded = await while_held(db, write(works[0]), write(works[1]))
    assert recorded.written == 2
    assert not await ledger_errors(db)


async def test_a_purged_mailing_leaves_its_old_owner_nothing_to_write(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await record_one(db, report(batch), *(result(batch, id_) for id_ in ids))
    await let_a_month_pass(db)
    while await mailing_lifecycle.purge(db):
        pass
    assert not (await record_one(db, report(batch), result(batch, ids[0]))).owned
    assert not await ledger_errors(db)


async def test_the_due_time_of_a_batch_given_back_is_the_old_one(db: Pool) -> None:
    mailing_id, _ = await running(db, 2)
    batch = await claim_one(db)
    await record_one(db, report(batch, release=True))
    (row,) = await batches_of(db, mailing_id)
    assert row["due_at"] - batch.due_at == timedelta(0)


async def test_a_release_meets_a_waiting_late_row_without_losing_it(db: Pool) -> None:
    """A late row is written for an id that moves into the tail at this moment: the tail learns of it.

    Otherwise the tail's next owner, who loaded before the commit, would be granted a watermark over it.
    """
    mailing_id, ids, batch = await marked(db, 4, watermark=1)
    assert await while_held(
        db,
        lambda conn: record_one(conn, report(batch, 1, old_watermark=1, release=True)),
        lambda conn: ledger.append_late(conn, PEER, result(0, ids[3])),
    )
    _, tail = await batches_of(db, mailing_id)
    assert (tail["members"], tail["foreign_rows"]) == (ids[1:], 1)
    assert not await ledger_errors(db)


async def test_a_record_and_a_late_row_lock_the_books_in_one_order(db: Pool) -> None:
    """Both want the same counter rows; a third one holds them up in the middle until both are under way."""
    await running(db, 2, 2)
    mine, theirs = await claim_one(db), await claim_one(db)
    for batch in (mine, theirs):
        await record_one(db, report(batch, 2))
        await record_one(
            db,
            report(batch, 2, old_watermark=2),
            result(batch, batch.ids[0], "rejected", "failed", reason="late"),
        )
    async with db.acquire() as one, db.acquire() as other:
        async with db.acquire() as third, third.transaction():
            await third.execute("SELECT FROM failures FOR UPDATE")
            rejected = result(mine, mine.ids[1], "rejected", "failed", reason="late")
            record = asyncio.ensure_future(record_one(one, report(mine, 2, old_watermark=2), rejected))
            await waiting_for_a_lock(third, one)
            late = result(0, theirs.ids[1], "rejected", "failed", reason="rejected")
            append = asyncio.ensure_future(ledger.append_late(other, ME, late))
            await waiting_for_a_lock(third, other)
        assert (await record).written == 1
        assert await append
    assert not await ledger_errors(db)


async def test_counters_are_locked_in_one_order_too(db: Pool) -> None:
    """From retrying to doubtful, by a record and by a late row: each changes both counters."""
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 2)
    for id_ in ids:
        await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
        await insert_batch(db, mailing_id, [id_], seq=2, state="retrying")
    mine = await claim_one(db)
    await record_one(db, report(mine, 1))
    await db.execute(
        "INSERT INTO counters SELECT $1, 1, s, 0 FROM unnest('{retrying,doubtful}'::message_state[]) s", mailing_id
    )
    async with db.acquire() as one, db.acquire() as other:
        async with db.acquire() as third, third.transaction():
            await third.execute("SELECT FROM counters WHERE slot = 1 AND state = 'doubtful' FOR UPDATE")
            unknown = result(mine, mine.ids[0], "unknown", "doubtful", due_at=LATER)
            record = asyncio.ensure_future(record_one(one, report(mine, 1, old_watermark=1), unknown))
            await waiting_for_a_lock(third, one)
            late = result(0, (set(ids) - set(mine.ids)).pop(), "unknown", "doubtful", due_at=LATER)
            append = asyncio.ensure_future(ledger.append_late(other, ME, late))
            await waiting_for_a_lock(third, other)
        assert (await record).written == 1
        assert await append
    assert not await ledger_errors(db)
