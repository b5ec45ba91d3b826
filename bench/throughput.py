"""Messages a second end to end, everything on, beside a bare aiohttp loop without a database.

Both run in a process of their own, one after the other, against the same nginx with the same number of connections; the
bare loop uses the product's own session, so what differs is the engine.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import uvloop

from notifier.delivery.gateway import Gateway
from notifier.delivery.scheduler import Scheduler
from notifier.models import Filter, OnUnknown, Outcome
from notifier.storage import mailings
from notifier.storage.database import create_pool, migrate
from notifier.storage.embedded import running

CONNECTIONS = 128
TEXT = "Привет! Ваш заказ готов, ждём вас сегодня до 21:00."


async def bare(url: str, messages: int, connections: int) -> float:
    """Messages a second of as many coroutines as connections, each sending one message after the other."""
    text = orjson.dumps(TEXT)
    ids = iter(range(1, messages + 1))
    async with Gateway("default", url, "token", timeout=15) as gateway:

        async def run() -> None:
            for message_id in ids:
                answer = await gateway.send(message_id, 79_000_000_000 + message_id, text)
                assert answer.outcome is Outcome.ACCEPTED

        gc.freeze()
        started = time.perf_counter()
        await asyncio.gather(*(run() for _ in range(connections)))
        return messages / (time.perf_counter() - started)


async def engine(url: str, dsn: str, messages: int, connections: int) -> float:
    """Messages a second from the first to the last ledger row of one mailing."""
    db = await create_pool(dsn, size=6, application_name="bench")
    await db.execute(
        "TRUNCATE clients, mailings, mailing_texts, messages, slices, batches, attempts, counters, failures, series"
    )
    await db.execute(
        "INSERT INTO clients (phone, operator_code, timezone) SELECT 79000000000 + i, '900', 'Europe/Moscow' "
        "FROM generate_series(1, $1) i",
        messages,
    )
    await db.execute("VACUUM ANALYZE clients")
    async with Gateway("default", url, "token", timeout=15) as gateway:
        scheduler = Scheduler(
            db,
            name="bench",
            gateway=gateway,
            concurrency=connections,
            rate=0,
            timeout=15,
            policy=OnUnknown.RETRY,
            default_zone=ZoneInfo("UTC"),
        )
        await scheduler.start()
        try:
            gc.freeze()
            mailing = await mailings.create(
                db,
                name=None,
                text=TEXT,
                filter=Filter(),
                starts_at=None,
                ends_at=datetime.now(UTC) + timedelta(hours=1),
                window=None,
                priority=0,
                draft=False,
            )
            scheduler.wake()
            while (await mailings.get(db, mailing.id)).status != "finished":
                await asyncio.sleep(0.25)
            row = await db.fetchrow(
                "SELECT count(*) AS n, extract(epoch FROM max(started_at) - min(started_at)) AS seconds FROM attempts "
                "WHERE standing = 'sent'"
            )
            assert row is not None
            assert row["n"] == messages, f"{row['n']} of {messages} sent"
            return messages / float(row["seconds"])
        finally:
            await scheduler.stop(5)
            await db.close()


def main(url: str, messages: int = 40_000, connections: int = CONNECTIONS) -> tuple[float, float]:
    """(engine, bare loop) in messages a second: the bare loop before and after, the faster of the two counts."""
    with tempfile.TemporaryDirectory(prefix="notifier-bench-") as folder:
        Path(folder).chmod(0o711)
        with running(Path(folder, "db")) as dsn:
            migrate(dsn)
            before = uvloop.run(bare(url, messages, connections))
            ours = uvloop.run(engine(url, dsn, messages, connections))
            after = uvloop.run(bare(url, messages, connections))
    return ours, max(before, after)


if __name__ == "__main__":
    from bench.nginx import fast_gateway

    with fast_gateway() as address:
        print(main(address, *map(int, sys.argv[1:])))
