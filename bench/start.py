"""How soon after its time a mailing's first request is on the wire, on an idle system."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import uvloop

from bench.throughput import Row, a_database, a_scheduler, clear
from notifier.delivery.gateway import Gateway
from notifier.models import Filter
from notifier.storage import mailings
from notifier.storage.database import create_pool

MAILINGS = 200
TARGET_P50, TARGET_P99 = 0.010, 0.050  # seconds


async def delays(url: str, dsn: str) -> list[float]:
    """Seconds from ``starts_at`` to the first started request, sorted, of mailings that start 50 ms apart."""
    db = await create_pool(dsn, size=9, application_name="bench")
    await clear(db, 1)
    async with Gateway("default", url, "token", timeout=15) as gateway:
        scheduler = a_scheduler(db, gateway, 100)
        await scheduler.start()
        try:
            first = datetime.now(UTC) + timedelta(seconds=2)
            for number in range(MAILINGS):
                await mailings.create(
                    db,
                    name=None,
                    text="Пора!",
                    filter=Filter(),
                    starts_at=first + timedelta(milliseconds=50 * number),
                    ends_at=first + timedelta(hours=1),
                    window=None,
                    priority=0,
                    draft=False,
                )
            scheduler.wake()
            while await db.fetchval("SELECT count(*) FROM attempts") < MAILINGS:
                await asyncio.sleep(0.1)
            rows = await db.fetch(
                "SELECT extract(epoch FROM a.started_at - m.starts_at)::float8 AS delay "
                "FROM attempts a JOIN mailings m ON m.id = a.mailing_id ORDER BY 1"
            )
            return [row["delay"] for row in rows]
        finally:
            await scheduler.stop(5)
            await db.close()


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    with a_database() as dsn:
        times = uvloop.run(delays(url, dsn))
    for name, value, target in (
        ("p50", times[len(times) // 2], TARGET_P50),
        ("p99", times[int(len(times) * 0.99)], TARGET_P99),
    ):
        figure = f"{value * 1000:.0f} ms"
        yield f"start to wire, {name}", figure, "-", "-", f"{target * 1000:.0f} ms", 0 <= value <= target
