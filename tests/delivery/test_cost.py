"""What the engine asks of the database for a batch: so many statements, whatever the machine's speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from notifier.delivery import sender
from notifier.delivery.planner import Planner
from notifier.storage import audience, queue
from notifier.storage.database import Pool
from tests.conftest import poll_until
from tests.delivery.conftest import World

BATCHES = 6


class Counting:
    """A database that counts the statements it is told, by what they begin with."""

    def __init__(self, db: Pool) -> None:
        self._db = db
        self.statements: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        assert name in ("fetch", "fetchrow", "fetchval", "execute"), f"{name} is not counted"
        say = getattr(self._db, name)

        def counted(sql: str, *given: Any) -> Any:
            self.statements[" ".join(sql.split())[:40]] += 1
            return say(sql, *given)

        return counted


async def test_a_batch_costs_a_few_statements(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """3,000 messages, six batches, the loops' polls made by hand: a claim each, a load and a record per stride."""
    monkeypatch.setattr(sender, "LOOK_AROUND", 3600)  # the only statements that come with time
    await world.clients(BATCHES * queue.BATCH_SIZE)
    engine = await world.replica(concurrency=sender.STRIDE)
    for loop in engine._loops.values():
        await loop.stop()
    mailing = await world.mailing()
    await audience.begin_due(world.db)
    planner = Planner(world.db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)
    while await audience.unplanned(world.db):
        await planner.poll()

    sending, recorder = engine.sender, engine._recorder
    assert sending is not None
    assert recorder is not None
    counting = Counting(world.db)
    monkeypatch.setattr(sending, "_db", counting)
    monkeypatch.setattr(recorder, "_db", counting)

    async def step() -> bool:
        await sending.limits.poll()
        await sending.feed()
        await recorder.poll()
        await poll_until(lambda: not (sending._starting or sending.inflight or sending.ready))
        return not await world.db.fetchval("SELECT EXISTS (SELECT FROM batches)")

    await poll_until(step)

    strides = BATCHES * queue.BATCH_SIZE // sender.STRIDE
    claims, loads, records = (
        sum(n for said, n in counting.statements.items() if said.startswith(begin))
        for begin in ("WITH turn", "SELECT t.id, c.phone", "WITH given")
    )
    assert loads <= strides
    assert records <= loads + BATCHES
    assert claims <= 2 * BATCHES
    assert counting.statements.total() - claims - loads - records <= BATCHES, counting.statements
    await world.until(mailing, sent=BATCHES * queue.BATCH_SIZE)
