"""Scenes that several tests of delivery begin with."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any

from notifier.delivery.engine import Engine
from notifier.models import MessageState, Window
from notifier.storage.queue import BATCH_SIZE, Claimed, SendSettings
from tests.conftest import poll_until
from tests.delivery.conftest import World

FIRST = 79000000001


def claimed(batch_id: int, mailing_id: int, *, priority: int = 0, seq: int = 1, size: int = BATCH_SIZE) -> Claimed:
    """Return a batch of a mailing without hours, as a claim gives it; nobody has looked at it yet."""
    now = datetime.now(UTC)
    return Claimed(
        id=batch_id,
        owner=batch_id,
        mailing_id=mailing_id,
        due_at=now,
        seq=seq,
        state=MessageState.WAITING if seq == 1 else MessageState.RETRYING,
        ids=range(size),
        watermark=0,
        done=0,
        foreign_rows=0,
        send_settings=SendSettings(
            version=1, priority=priority, window=None, text="Hi", text_version=1, ends_at=now + timedelta(hours=1)
        ),
    )


def only_first(do: dict[str, Any], **match: Any) -> dict[str, Any]:
    """A rule for the first client's phone."""
    return {"match": {"phone": FIRST, **match}, "do": do}


async def running(world: World, count: int = 300, **options: Any) -> Any:
    """A mailing of which something is sent, and whose rest goes so slowly that it is there for what is done to it."""
    world.simulator.script({"times": 30, "do": {"kind": "delay", "ms": 50}}, latency=400)
    await world.clients(count)
    await world.replica(concurrency=10, timeout=30.0, **options)
    mailing = await world.mailing()

    async def some_sent() -> bool:
        return (await world.counts(mailing)).get("sent", 0) >= 20

    await poll_until(some_sent)
    return mailing


async def last_start(world: World) -> datetime:
    """When the last request was started, by the books: it may take any time to get to the gateway."""
    last: datetime = await world.db.fetchval("SELECT max(started_at) FROM attempts WHERE duration_ms IS NOT NULL")
    return last


def hours_from_now(start: float, end: float) -> Window:
    """A window in UTC that opens ``start`` and closes ``end`` hours from now."""
    now = datetime.now(UTC)
    first, last = now + timedelta(hours=start), now + timedelta(hours=end)
    return Window(time(first.hour, first.minute), time(last.hour, last.minute))


async def started(engine: Engine) -> None:
    """Start what may be started, and return when all of it has come back."""
    await engine.sender.start()
    await poll_until(lambda: not (engine.concurrency.starting or engine.concurrency.inflight))
