"""How soon an urgent small mailing is on the wire beside a large one that takes all there is."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from statistics import median

import uvloop

from bench import fill
from bench.throughput import Row, a_database, create
from bench.waiting import sending, sent
from notifier.storage import mailings
from notifier.storage.database import create_pool

WAITING = 1_000_000 if os.environ.get("FULL") else 200_000
URGENT = 20  # mailings
CLIENTS = 20  # of each, spread evenly over all
WARM_UP = 2_000  # messages of the large one that are sent first
TARGET = 0.250  # seconds


async def delays(url: str, dsn: str) -> list[float]:
    """Seconds from the creation of each urgent mailing to its first request, by the database's clock, sorted."""
    fill.clients(dsn, WAITING)
    fill.mailings(dsn, WAITING)
    async with await create_pool(dsn, size=9, application_name="bench") as db:
        await db.execute("UPDATE clients SET tags = '{urgent}' WHERE phone % $1::bigint = 0", WAITING // CLIENTS)
        async with sending(db, url) as scheduler:
            while await sent(db) < WARM_UP:
                await asyncio.sleep(0.1)
            for _ in range(URGENT):
                mailing = await create(db, priority=10, tag="urgent")
                scheduler.wake()
                while (await mailings.get(db, mailing)).status != "finished":
                    await asyncio.sleep(0.1)
            assert await sent(db) < WAITING, "the large mailing was over too soon"
        rows = await db.fetch(
            """
            SELECT extract(epoch FROM min(a.started_at) - m.created_at)::float8 AS delay
            FROM mailings m JOIN attempts a ON a.mailing_id = m.id WHERE m.priority = 10 GROUP BY m.id ORDER BY 1
            """
        )
        return [row["delay"] for row in rows]


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    with a_database() as dsn:
        times = uvloop.run(delays(url, dsn))
    for name, value in (("median", median(times)), ("worst", times[-1])):
        question = f"urgent mailing to wire beside {WAITING:,}, {name} of {URGENT}"
        yield question, f"{value * 1000:.0f} ms", "-", "-", f"{TARGET * 1000:.0f} ms", value <= TARGET
