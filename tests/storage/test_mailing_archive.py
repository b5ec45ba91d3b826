"""Archiving a mailing that is over, and the lists of the archived and of the deleted."""

from __future__ import annotations

from datetime import timedelta

import pytest

from notifier.errors import IllegalTransition, Stale
from notifier.models import OVER, MailingStatus
from notifier.storage import ledger, mailing_lifecycle, mailings, queue, statistics
from notifier.storage.database import Pool
from tests.storage.mailing_scenes import STATUSES, finished_mailing
from tests.storage.scenes import ME, insert_ledger, insert_mailing, result, running


async def test_what_is_over_is_archived_and_back(db: Pool) -> None:
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        if status not in OVER:
            for archived in (True, False):
                with pytest.raises(IllegalTransition, match=f"not_over status={status}"):
                    await mailings.archive(db, mailing_id, archived)
            continue
        with pytest.raises(Stale):
            await mailings.archive(db, mailing_id, True, if_match=2)
        put_away = await mailings.archive(db, mailing_id, True, if_match=1)
        assert (put_away.version, put_away.archived_at) == (2, put_away.updated_at)
        assert await mailings.archive(db, mailing_id, True) == put_away
        back = await mailings.archive(db, mailing_id, False)
        assert (back.version, back.archived_at) == (3, None)
        assert await mailings.archive(db, mailing_id, False) == back


async def test_archived_ones_are_in_a_list_of_their_own_and_in_the_totals(db: Pool) -> None:
    """Of nine finished ones every third is archived; one of those is deleted."""
    made = [await finished_mailing(db) for _ in range(9)]
    for mailing_id in made[::3]:
        await mailings.archive(db, mailing_id, True)
    await mailings.delete(db, made[6])
    away, listed = [made[3], made[0]], [n for n in reversed(made) if n not in made[::3]]
    for archived, expected in ((True, away), (False, listed)):
        for status in (None, MailingStatus.FINISHED):
            first = await mailings.page(db, status=status, before=None, limit=1, archived=archived)
            rest = await mailings.page(db, status=status, before=first[0].id, limit=50, archived=archived)
            assert [mailing.id for mailing in first + rest] == expected
        assert await mailings.page(db, status=MailingStatus.DRAFT, before=None, limit=50, archived=archived) == []
        assert [line.id for line in await statistics.of_mailings(db, None, 50, archived=archived)] == expected
    assert len(await statistics.of_mailings(db, None, 50, ids=made)) == 8
    assert (await statistics.totals(db)).audience == 8 * 3


async def test_deleted_ones_are_listed_as_long_as_they_can_be_restored(db: Pool) -> None:
    """Of five, four are deleted, of which one is restored and one was deleted too long ago."""
    kept, late, back, *made = [await finished_mailing(db) for _ in range(5)]
    for mailing_id in (late, back, *made):
        await mailings.delete(db, mailing_id)
    await mailings.restore(db, back)
    await db.execute("UPDATE mailings SET deleted_at = now() - interval '31 days' WHERE id = $1", late)
    [(newest, until)] = await mailings.deleted(db, before=None, limit=1)
    [(older, _)] = await mailings.deleted(db, before=newest.id, limit=50)
    assert [older.id, newest.id] == made
    assert until == newest.updated_at + timedelta(days=30)
    assert await mailings.deleted(db, before=older.id, limit=50) == []
    assert {mailing.id for mailing in await mailings.page(db, status=None, before=None, limit=9)} == {kept, back}


async def test_an_archived_mailing_that_goes_on_is_back_in_the_lists(db: Pool) -> None:
    """An operator has one of its unknown messages sent again; a deleted one never goes on."""
    for deleted in (False, True):
        mailing_id, [message_id] = await running(db, 1)
        await db.execute("DELETE FROM batches")
        await insert_ledger(db, mailing_id, message_id, ("unknown", "unknown", "timeout"))
        assert await mailing_lifecycle.close(db, mailing_id)
        await mailings.archive(db, mailing_id, True)
        if deleted:
            await mailings.delete(db, mailing_id)
            late = result(0, message_id, "unavailable", "retrying", reason="dns")
            assert await ledger.append_late(db, ME, late)
            row = await db.fetchrow("SELECT status, over_at FROM mailings WHERE id = $1", mailing_id)
            assert row is not None
            assert (row["status"], row["over_at"] is not None) == ("finished", True)
            assert await queue.claim(db, ME, after=0) == []
        else:
            await ledger.resolve(db, message_id, "again")
            mailing = await mailings.get(db, mailing_id)
            assert (mailing.status, mailing.archived_at, mailing.finished_at) == ("running", None, None)
            await mailings.act(db, mailing_id, "cancel")
