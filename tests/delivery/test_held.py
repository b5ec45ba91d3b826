"""Batches in hand: what is loaded next, and when a record is asked for."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from notifier.delivery import recorder
from notifier.delivery.held import CHUNK, HeldBatches
from notifier.models import MailingStatus
from notifier.storage import queue, recording
from notifier.storage.queue import BATCH_SIZE, Loaded
from notifier.storage.recording import Recorded
from tests.delivery.conftest import World
from tests.delivery.scenes import claimed

NOW = datetime.now(UTC)


@pytest.fixture
def held() -> HeldBatches:
    return HeldBatches(ZoneInfo("UTC"))


def hold(held: HeldBatches, mailing_id: int, **given: int) -> int:
    """Take a batch in hand that nobody has looked at yet; return its number."""
    batch_id = max((batch.id for batch in held), default=0) + 1
    return held.add(claimed(batch_id, mailing_id, **given)).id


def loaded(held: HeldBatches, room: int) -> list[tuple[int, int]]:
    """Load what is next; return (batch, how many of it)."""
    chunks = held.next_chunks(room)
    for chunk in chunks:
        assert chunk.batch.takes(chunk)
        chunk.batch.stage([Loaded(i, 79_000_000_001, None, False, 0, 0, 0) for i in range(chunk.start, chunk.end)])
    return [(chunk.batch.id, chunk.end - chunk.start) for chunk in chunks]


def test_one_batch_of_a_mailing_is_loaded_after_the_other(held: HeldBatches) -> None:
    first, second = hold(held, 1), hold(held, 1)
    assert loaded(held, 400) == [(first, 400)]
    assert loaded(held, 300) == [(first, 100), (second, 200)]


def test_retries_of_a_mailing_come_before_its_first_tries(held: HeldBatches) -> None:
    first, retry = hold(held, 1), hold(held, 1, seq=2, size=5)
    assert loaded(held, 50) == [(retry, 5), (first, 45)]


def test_mailings_take_turns_and_share_the_room(held: HeldBatches) -> None:
    first, second = hold(held, 1), hold(held, 2)
    assert loaded(held, 30) == [(first, 30)]
    assert loaded(held, 30) == [(second, 30)]
    assert loaded(held, CHUNK + 20) == [(first, CHUNK), (second, 20)]
    assert loaded(held, 4 * CHUNK) == [(first, 2 * CHUNK), (second, 2 * CHUNK)]


def test_a_higher_priority_has_all_the_room(held: HeldBatches) -> None:
    low, urgent = hold(held, 1), hold(held, 2, priority=1, size=20)
    assert loaded(held, 100) == [(urgent, 20)]
    assert loaded(held, 100) == [(low, 100)]


def test_what_somebody_wrote_a_row_for_meanwhile_is_loaded_again(held: HeldBatches) -> None:
    """The record between the load and its answer found a row of another writer."""
    number = hold(held, 1)
    (chunk,) = held.next_chunks(10)
    row = Recorded(number, True, 0, 1, False, 0, MailingStatus.RUNNING, 1, NOW, NOW)
    assert chunk.batch.heard(row) == []
    assert not chunk.batch.takes(chunk)
    (again,) = held.next_chunks(10)
    assert again.batch.takes(again)


async def test_a_record_is_made_at_once_for_what_is_more_urgent(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plenty may be started, and nothing else asks for a record; then a mailing of higher priority is loaded."""
    monkeypatch.setattr(recorder, "HEARTBEAT", 1_000.0)
    engine = await world.marked(40, concurrency=200)
    records: list[int] = []
    record = recording.record

    async def noted(db: Any, replica: int, reports: Any, results: Any) -> Any:
        records.append(len(reports))
        return await record(db, replica, reports, results)

    monkeypatch.setattr(recording, "record", noted)
    await engine.recorder.poll()
    assert records == []
    await world.mailing(priority=1)
    await world.planned()
    engine.look()
    await engine.feeder.poll()
    await engine.recorder.poll()
    assert records == [2]
    assert engine.line.top_priority == 1


async def test_news_has_the_queue_asked_though_there_is_enough_in_hand(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is in hand and was just looked for; another is claimed only once there is news."""
    await world.clients(BATCH_SIZE * 3)
    await world.mailing()
    await world.planned()
    engine = await world.engine(concurrency=CHUNK)
    await engine.limits.poll()

    async def fed() -> None:
        await engine.feeder.poll()
        await engine.recorder.poll()
        engine.line.leave_older(float("inf"))

    await fed()
    await fed()
    claims: list[int] = []
    claim = queue.claim

    async def noted(*given: Any, **more: Any) -> Any:
        claims.append(1)
        return await claim(*given, **more)

    monkeypatch.setattr(queue, "claim", noted)
    monkeypatch.setattr("notifier.delivery.feeder.LOOK_AROUND", 1_000.0)
    await fed()
    assert claims == []
    engine.look()
    await fed()
    assert claims
