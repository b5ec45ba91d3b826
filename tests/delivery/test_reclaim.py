"""Several replicas, their deaths, and who goes on with their batches."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from notifier.cluster import control, detector
from notifier.delivery import feeder, reclaim, scheduler
from notifier.models import OnUnknown
from notifier.storage import queue, recording, replicas
from tests.conftest import poll_until
from tests.delivery.conftest import World, cut_control_connections
from tests.delivery.scenes import running


async def test_two_replicas_share_a_mailing(world: World) -> None:
    await world.clients(3_000)
    world.simulator.script(latency=20)
    await world.replica()
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3_000)
    entries = world.simulator.entries()
    assert len({entry.phone for entry in entries}) == len(entries) == 3_000
    shares = await world.db.fetch("SELECT replica, count(*) AS n FROM attempts GROUP BY 1")
    assert len(shares) == 2
    assert min(row["n"] for row in shares) > 500
    await world.check(mailing)


@pytest.fixture
def quick_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and patience in tenths."""
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(detector, "DEAD_AFTER", 1.5)


@pytest.mark.usefixtures("quick_death")
@pytest.mark.parametrize("policy", [OnUnknown.RETRY, OnUnknown.HOLD])
async def test_a_dead_replicas_work_is_taken_over(world: World, policy: OnUnknown) -> None:
    mailing = await running(world, on_unknown=policy)
    (victim,) = world.schedulers
    # between two watermarks nothing may be under way for a moment
    await poll_until(lambda: victim.engine is not None and victim.engine.concurrency.inflight)
    await world.kill(victim)
    doubtful = await world.db.fetchval("SELECT sum(watermark - done) FROM batches WHERE owner IS NOT NULL")
    assert 0 < doubtful <= 10 + feeder.AHEAD
    world.simulator.script()
    await world.replica(on_unknown=policy)
    await world.finished(mailing)
    outcomes = await world.outcomes(mailing)
    assert 0 < outcomes["interrupted"] <= 10 + feeder.AHEAD
    counts = await world.counts(mailing)
    if policy is OnUnknown.RETRY:
        assert counts == {"sent": 300}
    else:
        assert counts["unknown"] == outcomes["interrupted"]
        assert counts["unknown"] + counts["sent"] == 300
    await world.check(mailing)


async def test_a_late_acceptance_cancels_the_retry(world: World) -> None:
    # the batch is taken over while its request is under way; then the answer comes
    await world.clients(1)
    world.simulator.script(latency=2_000)
    await world.replica(concurrency=1, timeout=30)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"] == 1)
    (batch,) = await queue.reclaim(world.db, 1_000, await queue.owned(world.db))
    await reclaim.settle(world.db, 1_000, [batch], OnUnknown.RETRY, 10)
    await world.until(mailing, retrying=1)
    await world.until(mailing, sent=1)
    (message,) = await world.messages(mailing)
    assert [(a.outcome, a.reason) for a in message.timeline] == [("interrupted", "interrupted"), ("accepted", "late")]
    await world.db.execute("UPDATE batches SET due_at = now()")  # the retry's time has come: there is nothing to do
    await world.finished(mailing)
    assert len(world.simulator.entries()) == 1
    await world.check(mailing)


async def test_a_late_refusal_goes_into_the_books_and_on(world: World) -> None:
    await world.clients(1)
    world.simulator.script(
        {"match": {"attempt": 1}, "do": {"kind": "code", "code": 5, "message": "busy"}}, latency=2_000
    )
    await world.replica(concurrency=1, timeout=30)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"] == 1)
    (batch,) = await queue.reclaim(world.db, 1_000, await queue.owned(world.db))
    await reclaim.settle(world.db, 1_000, [batch], OnUnknown.RETRY, 10)
    await world.until(mailing, sent=1)
    await world.db.execute("UPDATE batches SET due_at = now()")
    await world.finished(mailing)
    (message,) = await world.messages(mailing)
    assert [a.outcome for a in message.timeline] == ["interrupted", "declined", "accepted"]
    await world.check(mailing)


async def test_stop_finishes_what_is_in_flight_and_gives_the_rest_back(world: World) -> None:
    mailing = await running(world)
    seen = len(world.simulator.entries())
    await poll_until(lambda: len(world.simulator.entries()) >= seen + 10)
    await world.stop(world.schedulers[0], 30)
    world.simulator.script()
    counts = await world.counts(mailing)
    assert counts.keys() == {"sent", "waiting"}
    assert (await world.outcomes(mailing))["unknown"] == 0
    assert await world.db.fetchval("SELECT count(*) FROM replicas") == 0
    await world.replica()
    await world.until(mailing, sent=300)
    await world.check(mailing)


