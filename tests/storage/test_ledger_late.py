"""Late results: each against every past that a message may have, what its batch learns, and several writers at once."""

from __future__ import annotations

import asyncio
import itertools
from datetime import timedelta

import asyncpg
import pytest

from notifier.errors import Conflict
from notifier.models import OPEN_STATES
from notifier.storage import audit, ledger, mailing_lifecycle, mailings, queue
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.ledger_scenes import PASTS, stands
from tests.storage.races import while_held, without
from tests.storage.scenes import (
    AT,
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
    ledger_of,
    let_a_month_pass,
    marked,
    record_one,
    report,
    result,
    running,
)

LATE = {
    "sent": ("accepted", None),
    "failed": ("rejected", "rejected"),
    "retrying": ("unavailable", "refused"),
    "doubtful": ("unknown", "timeout"),
    "unknown": ("unknown", "timeout"),
}
# past → late → state after, where it is not the late one
KEPT = {
    **{past: dict.fromkeys(LATE, past) for past in ("sent", "delivered", "undelivered")},
    **{past: {late: past for late in LATE if late != "sent"} for past in ("failed", "suppressed")},
    # one doubt is settled, the other is not
    "doubtful twice": {"retrying": "doubtful", "failed": "unknown"},
    # one doubt more never overrules unknown
    "unknown": {"doubtful": "unknown"},
    "unknown twice": {"retrying": "doubtful", "failed": "unknown", "doubtful": "unknown"},
}


async def test_a_late_result_is_the_next_row_and_decides_as_far_as_it_may(db: Pool) -> None:
    for past, late in itertools.product(PASTS, LATE):
        mailing_id, message_id = await stands(db, past)
        before = await ledger_of(db, message_id)
        outcome, reason = LATE[late]
        goes_on = late in ("retrying", "doubtful")

        assert await ledger.append_late(
            db, PEER, result(0, message_id, outcome, late, reason=reason, detail="x", due_at=LATER if goes_on else None)
        )

        after = KEPT.get(past, {}).get(late, late)
        assert await ledger_of(db, message_id) == [*before, (len(before) + 1, outcome, after, "late")]
        detail = await db.fetchval(
            "SELECT detail FROM attempts WHERE message_id = $1 ORDER BY seq DESC LIMIT 1", message_id
        )
        assert detail == (f"{reason}: x" if reason else "x")
        added = [row for row in await batches_of(db, mailing_id) if row["seq"] == len(before) + 2]
        assert [(row["members"], row["state"], row["due_at"]) for row in added] == (
            [([message_id], after, LATER)] if after in OPEN_STATES else []
        )
        assert not await ledger_errors(db)


async def test_a_late_doubt_does_not_let_a_fourth_request_go(db: Pool) -> None:
    """Three requests are in doubt; that the first had no clear answer either, as its owner says late, changes nothing.

    Nor does it while a third is under way: that one is taken to be in doubt too.
    """
    rows = [*PASTS["doubtful twice"][0], ("unknown", "unknown", "reset")]
    mailing_id = await insert_mailing(db)
    message_id, last = await insert_messages(db, mailing_id, 2)
    await insert_ledger(db, mailing_id, message_id, *rows)
    await insert_batch(db, mailing_id, [last], due_in=60)
    late = result(0, message_id, "unknown", "doubtful", reason="reset", due_at=LATER)
    assert await ledger.append_late(db, PEER, late)
    assert (await ledger_of(db, message_id))[-1] == (4, "unknown", "unknown", "late")
    assert len(await batches_of(db, mailing_id)) == 1

    mailing_id, message_id = await stands(db, "doubtful twice")
    await record_one(db, report(await claim_one(db), 1))
    assert await ledger.append_late(db, PEER, late._replace(message_id=message_id))
    assert (await ledger_of(db, message_id))[-1] == (3, "unknown", "unknown", "late")
    assert [row["seq"] for row in await batches_of(db, mailing_id)] == [1, 3]
    assert not await ledger_errors(db)
    # the third was not sent after all: so one more may go
    not_sent = result(0, message_id, "unavailable", "doubtful", reason="dns", due_at=LATER)
    assert await ledger.append_late(db, ME, not_sent)
    assert [row["seq"] for row in await batches_of(db, mailing_id)] == [1, 3, 5]
    assert not [finding async for finding in audit.run(db) if finding.breach]


