"""Does a claim cost the same however long the queue is: pages touched by the claim of a batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import orjson
import uvloop

from bench import fill
from bench.throughput import Row
from notifier.storage import queue
from notifier.storage.database import Db, create_pool

CLAIMS = 60  # one after the other: each leaves a dead entry at the front of the queue
TARGET = 3  # buffers more


class Explaining:
    """Runs what it is told under EXPLAIN, and keeps the buffers that it touched."""

    def __init__(self, db: Db) -> None:
        self._db = db
        self.buffers: list[int] = []

    async def fetch(self, sql: str, *given: Any) -> list[Any]:
        plan = orjson.loads(await self._db.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {sql}", *given))[0]
        self.buffers.append(plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"])
        return []


async def buffers(dsn: str) -> int:
    """The median of the buffers that the claims of single batches touch."""
    db = await create_pool(dsn, size=1, application_name="bench")
    explaining = Explaining(db)
    for _ in range(CLAIMS):
        await queue.claim(explaining, 1, after=0)  # type: ignore[arg-type]
    claimed = await db.fetchval("SELECT count(*) FROM batches WHERE owner IS NOT NULL")
    await db.close()
    assert claimed == CLAIMS, claimed
    return sorted(explaining.buffers)[CLAIMS // 2]


def rows(url: str) -> Iterator[Row]:
    """Yield the row of the table."""
    with fill.two_databases() as databases:
        found = []
        for dsn, size in zip(databases, (fill.SMALL, fill.LARGE), strict=True):
            fill.clients(dsn, size)
            fill.mailings(dsn, size)
            found.append(uvloop.run(buffers(dsn)))
    small, large = found
    question = f"buffers of a claim, {fill.LARGE:,} waiting of {fill.SMALL:,}"
    yield question, str(large), str(small), f"{large - small:+}", f"+{TARGET}", large - small <= TARGET