async def test_a_batch_without_progress_is_taken_from_whoever_owns_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(scheduler, "STUCK_AFTER", -0.5)  # timeout 1 s: stuck after half a second
    await world.clients(1)
    first = await world.replica(concurrency=1)
    # a claim that its owner knows nothing of: as if it had died between claim and load
    mailing = await world.mailing(starts_at=datetime.now(UTC) + timedelta(seconds=0.2))
    monkeypatch.setattr(queue, "claim", _claim_and_forget(queue.claim))
    await world.until(mailing, sent=1)
    await world.finished(mailing)
    assert first.replica == await world.db.fetchval("SELECT replica FROM attempts WHERE outcome = 'accepted'")


async def test_nobody_is_taken_over_while_nothing_can_be_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a full disk: the ledger cannot grow, while rows that are there can be updated in their place
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(scheduler, "STUCK_AFTER", -29.5)  # timeout 30 s: stuck after half a second
    tried: list[int] = []
    settle = reclaim.settle

    async def spied(db: Any, replica: int, batches: Any, *args: Any) -> None:
        tried.append(replica)
        await settle(db, replica, batches, *args)

    monkeypatch.setattr(reclaim, "settle", spied)
    await world.clients(200)
    first = await world.replica(concurrency=10, timeout=30)
    second = await world.replica(concurrency=10, timeout=30)
    world.simulator.script(latency=300)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"])
    await world.db.execute(
        """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON attempts EXECUTE FUNCTION full_disk()
        """
    )
    await poll_until(lambda: {first.replica, second.replica} <= set(tried))
    monkeypatch.setattr(scheduler, "STUCK_AFTER", 1_000.0)
    before = await world.db.fetch("SELECT beat FROM replicas ORDER BY id")

    async def both_looked_again() -> bool:  # half a second still counted for stuck with a look that was under way
        beats = await world.db.fetch("SELECT beat FROM replicas ORDER BY id")
        return all(now["beat"] >= then["beat"] + 2 for then, now in zip(before, beats, strict=True))

    await poll_until(both_looked_again)
    await world.db.execute("DROP TRIGGER full_disk ON attempts")
    world.simulator.script(latency=0)
    await world.finished(mailing)
    assert await world.outcomes(mailing) == {"accepted": 200}
    assert len(world.simulator.entries()) == 200
    await world.check(mailing)


def _claim_and_forget(claim: Any) -> Any:
    forgotten = False

    async def once(*args: Any, **kwargs: Any) -> Any:
        nonlocal forgotten
        claimed = await claim(*args, **kwargs)
        if claimed and not forgotten:
            forgotten = True
            return []
        return claimed

    return once


async def test_a_take_over_ends_a_batch_whose_done_is_short(world: World) -> None:
    await world.clients(5)
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=5)
    (batch,) = await queue.claim(world.db, 999, after=0)
    await recording.record(world.db, 999, [recording.BatchReport(batch.id, batch.owner, 0, 5, 0, 0, False)], [])
    await world.db.execute(
        "INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq) "
        "SELECT id, mailing_id, now(), 'accepted', 'sent', 1 FROM messages"
    )
    (reclaimed,) = await queue.reclaim(world.db, 1_000, await queue.owned(world.db))
    await reclaim.settle(world.db, 1_000, [reclaimed], OnUnknown.RETRY, 1)
    assert await world.db.fetchval("SELECT count(*) FROM batches") == 0
    assert mailing.audience == 0


async def test_a_killed_replicas_work_is_taken_over_long_before_its_heartbeat_is_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "TRUSTED_AFTER", 0.0)
    monkeypatch.setattr(detector, "DEAD_AFTER", 1_000.0)
    world.simulator.script(latency=50)
    await world.clients(300)
    victim = await world.replica(concurrency=10)

    async def holds_its_lock() -> bool:
        return bool(await world.db.fetchval("SELECT bool_and(session) FROM replicas"))

    await poll_until(holds_its_lock)
    mailing = await world.mailing()
    await poll_until(lambda: victim.engine is not None and victim.engine.concurrency.inflight)
    await world.replica(concurrency=10)
    await world.kill(victim)
    await world.finished(mailing)
    assert await world.counts(mailing) == {"sent": 300}
    assert (await world.outcomes(mailing))["interrupted"] > 0
    await world.check(mailing)


async def test_a_lost_control_connection_is_told_before_others_can_see_a_death_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BEAT", 1_000.0)
    replica = await world.replica()

    async def says_so() -> bool:
        return bool(await world.db.fetchval("SELECT session FROM replicas WHERE id = $1", replica.replica))

    async def does_not_say_so() -> bool:
        return not await says_so()

    await poll_until(says_so)
    async with world.db.acquire() as connection:

        async def taken_away() -> bool:
            await cut_control_connections(connection)
            return await replicas.lock(connection, replica.replica)

        await poll_until(taken_away)
        await poll_until(does_not_say_so)
        await connection.execute("SELECT pg_advisory_unlock_all()")
    await poll_until(says_so)