async def test_a_late_row_written_before_its_acknowledgement_was_lost_is_not_written_again(db: Pool) -> None:
    mailing_id, message_id = await stands(db, "doubtful")
    late = result(0, message_id, "unavailable", "retrying", reason="dns", due_at=LATER)
    for _ in range(2):
        assert await ledger.append_late(db, PEER, late)
    assert len(await ledger_of(db, message_id)) == 2
    assert await ledger.append_late(db, PEER, late._replace(started_at=AT + timedelta(seconds=1)))
    assert len(await ledger_of(db, message_id)) == 3
    assert not await ledger_errors(db)
    assert mailing_id


async def test_a_late_result_of_a_purged_message_is_told_so(db: Pool) -> None:
    assert not await ledger.append_late(db, ME, result(0, 12345))


async def test_a_late_result_that_waits_for_a_purge_finds_nothing(db: Pool) -> None:
    mailing_id, ids = await running(db, 2)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)
    assert not await while_held(
        db, mailing_lifecycle.purge, lambda conn: ledger.append_late(conn, ME, result(0, ids[0]))
    )
    assert not await ledger_errors(db)


# ---- what its batch learns ----------------------------------------------------------------------------------------


async def late_and_done(db: Db, batch_id: int) -> tuple[int, int]:
    row = await db.fetchrow("SELECT foreign_rows, done FROM batches WHERE id = $1", batch_id)
    assert row is not None
    return row["foreign_rows"], row["done"]


async def test_an_unowned_batch_learns_of_the_row(db: Pool) -> None:
    for as_list in (False, True):
        mailing_id = await insert_mailing(db)
        ids = await insert_messages(db, mailing_id, 3)
        batch_id = await insert_batch(db, mailing_id, list(ids) if as_list else range(ids[0], ids[0] + 3))
        await ledger.append_late(db, PEER, result(0, ids[1]))
        assert await late_and_done(db, batch_id) == (1, 0)
        assert not await ledger_errors(db)
        batch = await claim_one(db)
        assert batch.foreign_rows == 1
        loaded = await queue.load(db, batch.ids, [1] * 3)
        assert [message.recorded for message in loaded] == [False, True, False]
        recorded = await record_one(db, report(batch, 3, skipped=1), result(batch, ids[0]), result(batch, ids[2]))
        assert (recorded.finished, recorded.written) == (True, 2)
        assert not await ledger_errors(db)


async def test_an_owned_batch_learns_of_the_row(db: Pool) -> None:
    """Below the watermark the row is one of those done; beyond it the owner is to load again."""
    for (position, done), as_list in itertools.product(((0, 1), (1, 1), (2, 0), (3, 0)), (False, True)):
        mailing_id = await insert_mailing(db)
        ids = await insert_messages(db, mailing_id, 4)
        await insert_batch(db, mailing_id, list(ids) if as_list else range(ids[0], ids[0] + 4))
        batch = await claim_one(db)
        await record_one(db, report(batch, 2))

        await ledger.append_late(db, PEER, result(0, ids[position]))

        assert await late_and_done(db, batch.id) == (1, done)
        assert not await ledger_errors(db)
        recorded = await record_one(db, report(batch, 4, old_watermark=2))
        assert (recorded.watermark, recorded.foreign_rows) == (2, 1)
        recorded = await record_one(db, report(batch, 4, old_watermark=2, foreign_rows=1, skipped=1 - done))
        assert recorded.watermark == 4
        assert not await ledger_errors(db)
        rest = [result(batch, id_) for id_ in ids if id_ != ids[position]]
        assert (await record_one(db, report(batch, 4, old_watermark=4), *rest)).finished
        assert not await ledger_errors(db)


