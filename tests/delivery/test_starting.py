"""What must hold before a request starts."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from time import monotonic
from typing import Any

import pytest

from notifier.delivery import gateway, limits, snapshot
from notifier.models import MailingStatus, Outcome
from notifier.storage import queue, recording
from notifier.storage.installation import Hold
from tests.conftest import poll_until
from tests.delivery.conftest import World
from tests.delivery.scenes import FIRST, hours_from_now, started


async def test_an_exception_of_our_own_is_one_messages_bad_luck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send = gateway.Gateway.send

    async def raises(self: Any, message_id: int, phone: int, text: bytes) -> Any:
        if phone == FIRST:
            raise RuntimeError("a bug")
        return await send(self, message_id, phone, text)

    monkeypatch.setattr(gateway.Gateway, "send", raises)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=2, unknown=1)
    assert (await world.messages(mailing))[0].reason == "internal_error"


async def test_a_stale_record_starts_nothing(world: World) -> None:
    """As after a SIGSTOP: the process wakes with marked messages and an old record."""
    engine = await world.marked(5)
    engine.line.renew(monotonic() - 1.1)
    await started(engine)
    assert (len(engine.line), len(engine.outbox), world.simulator.entries()) == (5, 0, [])


async def test_a_record_counts_as_heard_when_its_news_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record says that the mailing was edited, and then the database is away: nothing starts with the old text."""
    engine = await world.marked(5)
    (batch,) = engine.held
    before, ends_at = engine.line.renewed_at, datetime.fromtimestamp(batch.mailing.ends_at, UTC)
    edited = recording.Recorded(batch.id, True, batch.watermark, batch.foreign_rows, False, 0, MailingStatus.RUNNING,
                            batch.mailing.version + 1, ends_at, datetime.now(UTC))  # fmt: skip

    async def away(*_: Any) -> Any:
        raise OSError("away")

    with monkeypatch.context() as patched:
        patched.setattr(queue, "send_settings", away)
        with pytest.raises(OSError, match="away"):
            await engine.recorder.settle([edited], before + 1)
    assert engine.line.renewed_at == before
    await engine.recorder.settle([edited], before + 1)
    assert engine.line.renewed_at == before + 1


async def test_nothing_starts_before_its_watermark_is_committed(world: World) -> None:
    """Loaded and staged, messages wait for the record; after it they are sent."""
    engine = await world.loaded(50)
    await started(engine)
    assert (len(engine.line), len(engine.outbox), world.simulator.entries()) == (0, 0, [])
    await engine.recorder.poll()
    await started(engine)
    assert len(engine.outbox) == len(world.simulator.entries()) == 50


async def test_the_books_say_when_the_last_look_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # a clock read once more says that what was allowed in the last moment started after the end
    take = limits.Limits.take
    looks: list[datetime] = []

    def take_slowly(self: Any, now: float) -> limits.Permit | None:
        looks.append(datetime.fromtimestamp(self._clock.latest(now), UTC))
        while monotonic() < now + 0.001:
            pass
        return take(self, now)

    monkeypatch.setattr(limits.Limits, "take", take_slowly)
    await world.clients(1)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=1)
    assert await world.db.fetchval("SELECT started_at FROM attempts") in looks


@pytest.mark.parametrize("closed", ["window", "end"])
async def test_a_last_look_before_each_start(world: World, closed: str) -> None:
    """Marked and lined up, and then the window closes, or the mailing ends, before a connection is free."""
    engine = await world.marked(5)
    (batch,) = engine.held
    settings = await queue.send_settings(world.db, batch.mailing.id)
    assert settings is not None
    over = {"window": hours_from_now(2, 4)} if closed == "window" else {"ends_at": datetime.now(UTC)}
    batch.mailing.update(settings._replace(**over))
    await started(engine)
    given_back = [result for _, result in engine.outbox.take()]
    assert {result.outcome for result in given_back} == {Outcome.NOT_STARTED}
    # due at once: whoever loads them sorts them by the window that holds then
    assert {(r.reason, r.due_at and r.due_at <= datetime.now(UTC)) for r in given_back} == {
        ("window" if closed == "window" else "ended", True)
    }
    assert (len(engine.line), len(given_back), world.simulator.entries()) == (0, 5, [])


async def test_pause_all_sends_nothing(world: World) -> None:
    await world.clients(3)
    await world.replica(pause_all=True)
    mailing = await world.mailing()
    await world.until(mailing, waiting=3)
    await asyncio.sleep(0.2)
    assert world.simulator.entries() == []


async def test_a_copy_of_the_database_sends_nothing_until_it_is_released(world: World) -> None:
    await Hold(world.db, "production").begin()
    hold = Hold(world.db, "staging")
    assert await hold.begin()
    await world.clients(3)
    scheduler = await world.replica(hold=hold)
    mailing = await world.mailing()
    await world.until(mailing, waiting=3)
    assert scheduler.engine is None
    assert world.simulator.entries() == []
    await Hold(world.db, "staging").release()
    await world.until(mailing, sent=3)


async def test_an_error_while_learning_from_an_answer_loses_no_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, calls = limits.Limits.note, 0

    def fails_once(self: limits.Limits, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return note(self, *args, **kwargs)

    monkeypatch.setattr(limits.Limits, "note", fails_once)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3)


async def test_an_error_in_the_last_look_holds_up_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    may_text, start = snapshot.MailingSnapshot.may_text, monotonic()

    def fails(self: snapshot.MailingSnapshot, zone: str | None, at: float) -> bool:
        if zone == "Asia/Tokyo" and monotonic() - start < 3_600:
            raise RuntimeError("a bug")
        return may_text(self, zone, at)

    monkeypatch.setattr(snapshot.MailingSnapshot, "may_text", fails)
    await world.clients(1, timezone="Asia/Tokyo")
    await world.clients(3, first=2)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3, waiting=1)
    assert (await world.messages(mailing))[0].reason == "internal_error"


async def test_messages_of_a_lost_batch_leave_the_line(world: World) -> None:
    """Others have reclaimed what is lined up, while a pause forbids every start: nothing else would take them out."""
    engine = await world.marked(40)
    assert await queue.reclaim(world.db, 999, await queue.owned(world.db))

    async def told() -> bool:
        await engine.recorder.poll()
        return not engine.held

    await poll_until(told)
    assert len(engine.line) == 0


async def test_a_probe_that_ends_without_an_answer_may_be_tried_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails is ours: what an answer teaches."""
    engine = await world.marked(1)
    forgotten: list[int] = []
    (send,) = engine.line.leave_older(float("inf"))
    engine.line.append([send], monotonic())
    monkeypatch.setattr(limits.Limits, "take", lambda *_: limits.Permit.PROBE)
    monkeypatch.setattr(limits.Limits, "forget_probe", lambda _: forgotten.append(1))

    def fails(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a bug")

    monkeypatch.setattr(limits.Limits, "note", fails)
    await started(engine)
    assert forgotten == [1]
    assert [result.reason for _, result in engine.outbox.take()] == ["internal_error"]
