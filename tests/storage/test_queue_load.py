"""Loading the messages of a batch, and rescheduling those outside their window."""

from __future__ import annotations

from datetime import time

import asyncpg
import pytest

from notifier.errors import Stale
from notifier.models import Window
from notifier.storage import mailings, queue
from notifier.storage.database import Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import while_held, without
from tests.storage.scenes import (
    LATER,
    PEER,
    adopt_all,
    batches_of,
    claim_one,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    marked,
    record_one,
    report,
    result,
    running,
    soon,
)

# ---- load ---------------------------------------------------------------------------------------------------------


async def test_load_gives_one_row_per_id_in_the_order_asked_for(db: Pool) -> None:
    mailing_id, ids = await running(db, 4)
    await db.execute("UPDATE clients SET timezone = 'Asia/Omsk' WHERE phone % 2 = 0")
    await db.execute("DELETE FROM clients WHERE id = (SELECT client_id FROM messages WHERE id = $1)", ids[2])

    rows = await queue.load(db, [ids[3], ids[0], ids[2], 999_999], [1, 1, 1, 1])

    assert [row.id for row in rows] == [ids[3], ids[0], ids[2], 999_999]
    assert [row.phone is None for row in rows] == [False, False, True, True]
    assert {row.timezone for row in rows[:2]} == {"Asia/Omsk", None}
    assert not any(row.recorded or row.counted or row.declined or row.in_doubt for row in rows)
    assert mailing_id


async def test_load_tells_the_history_of_each(db: Pool) -> None:
    mailing_id, ids = await running(db, 2)
    await insert_ledger(
        db,
        mailing_id,
        ids[0],
        ("throttled", "retrying", "throttled"),
        ("declined", "retrying", "declined"),
        ("unavailable", "retrying", "refused"),
        ("unavailable", "retrying", "outage"),
        ("unknown", "doubtful", "timeout"),
        ("interrupted", "doubtful", "interrupted"),
        ("misconfigured", "doubtful", "unauthorized"),
        ("not_started", "doubtful", "paused"),
    )
    for seq, recorded in ((8, True), (9, False)):
        loaded, other = await queue.load(db, ids, [seq, 1])
        assert loaded[3:] == (recorded, 4, 1, 2, False)
        assert other[3:] == (False, 0, 0, 0, False)


async def test_load_tells_who_was_let_go_since_the_last_doubt_and_who_was_declined_for_our_sake(db: Pool) -> None:
    mailing_id, ids = await running(db, 2)
    doubt, again = ("unknown", "unknown", "timeout"), ("resolved", "doubtful", "operator")
    declined = ("declined", "doubtful", "account_refused")
    await insert_ledger(db, mailing_id, ids[0], doubt, again, declined)
    await insert_ledger(db, mailing_id, ids[1], doubt, again, ("unknown", "doubtful", "timeout"))
    let_go, in_doubt_anew = await queue.load(db, ids, [4, 4])
    assert let_go[4:] == (2, 0, 1, True)
    assert in_doubt_anew[4:] == (2, 0, 2, False)


async def test_without_left_joins_a_deleted_client_hides_a_message(db: Pool) -> None:
    _, ids = await running(db, 2)
    await db.execute("DELETE FROM clients WHERE id = (SELECT client_id FROM messages WHERE id = $1)", ids[0])
    async with without(db, {"LEFT JOIN clients": "JOIN clients"}) as changed:
        with pytest.raises(AssertionError, match="2 ids asked for, 1 rows"):
            await queue.load(changed, ids, [1, 1])


# ---- reschedule -------------------------------------------------------------------------------------------------