async def test_the_last_one_may_be_done_by_a_late_row(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await record_one(db, report(batch), result(batch, ids[0]))
    await ledger.append_late(db, PEER, result(0, ids[1]))
    assert await late_and_done(db, batch.id) == (1, 2)
    assert not await ledger_errors(db)
    assert (await record_one(db, report(batch, 2, old_watermark=2))).finished
    assert await batches_of(db, mailing_id) == []


async def test_a_late_acceptance_cancels_the_retry_of_a_take_over(db: Pool) -> None:
    """The old owner's answer comes after its batch was taken; the retry batch waits with the number it now takes."""
    mailing_id, ids, batch = await marked(db, 2, watermark=1)
    (reclaimed,) = await adopt_all(db, PEER)
    interrupted = result(reclaimed, ids[0], "interrupted", "doubtful", reason="interrupted", due_at=AT)
    await record_one(db, report(reclaimed, release=True), interrupted, replica=PEER)

    assert not (await record_one(db, report(batch), result(batch, ids[0]))).owned
    assert await ledger.mine(db, ME, [(ids[0], 1, AT)]) == set()
    assert await ledger.append_late(db, ME, result(batch, ids[0]))

    assert not await ledger_errors(db)
    (retry,) = await queue.claim(db, PEER, after=0, retries=True)
    (loaded,) = await queue.load(db, retry.ids, [retry.seq])
    assert loaded.recorded
    assert (await record_one(db, report(retry, 1, skipped=1), replica=PEER)).finished
    assert [row[2] for row in await ledger_of(db, ids[0])] == ["doubtful", "sent"]
    assert not await ledger_errors(db)
    assert mailing_id


async def test_without_telling_the_batch_its_count_is_short_for_ever(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    async with without(db, {"done = done + $2::int": "done = done + 0 * $2::int"}) as changed:
        await ledger.append_late(changed, PEER, result(0, ids[0]))
    assert "0 done, 1 rows" in str(await ledger_errors(db))
    await record_one(db, report(batch, foreign_rows=1), *(result(batch, id_) for id_ in ids))
    assert [row["id"] for row in await batches_of(db, mailing_id)] == [batch.id]  # it never ends


# ---- races --------------------------------------------------------------------------------------------------------


async def test_two_late_writers_take_turns(db: Pool) -> None:
    mailing_id, message_id = await stands(db, "doubtful")
    await while_held(
        db,
        lambda conn: ledger.append_late(conn, ME, result(0, message_id, "rejected", "failed", reason="rejected")),
        lambda conn: ledger.append_late(conn, PEER, result(0, message_id)),
    )
    assert [row[2] for row in await ledger_of(db, message_id)] == ["doubtful", "failed", "sent"]
    assert not await ledger_errors(db)
    assert mailing_id


async def test_many_late_writers_at_once_leave_a_dense_ledger(db: Pool) -> None:
    _, message_id = await stands(db, "waiting")
    await asyncio.gather(
        *(
            ledger.append_late(db, n, result(0, message_id, "unavailable", "retrying", reason="dns", due_at=LATER))
            for n in range(8)
        )
    )
    assert [row[0] for row in await ledger_of(db, message_id)] == list(range(1, 9))
    assert not await ledger_errors(db)


async def test_an_owner_who_records_first_is_seen(db: Pool) -> None:
    """The late row waits for the batch; when it gets on, the number it looked for is taken."""
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    assert await while_held(
        db,
        lambda conn: record_one(conn, report(batch), result(batch, ids[0], "unavailable", "retrying", due_at=LATER)),
        lambda conn: ledger.append_late(conn, PEER, result(0, ids[0])),
    )
    assert [row[2] for row in await ledger_of(db, ids[0])] == ["retrying", "sent"]
    assert not await ledger_errors(db)
    assert mailing_id


async def test_a_message_that_never_holds_still_is_given_up(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def race(conn: Db, message_id: int) -> None:
        raise asyncpg.UniqueViolationError("somebody was faster")

    monkeypatch.setattr(ledger, "_lock", race)
    with pytest.raises(Conflict, match="changes_too_fast"):
        await ledger.append_late(db, ME, result(0, 1))
    with pytest.raises(Conflict, match="changes_too_fast"):
        await ledger.resolve(db, 1, "sent")
