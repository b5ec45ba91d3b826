"""The database in trouble: nothing is lost, and nothing counted twice."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import asyncpg
import pytest
import structlog.testing

from notifier import telemetry
from notifier.cluster import detector, loops
from notifier.delivery import feeder, gateway, recorder, scheduler
from notifier.models import Mailing, MessageState, Outcome
from notifier.storage import gateways, ledger, mailings, messages, queue, recording
from tests.conftest import poll_until
from tests.delivery.conftest import World
from tests.delivery.scenes import FIRST


async def test_connections_that_are_cut_lose_nothing(world: World, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detector, "LOST_CLAIM", 1.0)
    await world.clients(1_000)
    world.simulator.script(latency=10)
    await world.replica()
    mailing = await world.mailing()
    watcher = await asyncpg.connect(dsn)

    async def reached(sent: int) -> bool:
        return bool(await watcher.fetchval("SELECT sum(n) >= $1 FROM counters WHERE state = 'sent'", sent))

    async def finished() -> bool:
        return bool(await watcher.fetchval("SELECT status = 'finished' FROM mailings"))

    for step in range(100, 1_000, 100):
        await poll_until(partial(reached, step))
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await poll_until(finished)
    await watcher.close()
    assert len(world.simulator.entries()) == 1_000
    await world.check(mailing)


async def test_a_lost_acknowledgement_counts_nothing_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = recording.record, 0

    async def lose_every_third(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        recorded = await record(*args)
        if calls % 3 == 0:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return recorded

    monkeypatch.setattr(recording, "record", lose_every_third)
    monkeypatch.setattr(loops, "AFTER_ERROR", (0.01, 0.02))
    await world.clients(700)
    world.simulator.script({"match": {"attempt": 1}, "share": 0.3, "do": {"kind": "status", "status": 500}}, latency=5)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=700)
    await world.finished(mailing)
    await world.check(mailing)


async def test_a_result_that_cannot_be_recorded_does_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = gateway.Gateway.send

    async def with_nul(self: Any, message_id: int, phone: int, text: bytes) -> Any:
        answer = await words(self, message_id, phone, text)
        return answer._replace(detail="\x00") if phone == FIRST else answer

    monkeypatch.setattr(gateway.Gateway, "send", with_nul)
    await world.clients(50)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=49, unknown=1)
    await world.finished(mailing)
    assert (await world.messages(mailing))[0].reason == "unrecordable"


async def _refuse(world: World, which: str) -> None:
    """Have a trigger, as an owner of the database may add one, refuse these rows of the ledger."""
    await world.db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$"
    )
    await world.db.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT ON attempts FOR EACH ROW WHEN ({which}) EXECUTE FUNCTION refuse()"
    )


@pytest.fixture
def quiet() -> Iterator[None]:
    """Tracebacks are not drawn: a hundred of them take longer than the test."""
    with structlog.testing.capture_logs():
        yield


async def _planned_but_not_sent(world: World, count: int) -> tuple[Mailing, int]:
    """A mailing whose gateway is paused, and the number of its message in the middle."""
    await world.clients(count)
    await gateways.pause(world.db, "default")
    mailing = await world.mailing()
    await world.until(mailing, waiting=count)
    return mailing, (await world.messages(mailing))[count // 2].id


@pytest.mark.usefixtures("quiet")
async def test_a_row_that_a_trigger_refuses_does_not_hold_up_the_others(world: World) -> None:
    await world.replica()
    mailing, culprit = await _planned_but_not_sent(world, 50)
    await _refuse(world, f"NEW.message_id = {culprit} AND NEW.reason IS DISTINCT FROM 'unrecordable'")
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=49, unknown=1)
    await world.finished(mailing)
    assert (await messages.get(world.db, culprit)).reason == "unrecordable"


@pytest.mark.usefixtures("quiet")
async def test_a_message_of_which_nothing_can_be_recorded_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "STUCK_AFTER", 0.2)
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    await world.replica()
    mailing, culprit = await _planned_but_not_sent(world, 50)
    await _refuse(world, f"NEW.message_id = {culprit}")
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=49, sending=1)
    owner = "SELECT owner FROM batches WHERE mailing_id = $1"
    before = await world.db.fetchval(owner, mailing.id)

    async def taken_over() -> bool:
        return bool(await world.db.fetchval(owner, mailing.id) != before)

    await poll_until(taken_over)
    after = await world.mailing()
    await world.until(after, sent=50)
    await world.finished(after)
    assert [entry.id for entry in world.simulator.entries()].count(culprit) == 1
    await world.db.execute("DROP TRIGGER refuse ON attempts")
    await world.until(mailing, sent=50)
    await world.finished(mailing)


@pytest.mark.usefixtures("quiet")
async def test_nothing_starts_any_more_when_no_result_at_all_can_be_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "GIVEN_UP", 1)
    monkeypatch.setattr(feeder, "AHEAD", 2)
    await world.replica(concurrency=2)
    await _planned_but_not_sent(world, 100)
    await _refuse(world, "true")
    await gateways.resume(world.db, "default")
    errors = partial(telemetry.REGISTRY.get_sample_value, "notifier_loop_errors_total", {"loop": "recorder"})
    before = errors() or 0
    await poll_until(lambda: (errors() or 0) > before)
    assert len(world.simulator.entries()) < 50


async def test_a_load_that_is_older_than_a_late_row_is_thrown_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads, record, records = queue.load, 0, recording.record, 0

    async def counted(*args: Any) -> Any:
        nonlocal records
        recorded = await record(*args)
        records += 1
        return recorded

    async def then_comes_a_late_row(db: Any, ids: Any, seqs: Any) -> Any:
        nonlocal loads
        rows = await load(db, ids, seqs)
        loads += 1
        if loads == 1:
            accepted = recording.Result(
                batch_id=0,
                message_id=ids[0],
                outcome=Outcome.ACCEPTED,
                state=MessageState.SENT,
                started_at=await mailings.clock(db),
                duration_ms=1,
                phone=FIRST,
                text_version=1,
                status_code=200,
                reason=None,
                detail=None,
                due_at=None,
            )
            assert await ledger.append_late(db, 77, accepted)
            before = records
            await poll_until(lambda: records > before + 1)
        return rows

    monkeypatch.setattr(queue, "load", then_comes_a_late_row)
    monkeypatch.setattr(recording, "record", counted)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3)
    await world.finished(mailing)
    assert len(world.simulator.entries()) == 2


def test_a_bisected_flush_may_have_lost_a_batch() -> None:
    nothing: Any = None
    lost = recording.Recorded(1, False, *[nothing] * 8)
    assert recorder._merge([lost], [lost]) == [lost._replace(written=0)]