async def test_ids_outside_their_window_go_into_batches_by_their_time(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 6, watermark=2)
    soon_, later = soon(60), soon(120)

    assert await queue.reschedule(
        db, batch, [ids[0], ids[1], ids[4]], [(ids[2], later), (ids[3], soon_), (ids[5], later)], version=1
    )

    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["due_at"], row["owner"], row["watermark"]) for row in rows] == [
        ([ids[0], ids[1], ids[4]], batch.due_at, batch.owner, 2),
        ([ids[2], ids[5]], later, None, 0),
        ([ids[3]], soon_, None, 0),
    ]
    assert {(row["seq"], row["state"]) for row in rows} == {(1, "waiting")}
    assert not await ledger_errors(db)
    done = await record_one(db, report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    assert (done.watermark, done.finished) == (3, False)
    assert (await record_one(db, report(batch), result(batch, ids[4]))).finished
    assert not await ledger_errors(db)


async def test_a_batch_that_is_sorted_away_wholly_is_gone(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    due = soon()
    assert await queue.reschedule(db, batch, [], [(id_, due) for id_ in ids], version=1)
    (row,) = await batches_of(db, mailing_id)
    assert (row["members"], row["due_at"], row["owner"]) == (ids, due, None)
    assert not await ledger_errors(db)


async def test_a_list_keeps_its_number_and_standing_when_sorted(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 3)
    for id_ in ids:
        await insert_ledger(db, mailing_id, id_, ("unknown", "doubtful", "timeout"))
    await insert_batch(db, mailing_id, list(ids), seq=2, state="doubtful")
    batch = await claim_one(db)
    assert await queue.reschedule(db, batch, ids[:2], [(ids[2], soon())], version=1)
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["seq"], row["state"]) for row in rows] == [
        (ids[:2], 2, "doubtful"),
        (ids[2:], 2, "doubtful"),
    ]
    assert not await ledger_errors(db)


async def test_who_lost_the_batch_sorts_nothing(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await adopt_all(db, PEER)
    before = await batches_of(db, mailing_id)
    assert not await queue.reschedule(db, batch, ids[:1], [(id_, soon()) for id_ in ids[1:]], version=1)
    assert await batches_of(db, mailing_id) == before


async def test_without_the_owner_sorting_again_takes_messages_twice(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    (theirs,) = await adopt_all(db, PEER)
    assert (await record_one(db, report(theirs, 3), replica=PEER)).watermark == 3
    async with without(db, {"b.id = $1 AND b.owner = $2": "b.id = $1 AND $2::bigint > 0"}) as changed:
        with pytest.raises(asyncpg.CheckViolationError):  # luckily: the watermark lies beyond what is left
            await queue.reschedule(changed, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1)
        await queue.reschedule(changed, batch, ids, [(ids[0], LATER)], version=1)
    assert sorted(row["members"] for row in await batches_of(db, mailing_id)) == [ids[:1], ids]
    assert "in another batch" in str(await ledger_errors(db))


async def test_who_knows_another_window_sorts_nothing(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await mailings.edit(db, mailing_id, {"window": Window(time(9), time(21))})
    before = await batches_of(db, mailing_id)
    with pytest.raises(Stale):
        await queue.reschedule(db, batch, ids[:1], [(id_, soon()) for id_ in ids[1:]], version=1)
    assert await batches_of(db, mailing_id) == before


async def test_an_edit_of_the_window_reaches_what_is_being_sorted(db: Pool) -> None:
    """The edit waits for the sorting and makes due what it added, instead of missing what it does not see yet."""
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await while_held(
        db,
        lambda conn: queue.reschedule(conn, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1),
        lambda conn: mailings.edit(conn, mailing_id, {"window": Window(time(9), time(21))}),
    )
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["owner"] is None, row["due_at"] == LATER) for row in rows] == [
        (ids[:1], False, False),
        (ids[1:], True, False),
    ]


async def test_without_the_lock_an_edit_of_the_window_misses_what_is_being_sorted(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    async with without(db, {"AND version = $8 FOR SHARE": "AND $8::int > 0"}) as changed, changed.transaction():
        await queue.reschedule(changed, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1)
        await mailings.edit(db, mailing_id, {"window": Window(time(9), time(21))})
    assert [row["due_at"] == LATER for row in await batches_of(db, mailing_id)] == [False, True]
