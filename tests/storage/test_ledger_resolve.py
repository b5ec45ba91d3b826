"""What an operator says of a message that is unknown, and which entries a replica finds as its own."""

from __future__ import annotations

import itertools

import pytest

from notifier.errors import Conflict, NotFound
from notifier.models import MessageState
from notifier.storage import ledger, mailing_lifecycle, mailings
from notifier.storage.database import Connection, Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.ledger_scenes import PASTS, all_but_unknown, stands
from tests.storage.races import while_held
from tests.storage.scenes import (
    AT,
    LATER,
    ME,
    PEER,
    batches_of,
    claim_one,
    ledger_of,
    marked,
    record_one,
    report,
    result,
)

# ---- mine ---------------------------------------------------------------------------------------------------------


async def test_mine_are_the_rows_this_replica_wrote_for_this_start(db: Pool) -> None:
    _, ids, batch = await marked(db, 3, watermark=3)
    await record_one(db, report(batch), result(batch, ids[0]), result(batch, ids[1]))
    keys = [(id_, 1, AT) for id_ in ids]
    assert await ledger.mine(db, ME, keys) == set(keys[:2])
    assert await ledger.mine(db, PEER, keys) == set()
    assert await ledger.mine(db, ME, [(ids[0], 2, AT), (ids[1], 1, LATER)]) == set()
    assert await ledger.mine(db, ME, [(ids[0], 1, AT), (ids[0], 1, LATER)]) == {(ids[0], 1, AT)}
    assert await ledger.mine(db, ME, []) == set()


# ---- resolve ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("decision", "state"), [("sent", "sent"), ("failed", "failed"), ("again", "doubtful")])
async def test_an_operator_decides_about_an_unknown_one(db: Pool, decision: ledger.Decision, state: str) -> None:
    mailing_id, message_id = await stands(db, "unknown")
    await ledger.resolve(db, message_id, decision)
    assert (await ledger_of(db, message_id))[-1] == (2, "resolved", state, "operator")
    added = [row["members"] for row in await batches_of(db, mailing_id) if row["seq"] == 3]
    assert added == ([[message_id]] if decision == "again" else [])
    assert not await ledger_errors(db)


async def test_nothing_else_can_be_resolved(db: Pool) -> None:
    for past in (past for past in PASTS if not past.startswith("unknown")):
        _, message_id = await stands(db, past)
        before = await ledger_of(db, message_id)
        for decision in ("sent", "failed", "again"):
            with pytest.raises(Conflict, match="message_not_unknown"):
                await ledger.resolve(db, message_id, decision)
        assert await ledger_of(db, message_id) == before
        assert not await ledger_errors(db)


async def _over(db: Db, mailing_id: int, how: str) -> None:
    if how == "cancelled":
        await mailings.act(db, mailing_id, "cancel")
    else:
        await db.execute("UPDATE mailings SET ends_at = now() WHERE id = $1", mailing_id)
        assert await mailing_lifecycle.finish_ended(db) == [mailing_id]


async def test_what_reads_unknown_in_a_mailing_that_is_over_can_be_resolved_but_not_sent(db: Pool) -> None:
    for past, how in itertools.product(("doubtful", "doubtful twice", "unknown"), ("cancelled", "ended")):
        for decision in ("sent", "failed"):
            mailing_id, message_id = await stands(db, past)
            await _over(db, mailing_id, how)
            with pytest.raises(Conflict, match="too_late_to_send"):
                await ledger.resolve(db, message_id, "again")
            await ledger.resolve(db, message_id, "sent" if decision == "sent" else "failed")
            assert (await ledger_of(db, message_id))[-1][2] == decision
            assert not await ledger_errors(db)
            with pytest.raises(Conflict):
                await ledger.resolve(db, message_id, "sent")


async def test_one_in_doubt_that_is_still_under_way_cannot_be_resolved(db: Pool) -> None:
    mailing_id, message_id = await stands(db, "doubtful")
    batch = await claim_one(db)
    await record_one(db, report(batch, 1))
    await _over(db, mailing_id, "cancelled")
    with pytest.raises(Conflict):
        await ledger.resolve(db, message_id, "sent")
    assert not await ledger_errors(db)


async def test_what_was_surely_not_sent_is_not_to_be_resolved(db: Pool) -> None:
    for past in ("waiting", "retrying"):
        mailing_id, message_id = await stands(db, past)
        await _over(db, mailing_id, "cancelled")
        with pytest.raises(Conflict):
            await ledger.resolve(db, message_id, "sent")


async def test_again_opens_a_completed_mailing_and_the_message_is_sent(db: Pool) -> None:
    mailing_id, message_id = await all_but_unknown(db)
    assert await mailing_lifecycle.close(db, mailing_id)

    await ledger.resolve(db, message_id, "again")

    mailing = await mailings.get(db, mailing_id)
    assert (mailing.status, mailing.status_reason) == ("running", None)
    assert await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id) is None
    assert not await ledger_errors(db)
    batch = await claim_one(db)
    assert (batch.seq, batch.state, list(batch.ids)) == (3, MessageState.DOUBTFUL, [message_id])
    await record_one(db, report(batch, 1))
    assert (await record_one(db, report(batch), result(batch, message_id))).finished
    assert await mailing_lifecycle.close(db, mailing_id)
    assert not await ledger_errors(db)


async def test_there_is_nothing_to_resolve_where_no_message_is(db: Pool) -> None:
    with pytest.raises(NotFound):
        await ledger.resolve(db, 12345, "sent")
    mailing_id, message_id = await stands(db, "unknown")
    await mailings.delete(db, mailing_id)
    with pytest.raises(NotFound):
        await ledger.resolve(db, message_id, "sent")


async def test_two_operators_decide_once(db: Pool) -> None:
    _, message_id = await stands(db, "unknown")

    async def fail(conn: Connection) -> None:
        await ledger.resolve(conn, message_id, "failed")

    with pytest.raises(Conflict):
        await while_held(db, fail, lambda conn: ledger.resolve(conn, message_id, "sent"))
    assert [row[2] for row in await ledger_of(db, message_id)] == ["unknown", "failed"]
    assert not await ledger_errors(db)


async def test_a_failure_that_is_overruled_leaves_the_failures(db: Pool) -> None:
    """It is taken off the reason that it was counted under, whatever came after."""
    mailing_id, message_id = await stands(db, "failed")
    await ledger.append_late(db, ME, result(0, message_id, "declined", "failed", reason="declined"))
    assert not await ledger_errors(db)
    await ledger.append_late(db, PEER, result(0, message_id))
    failures = await db.fetch("SELECT reason, sum(n)::int FROM failures WHERE mailing_id = $1 GROUP BY 1", mailing_id)
    assert [tuple(row) for row in failures] == [("rejected", 0)]
    assert not await ledger_errors(db)
