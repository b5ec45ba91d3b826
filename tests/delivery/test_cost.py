"""What the engine asks of the database for a batch: so many statements, whatever the machine's speed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from notifier.delivery import feeder
from notifier.delivery.held import CHUNK
from notifier.storage import queue
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
    """3,000 messages, six batches, the loops' polls made by hand: a claim each, a load and a record per chunk."""
    monkeypatch.setattr(feeder, "LOOK_AROUND", 3600)  # the only statements that come with time
    await world.clients(BATCHES * queue.BATCH_SIZE)
    mailing = await world.mailing()
    await world.planned()
    counting = Counting(world.db)
    engine = await world.engine(counting, concurrency=CHUNK)
    await engine.limits.poll()
    counting.statements.clear()

    async def step() -> bool:
        await engine.feeder.poll()
        await engine.recorder.poll()
        await engine.sender.start()
        await poll_until(lambda: not (engine.concurrency.starting or engine.concurrency.inflight or engine.line))
        return not await world.db.fetchval("SELECT EXISTS (SELECT FROM batches)")

    await poll_until(step)

    chunks = BATCHES * queue.BATCH_SIZE // CHUNK
    claims, loads, records = (
        sum(n for said, n in counting.statements.items() if said.startswith(begin))
        for begin in ("WITH turn", "SELECT t.id, c.phone", "WITH given")
    )
    assert loads <= chunks
    assert records <= loads + BATCHES
    assert claims <= 2 * BATCHES
    assert counting.statements.total() - claims - loads - records <= BATCHES, counting.statements
    await world.until(mailing, sent=BATCHES * queue.BATCH_SIZE)
