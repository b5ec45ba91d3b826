"""Messages a second while millions wait and an old snapshot is held open, beside a short queue without one.

The queues stand in two databases of one server, and the rounds alternate. The snapshot is held from the first round to
the last, so that no dead row of the large one can be taken away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from statistics import median

import uvloop

from bench import fill
from bench.throughput import CONNECTIONS, ROUNDS, Row, a_scheduler, clear, pace
from notifier.delivery.gateway import Gateway
from notifier.delivery.scheduler import Scheduler
from notifier.process import collect_rarely
from notifier.storage.database import Pool, create_pool, transaction, unlimited

MAILINGS = 10  # over which those that wait are spread
MESSAGES = 15_000  # sent in each round
TARGET = 0.95


@asynccontextmanager
async def sending(db: Pool, url: str) -> AsyncIterator[Scheduler]:
    """Yield an engine that sends flat out, as long as the block runs."""
    async with Gateway("default", url, "token", timeout=15) as gateway:
        scheduler = a_scheduler(db, gateway, CONNECTIONS)
        await scheduler.start()
        try:
            collect_rarely()
            yield scheduler
        finally:
            await scheduler.stop(5)


async def sent(db: Pool) -> int:
    """How many messages were sent so far."""
    return int(await db.fetchval("SELECT coalesce(sum(n), 0)::bigint FROM counters WHERE state = 'sent'"))


async def paced(db: Pool, url: str) -> float:
    """Messages a second of so many that wait."""
    since, enough = await db.fetchval("SELECT now()"), await sent(db) + MESSAGES
    async with sending(db, url):
        while await sent(db) < enough:
            await asyncio.sleep(0.1)
    _, rate = await pace(db, since)
    return rate


async def measure(url: str, large: str, small: str) -> tuple[float, float]:
    """Messages a second with the large queue and with the small one: medians of a few rounds."""
    fill.clients(large, fill.LARGE // MAILINGS)
    fill.mailings(large, fill.LARGE // MAILINGS, count=MAILINGS)
    figures, baselines = [], []
    async with (
        await create_pool(large, size=10, application_name="bench") as large_db,  # nine, and one for the snapshot
        await create_pool(small, size=9, application_name="bench") as small_db,
        transaction(large_db, snapshot=True) as old,
    ):
        await old.execute(unlimited())  # it stays idle in its transaction, which the pool allows for 3 s
        await old.fetchval("SELECT count(*) FROM mailings")
        for _ in range(ROUNDS):
            await clear(small_db, fill.SMALL // MAILINGS)
            fill.mailings(small, fill.SMALL // MAILINGS, count=MAILINGS)
            baselines.append(await paced(small_db, url))
            figures.append(await paced(large_db, url))
    return median(figures), median(baselines)


def rows(url: str) -> Iterator[Row]:
    """Yield the row of the table."""
    with fill.two_databases() as (large, small):
        figure, baseline = uvloop.run(measure(url, large, small))
    question = f"messages a second, {fill.LARGE:,} waiting and an old snapshot, of {fill.SMALL:,}"
    ratio = figure / baseline
    yield question, f"{figure:,.0f}", f"{baseline:,.0f}", f"{ratio:.2f}", f"{TARGET:.2f}", ratio >= TARGET
