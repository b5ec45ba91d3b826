"""How the whole installation stands: each figure counted once more, and what it costs to count."""

from __future__ import annotations

from notifier.models import GatewayState, MailingStatus
from notifier.storage import cluster, gateways, mailings
from notifier.storage.cluster import Figures
from notifier.storage.database import Pool
from tests.storage.scenes import claim_one, insert_batch, insert_ledger, insert_mailing, insert_messages, running


async def test_of_an_empty_installation_everything_is_zero(db: Pool) -> None:
    assert await cluster.figures(db) == Figures({}, 0, 0, 0, 0.0, {"default": GatewayState.RUNNING})


async def test_what_waits_is_tried_again_or_in_doubt(db: Pool) -> None:
    """One of each state in a running mailing, the same in a paused, a finished, an archived and a deleted one."""
    for status in ("running", "paused", "finished", "finished", "finished"):
        mailing_id = await insert_mailing(db, status, over_for=5 if status == "finished" else None)
        ids = await insert_messages(db, mailing_id, 6)
        await insert_batch(db, mailing_id, range(ids[0], ids[2]), due_in=60)
        await insert_ledger(db, mailing_id, ids[2], ("unavailable", "retrying", "dns"))
        await insert_ledger(db, mailing_id, ids[3], ("unknown", "doubtful", "timeout"))
        await insert_ledger(db, mailing_id, ids[4], ("unknown", "unknown", "timeout"))
        await insert_ledger(db, mailing_id, ids[5], ("accepted", "sent", None))
    await mailings.archive(db, mailing_id - 1, True)
    await mailings.delete(db, mailing_id)
    await insert_mailing(db, "scheduled", starts_in=60, planned=False)
    await gateways.pause(db, "default")
    figures = await cluster.figures(db)
    alive = {MailingStatus.RUNNING: 1, MailingStatus.PAUSED: 1, MailingStatus.SCHEDULED: 1}
    assert (figures.mailings, figures.gateways) == (alive, {"default": GatewayState.PAUSED})
    # Unknown: one of each that is shown; and of the finished one the doubtful one too.
    assert (figures.waiting, figures.retrying, figures.unknown, figures.oldest_due) == (4, 4, 4, 0.0)


async def test_how_long_the_oldest_has_been_due(db: Pool) -> None:
    """Not of what lies outside its hours (due later), is paused or over; also of what somebody has in hand."""
    mailing_id = await insert_mailing(db)
    later = await insert_messages(db, mailing_id, 1)
    await insert_batch(db, mailing_id, range(later[0], later[0] + 1), due_in=3600)
    for status in ("paused", "cancelled"):
        await running(db, 1, status=status)
    await db.execute("UPDATE batches SET due_at = now() - interval '900 s' WHERE due_at < now()")
    assert (await cluster.figures(db)).oldest_due == 0.0

    for seconds in (100, 200):
        due = await insert_messages(db, mailing_id, 1)
        await insert_batch(db, mailing_id, range(due[0], due[0] + 1), due_in=-seconds)
    assert 200 <= (await cluster.figures(db)).oldest_due < 260
    await claim_one(db)
    assert 200 <= (await cluster.figures(db)).oldest_due < 260
    await insert_mailing(db, "scheduled", starts_in=-300, planned=False)
    assert 300 <= (await cluster.figures(db)).oldest_due < 360


async def test_the_figures_cost_what_is_alive_and_not_what_was(db: Pool) -> None:
    """5,000 mailings that are over with 40 counters each, one that runs with 2,000 batches: some rows are read."""
    await db.execute(
        """
        INSERT INTO mailings (starts_at, ends_at, status, planned, over_at, horizon)
        SELECT now() - interval '2 days', now() - interval '1 day', 'finished', true, now(), 0
        FROM generate_series(1, 5000);
        INSERT INTO counters SELECT id, slot, state, 1, now(), now()
        FROM mailings, generate_series(0, 7) slot,
             unnest('{sent,failed,suppressed,delivered,undelivered}'::message_state[]) state;
        """
    )
    mailing_id, _ = await running(db, 1)
    await insert_ledger(db, mailing_id, await db.fetchval("SELECT max(id) FROM messages"), ("unknown", "unknown", "x"))
    await db.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
        SELECT $1, now(), 1000 + n, 1000 + n, 1, 1, 'waiting' FROM generate_series(1, 2000) n
        """,
        mailing_id,
    )
    await db.execute("ANALYZE mailings, counters, batches")
    read = """
        SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
        WHERE relname IN ('mailings', 'counters', 'batches')
    """
    async with db.acquire() as connection, connection.transaction():
        for plan in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET LOCAL plan_cache_mode = {plan}")
            before = await connection.fetchval(read)
            assert (await cluster.figures(connection)).unknown == 1
            assert await connection.fetchval(read) - before < 100, plan
