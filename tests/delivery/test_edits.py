"""Pause, cancel, end, windows and edits of a mailing that runs."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import structlog.testing

from notifier.errors import Conflict
from notifier.models import Filter, Status
from notifier.storage import gateways, ledger, mailings, messages, queue
from tests.conftest import poll_until
from tests.delivery.conftest import World
from tests.delivery.scenes import hours_from_now, last_start, running


@pytest.mark.parametrize(("verb", "status"), [("cancel", "cancelled"), ("pause", "waiting")])
async def test_pause_and_cancel_take_effect_within_a_second(world: World, verb: str, status: str) -> None:
    mailing = await running(world)
    answered = await mailings.act(world.db, mailing.id, verb)
    assert answered.status in ("cancelled", "paused")

    async def nothing_sending() -> bool:
        return "sending" not in await world.counts(mailing)

    await poll_until(nothing_sending)
    counts = await world.counts(mailing)
    assert counts.keys() == {"sent", status}
    assert await last_start(world) <= answered.updated_at + timedelta(seconds=1)
    await world.check(mailing)
    if verb == "cancel":  # those that were marked, which have a ledger row, and those that were not
        found, _ = await messages.of_mailing(world.db, mailing.id, Status.CANCELLED, None, 300)
        assert {message.reason for message in found} == {"cancelled"}
    if verb == "pause":
        world.simulator.script()
        await mailings.act(world.db, mailing.id, "resume")
        await world.until(mailing, sent=300)
        await world.check(mailing)


async def test_what_is_not_sent_at_the_end_expires(world: World) -> None:
    mailing = await running(world)
    ends_at = datetime.now(UTC) + timedelta(seconds=1)
    await mailings.edit(world.db, mailing.id, {"ends_at": ends_at})
    await world.finished(mailing)

    async def settled() -> bool:
        return "sending" not in await world.counts(mailing)

    await poll_until(settled)
    assert (await world.counts(mailing)).keys() == {"sent", "expired"}
    assert await last_start(world) < ends_at + timedelta(seconds=0.01)


async def test_a_message_in_doubt_at_the_end_is_unknown(world: World) -> None:
    await world.clients(1)
    world.simulator.script({"do": {"kind": "status", "status": 500}})
    await world.replica()
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.entries())
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await mailings.edit(world.db, mailing.id, {"ends_at": datetime.now(UTC) + timedelta(seconds=1)})
    await world.finished(mailing)
    await world.until(mailing, unknown=1)
    (message,) = await world.messages(mailing)
    with pytest.raises(Conflict):
        await ledger.resolve(world.db, message.id, "again")
    await ledger.resolve(world.db, message.id, "sent")
    await world.until(mailing, sent=1)


async def test_an_edit_reaches_what_is_not_sent_yet(world: World) -> None:
    mailing = await running(world)
    await mailings.edit(world.db, mailing.id, {"text": "Новый текст", "priority": 3})
    world.simulator.script()
    await world.until(mailing, sent=300)
    entries = sorted(world.simulator.entries(), key=lambda entry: entry.at)
    texts = [entry.text for entry in entries]
    assert texts[0] == "Здравствуйте!"
    assert texts[-1] == "Новый текст"
    assert texts.index("Новый текст") >= 20
    versions = await world.db.fetch("SELECT DISTINCT text_version FROM attempts ORDER BY 1")
    assert [row[0] for row in versions] == [1, 2]


async def test_outside_its_window_nobody_is_texted_and_an_edit_opens_it(world: World) -> None:
    await world.clients(5, timezone="UTC")
    await world.clients(5, timezone="Asia/Tokyo", first=6)  # nine hours ahead: closed when it is open here
    await world.replica()
    mailing = await world.mailing(window=hours_from_now(-2, 2))
    await world.until(mailing, sent=5, waiting=5)
    assert {entry.phone for entry in world.simulator.entries()} == {79000000000 + i for i in range(1, 6)}
    waiting, _ = await messages.of_mailing(world.db, mailing.id, Status.WAITING, None, 10)
    assert all(m.next_attempt_at and m.next_attempt_at > datetime.now(UTC) for m in waiting)
    await mailings.edit(world.db, mailing.id, {"window": None})
    await world.until(mailing, sent=10)
    await world.check(mailing)


async def test_batches_whose_window_has_closed_are_sorted_again(world: World) -> None:
    # planned while everything was open, claimed when it is not
    await world.clients(700, timezone="UTC")
    await world.clients(5, timezone="Asia/Tokyo", first=701)
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=705)
    await mailings.edit(world.db, mailing.id, {"window": hours_from_now(7, 11)})  # open in Tokyo, closed here
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=5, waiting=700)

    async def rescheduled() -> bool:
        return not await world.db.fetchval("SELECT count(*) FROM batches WHERE due_at < now()")

    await poll_until(rescheduled)
    assert await world.db.fetchval("SELECT count(*) FROM batches") == 2  # and not a handful in each
    await world.check(mailing)


async def test_a_window_that_is_opened_while_a_batch_is_sorted_opens_all_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the word comes between the sender's look at the old window and its sorting by it
    reschedule, opened = queue.reschedule, asyncio.Event()

    async def meanwhile(*args: Any, **given: Any) -> bool:
        if not opened.is_set():
            opened.set()
            await mailings.edit(world.db, mailing.id, {"window": None})
        return await reschedule(*args, **given)

    monkeypatch.setattr(queue, "reschedule", meanwhile)
    await world.clients(5, timezone="UTC")
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=5)
    await mailings.edit(world.db, mailing.id, {"window": hours_from_now(2, 4)})  # planned while it was open
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=5)
    assert opened.is_set()
    await world.check(mailing)


async def test_a_small_urgent_mailing_passes_a_large_one(world: World) -> None:
    mailing = await running(world, 2_000)
    await world.db.execute("INSERT INTO clients (phone, operator_code, tags) VALUES (79990000000, '999', '{urgent}')")
    before = len(world.simulator.entries())
    urgent = await world.mailing(filter=Filter(tags=["urgent"]), priority=10)
    await world.until(urgent, sent=1)
    place = [entry.phone for entry in world.simulator.entries()].index(79990000000)
    assert place - before < 200  # of 2,000; the replica has up to 90 under its watermarks
    assert await world.status(mailing) == "running"


async def test_a_zone_that_is_not_known_is_named_and_the_default_is_used(world: World) -> None:
    """Rows written by hand, or by a replica with newer zone data: nobody is lost, and the log counts them."""
    await world.clients(3, timezone="Europe/Nowhere")
    await world.clients(2, timezone="Europe", first=10)  # a folder of the zone data
    await world.clients(1, timezone="Europe/Moscow", first=20)
    with structlog.testing.capture_logs() as entries:
        await world.replica()
        await world.until(await world.mailing(window=hours_from_now(-2, 6)), sent=6)
        await poll_until(lambda: len([each for each in entries if "DEFAULT_TIMEZONE" in each["event"]]) == 2)
    named = {each["timezone"]: each["clients"] for each in entries if "DEFAULT_TIMEZONE" in each["event"]}
    assert named == {"Europe/Nowhere": 3, "Europe": 2}
