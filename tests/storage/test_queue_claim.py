"""Claiming batches of the queue: what is claimed, by whom, and in which order."""

from __future__ import annotations

import asyncio

import pytest

from chaos.stage import PATIENCE
from notifier.models import MessageState
from notifier.storage import queue
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import while_held
from tests.storage.scenes import (
    ME,
    PEER,
    batches_of,
    claim_one,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    running,
    set_status,
)


async def test_a_claimed_batch_is_ours_and_says_what_it_holds(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)

    (batch,) = await queue.claim(db, ME, after=0)

    assert (batch.mailing_id, batch.ids, batch.seq, batch.state) == (
        mailing_id,
        range(ids[0], ids[0] + 3),
        1,
        "waiting",
    )
    assert (batch.watermark, batch.done, batch.foreign_rows) == (0, 0, 0)
    assert batch.send_settings == await queue.send_settings(db, mailing_id)
    (row,) = await batches_of(db, mailing_id)
    assert (row["owner"], row["replica"]) == (batch.owner, ME)
    assert await queue.claim(db, PEER, after=0) == []
    assert not await ledger_errors(db)


async def test_every_claim_draws_a_new_number(db: Pool) -> None:
    await running(db, 2, 2)
    first = await claim_one(db)
    second = await claim_one(db)
    assert first.owner != second.owner
    assert first.id != second.id


async def test_a_list_is_claimed_in_its_order(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 5)
    for id_ in ids[::2]:
        await insert_ledger(db, mailing_id, id_, ("unknown", "doubtful", "timeout"))
    await insert_batch(db, mailing_id, ids[::2], seq=2, state="doubtful")
    await insert_batch(db, mailing_id, [ids[1], ids[3]], due_in=10)

    batch = await claim_one(db)

    assert (batch.ids, batch.seq, batch.state) == (ids[::2], 2, MessageState.DOUBTFUL)
    assert not await ledger_errors(db)


async def test_only_running_mailings_are_claimed_from(db: Pool) -> None:
    for status in ("draft", "scheduled", "paused", "finished", "cancelled"):
        await running(db, 2, status=status)
        assert await queue.claim(db, ME, after=0) == []


async def test_neither_the_ended_nor_the_not_yet_due_is_claimed(db: Pool) -> None:
    ended = await insert_mailing(db, ends_in=-1)
    await insert_batch(db, ended, range(*_bounds(await insert_messages(db, ended, 2))))
    early = await insert_mailing(db)
    await insert_batch(db, early, range(*_bounds(await insert_messages(db, early, 2))), due_in=60)
    assert await queue.claim(db, ME, after=0) == []


def _bounds(ids: list[int]) -> tuple[int, int]:
    return ids[0], ids[-1] + 1


async def test_two_replicas_pass_each_other_without_waiting(db: Pool) -> None:
    await running(db, 2, 2)
    async with db.acquire() as one, db.acquire() as other, one.transaction():
        (mine,) = await queue.claim(one, ME, after=0)
        (theirs,) = await asyncio.wait_for(queue.claim(other, PEER, after=0), PATIENCE)
        assert await queue.claim(other, PEER, after=0) == []
    assert mine.id != theirs.id


async def test_higher_priority_goes_first(db: Pool) -> None:
    await running(db, 2)
    urgent, _ = await running(db, 2, 2, priority=5)
    await running(db, 2, priority=-5)
    claimed = [await claim_one(db) for _ in range(4)]
    assert [batch.mailing_id for batch in claimed][:2] == [urgent, urgent]
    assert claimed[3].mailing_id == max(batch.mailing_id for batch in claimed)


async def test_mailings_take_turns_and_those_in_hand_are_left_out(db: Pool) -> None:
    a, b, c = [(await running(db, 1, 1, 1))[0] for _ in range(3)]
    turns, last = [], a
    for _ in range(5):
        (batch,) = await queue.claim(db, ME, after=last)
        turns.append(last := batch.mailing_id)
    assert turns == [b, c, a, b, c]
    (batch,) = await queue.claim(db, ME, after=0, busy=[a, b])
    assert batch.mailing_id == c
    assert await queue.claim(db, ME, after=0, busy=[a, b, c]) == []


async def test_retries_can_be_asked_for(db: Pool) -> None:
    mailing_id, ids = await running(db, 2, 1)
    await insert_ledger(db, mailing_id, ids[0], ("unavailable", "retrying", "refused"))
    await db.execute("DELETE FROM batches WHERE first_id = $1", ids[0])
    await insert_batch(db, mailing_id, [ids[0]], seq=2, state="retrying")
    await insert_batch(db, mailing_id, [ids[1]], due_in=-100)

    (retry,) = await queue.claim(db, ME, after=0, retries=True, limit=8)
    assert (retry.seq, list(retry.ids)) == (2, [ids[0]])
    assert await queue.claim(db, ME, after=0, retries=True) == []

    (oldest,) = await queue.claim(db, ME, after=0)
    assert list(oldest.ids) == [ids[1]]
    assert not await ledger_errors(db)


async def test_up_to_limit_batches_come_at_once_the_earliest_due_first(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 4)
    for id_, due_in in zip(ids, (-1, -4, -3, -2), strict=True):
        await insert_batch(db, mailing_id, range(id_, id_ + 1), due_in=due_in)
    claimed = await queue.claim(db, ME, after=0, limit=3)
    assert sorted(batch.ids[0] for batch in claimed) == ids[1:]


@pytest.mark.parametrize("retries", [False, True])
async def test_without_skip_locked_a_claim_waits_for_the_other(db: Pool, retries: bool) -> None:
    mailing_id, ids = await running(db, 2)
    if retries:
        for id_ in ids:
            await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
        await db.execute("UPDATE batches SET seq = 2, state = 'retrying'")

    async def claim(conn: Db) -> list[queue.Claimed]:
        return await queue.claim(conn, ME, after=0, retries=retries)

    # it would have waited, and then got nothing for it
    assert await while_held(db, claim, claim, replace={"FOR UPDATE SKIP LOCKED": "FOR UPDATE"}) == []


async def test_without_the_lock_two_replicas_claim_one_batch(db: Pool) -> None:
    await running(db, 2)
    claimed: list[queue.Claimed] = []

    async def claim(conn: Db) -> None:
        claimed.extend(await queue.claim(conn, ME, after=0))

    await while_held(db, claim, claim, replace={"FOR UPDATE SKIP LOCKED": ""})
    assert len(claimed) == 2
    assert claimed[0].id == claimed[1].id


async def test_the_next_due_time_is_that_of_running_mailings(db: Pool) -> None:
    assert await queue.seconds_to_next(db) is None
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 3)
    await insert_batch(db, mailing_id, range(ids[0], ids[0] + 1), due_in=60)
    await insert_batch(db, mailing_id, range(ids[1], ids[1] + 1), due_in=30)
    await insert_batch(db, mailing_id, range(ids[2], ids[2] + 1), due_in=-5, replica=ME)
    seconds = await queue.seconds_to_next(db)
    assert seconds is not None
    assert 25 < seconds <= 30
    await set_status(db, mailing_id, "paused")
    assert await queue.seconds_to_next(db) is None
    await running(db, 1)
    assert await queue.seconds_to_next(db) == 0.0
