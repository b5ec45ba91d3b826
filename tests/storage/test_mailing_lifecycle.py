"""What the scheduler does with a mailing: it begins, ends by its time, or is closed when nothing is left."""

from __future__ import annotations

import itertools

import pytest

from notifier.storage import audience, mailing_lifecycle, mailings, queue
from notifier.storage.database import Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.mailing_scenes import STATUSES, create
from tests.storage.races import while_held
from tests.storage.scenes import (
    ME,
    insert_batch,
    insert_clients,
    insert_ledger,
    insert_mailing,
    insert_messages,
    marked,
    plan_slice,
    record_one,
    report,
    result,
)


@pytest.mark.parametrize("status", STATUSES)
async def test_what_is_scheduled_begins_when_its_start_has_come(db: Pool, status: str) -> None:
    clients = await insert_clients(db, 3)
    due = await insert_mailing(db, status, starts_in=-1, planned=False)
    await insert_mailing(db, "scheduled", starts_in=60, planned=False)
    await insert_mailing(db, "scheduled", starts_in=-60, ends_in=-1, planned=False)
    assert [begun.id for begun in await audience.begin_due(db)] == ([due] if status == "scheduled" else [])
    row = await db.fetchrow("SELECT status, horizon, version FROM mailings WHERE id = $1", due)
    assert row is not None
    assert tuple(row) == (("running", clients[-1], 1) if status == "scheduled" else (status, None, 1))
    assert await audience.begin_due(db) == []


async def test_two_replicas_begin_a_mailing_once(db: Pool) -> None:
    mailing_id = await insert_mailing(db, "scheduled", planned=False)
    assert await while_held(db, audience.begin_due, audience.begin_due) == []
    assert (await mailings.get(db, mailing_id)).status == "running"


async def test_what_has_ended_is_finished(db: Pool) -> None:
    for status in STATUSES:
        ended = await insert_mailing(db, status, ends_in=-0.01)
        await insert_mailing(db, status, ends_in=60)
        alive = status in ("scheduled", "running", "paused")
        assert await mailing_lifecycle.finish_ended(db) == ([ended] if alive else [])
        mailing = await mailings.get(db, ended)
        assert mailing.status == ("finished" if alive else status)
        assert mailing.status_reason == ("nobody_matched" if alive else None)
        assert (await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", ended) is not None) == alive
        assert await mailing_lifecycle.finish_ended(db) == []


async def test_a_mailing_is_closed_when_it_is_planned_and_nothing_is_left(db: Pool) -> None:
    for status, left in itertools.product(STATUSES, ("nothing", "a batch", "a batch in hand", "clients")):
        mailing_id = await insert_mailing(db, status, planned=left != "clients")
        if "batch" in left:
            ids = await insert_messages(db, mailing_id, 1)
            await insert_batch(db, mailing_id, ids, replica=ME if "hand" in left else None)
        ready = status in ("running", "paused") and left == "nothing"
        assert await mailing_lifecycle.worked_off(db) == ([mailing_id] if ready else [])
        assert await mailing_lifecycle.close(db, mailing_id) is ready
        mailing = await mailings.get(db, mailing_id)
        assert (mailing.status, mailing.status_reason) == (("finished", "nobody_matched") if ready else (status, None))
        assert (await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id) is not None) == ready
        assert await mailing_lifecycle.close(db, mailing_id) is False


async def test_a_mailing_to_nobody_says_so(db: Pool) -> None:
    """Closed or ended; where somebody was chosen, or the choice was not done, it does not."""
    for verb, audience_, planned, expected in (
        ("close", 0, True, "nobody_matched"),
        ("close", 1, True, "completed"),
        ("end", 0, True, "nobody_matched"),
        ("end", 0, False, "ended"),
        ("end", 1, True, "ended"),
    ):
        mailing_id = await insert_mailing(db, planned=planned, ends_in=-1 if verb == "end" else 60)
        if audience_:
            [message_id] = await insert_messages(db, mailing_id, 1)
            await insert_ledger(db, mailing_id, message_id, ("accepted", "sent", None))
        assert (
            await mailing_lifecycle.close(db, mailing_id)
            if verb == "close"
            else await mailing_lifecycle.finish_ended(db)
        )
        assert (await mailings.get(db, mailing_id)).status_reason == expected


async def test_when_it_started_and_finished_is_said_and_is_no_edit(db: Pool) -> None:
    mailing = await create(db)
    assert (mailing.started_at, mailing.finished_at) == (None, None)
    await audience.begin_due(db)
    begun = await mailings.get(db, mailing.id)
    assert begun.started_at is not None
    assert begun.started_at > mailing.created_at
    paused = await mailings.act(db, mailing.id, "pause")
    resumed = await mailings.act(db, mailing.id, "resume")
    assert resumed.started_at == begun.started_at
    assert resumed.updated_at > paused.updated_at > begun.updated_at == mailing.updated_at
    await db.execute("UPDATE mailings SET planned = true")
    assert await mailing_lifecycle.close(db, mailing.id)
    closed = await mailings.get(db, mailing.id)
    assert closed.finished_at is not None
    assert closed.finished_at > closed.updated_at == resumed.updated_at
    cancelled = await mailings.act(db, (await create(db)).id, "cancel")
    assert (cancelled.started_at, cancelled.finished_at) == (None, cancelled.updated_at)


async def test_two_replicas_close_a_mailing_once(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    assert not await while_held(
        db,
        lambda conn: mailing_lifecycle.close(conn, mailing_id),
        lambda conn: mailing_lifecycle.close(conn, mailing_id),
    )


async def test_the_last_slice_and_the_close_do_not_miss_each_other(db: Pool) -> None:
    await insert_clients(db, 2)
    mailing = await create(db)
    await audience.begin_due(db)
    (unplanned,) = await audience.unplanned(db)
    closed = await while_held(
        db,
        lambda conn: plan_slice(conn, unplanned, 5, 100),
        lambda conn: mailing_lifecycle.close(conn, mailing.id),
    )
    assert not closed
    assert not await ledger_errors(db)


async def test_what_is_left_over_at_the_end_expires(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch), result(batch, ids[0]))
    await db.execute("UPDATE mailings SET ends_at = now()")
    assert await mailing_lifecycle.finish_ended(db) == [mailing_id]
    assert not await ledger_errors(db)
    assert await queue.claim(db, ME, after=0) == []
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[1]))
    assert (recorded.status, recorded.watermark) == ("finished", 2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert not await ledger_errors(db)


async def test_the_next_start_or_end_that_is_ahead(db: Pool) -> None:
    assert await mailing_lifecycle.seconds_to_next(db) is None
    for status in ("draft", "finished", "cancelled"):
        await insert_mailing(db, status, starts_in=5, ends_in=9)
    assert await mailing_lifecycle.seconds_to_next(db) is None
    for status, starts_in, ends_in, expected in (
        ("paused", -5, 900, 900),
        ("scheduled", 300, 600, 300),
        ("running", -5, 200, 200),
        ("scheduled", -5, 100, 100),  # begun at once by whoever looks
        ("running", -5, -1, 0),
    ):
        await insert_mailing(db, status, starts_in=starts_in, ends_in=ends_in)
        seconds = await mailing_lifecycle.seconds_to_next(db)
        assert seconds is not None
        assert max(0, expected - 2) <= seconds <= expected
