"""How much a message makes PostgreSQL write: bytes of WAL when it is planned, and when it is delivered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import uvloop

from bench.throughput import CONNECTIONS, Row, a_database, a_scheduler, clear, create
from notifier.delivery.gateway import Gateway
from notifier.storage import mailings
from notifier.storage.database import Pool, create_pool

MESSAGES = 30_000
TARGET_DELIVERED, TARGET_LIFE = 200, 550  # bytes


async def written(db: Pool) -> int:
    """Bytes of WAL since the server was made, whoever caused them."""
    found: int = await db.fetchval("SELECT (pg_current_wal_insert_lsn() - '0/0')::bigint")
    return found


async def measure(url: str, dsn: str) -> tuple[float, float]:
    """Bytes of WAL per message of its planning and of its delivery, all else that the server wrote included."""
    async with AsyncExitStack() as stack:
        db = await create_pool(dsn, size=9, application_name="bench")
        stack.push_async_callback(db.close)
        await clear(db, MESSAGES)
        await db.execute("CHECKPOINT")  # or chance decides which pages are written whole
        planner = a_scheduler(db, None, CONNECTIONS)
        await planner.start()
        begun = await written(db)
        mailing = await create(db)
        planner.wake()
        while not (await mailings.get(db, mailing)).planned:
            await asyncio.sleep(0.02)
        planned = await written(db)
        await planner.stop(5)

        gateway = await stack.enter_async_context(Gateway("default", url, "token", timeout=15))
        sender = a_scheduler(db, gateway, CONNECTIONS)
        before = await written(db)
        await sender.start()
        stack.push_async_callback(sender.stop, 5)
        while (await mailings.get(db, mailing)).status != "finished":
            await asyncio.sleep(0.1)
        delivered = await written(db)
        sent = await db.fetchval("SELECT count(*) FROM attempts WHERE state = 'sent'")
        assert sent == MESSAGES, f"{sent} of {MESSAGES} sent"
        return (planned - begun) / MESSAGES, (delivered - before) / MESSAGES


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    with a_database() as dsn:
        planned, delivered = uvloop.run(measure(url, dsn))
    for name, value, target in (
        ("to deliver a message", delivered, TARGET_DELIVERED),
        ("to plan and deliver it", planned + delivered, TARGET_LIFE),
    ):
        yield f"WAL {name}", f"{value:.0f} B", "-", "-", f"{target} B", value <= target
