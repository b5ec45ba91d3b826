"""What a second replica brings while the gateway's latency and the connections of a replica are the limit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import uvloop

from bench.nginx import slow_gateway
from bench.served import replica
from bench.throughput import ROUNDS, Row, a_database, clear, create
from notifier.storage import mailings
from notifier.storage.database import Pool, create_pool

MESSAGES = 4_000
CONNECTIONS = 50  # of each: 500 messages a second, far from what a core can do
TARGET = 1.9


async def pace(db: Pool, replicas: int) -> float:
    """Messages a second over the middle four fifths of a mailing: at its end one of two has a batch, the other none."""
    while await db.fetchval("SELECT count(*) FROM replicas") != replicas:
        await asyncio.sleep(0.05)
    mailing = await create(db)
    while (await mailings.get(db, mailing)).status != "finished":
        await asyncio.sleep(0.25)
    seconds = await db.fetchval(
        """
        SELECT extract(epoch FROM percentile_disc(0.9) WITHIN GROUP (ORDER BY started_at)
                                - percentile_disc(0.1) WITHIN GROUP (ORDER BY started_at))::float8
        FROM attempts WHERE mailing_id = $1
        """,
        mailing,
    )
    return float(MESSAGES * 0.8 / seconds)


async def measure(url: str, dsn: str) -> tuple[float, float, float]:
    """The ratio, the pace of two and the pace of one: the median of a few rounds."""
    settings = {"GATEWAY_CONCURRENCY": str(CONNECTIONS), "ROLE": "worker"}
    async with await create_pool(dsn, size=1, application_name="bench") as db:
        await clear(db, MESSAGES)
        found = []
        with replica(dsn, url, **settings):
            for _ in range(ROUNDS):
                one = await pace(db, 1)
                with replica(dsn, url, **settings):
                    two = await pace(db, 2)
                found.append((two / one, two, one))
        return sorted(found)[ROUNDS // 2]


def rows(_: str) -> Iterator[Row]:
    """Yield the row of the table."""
    with slow_gateway() as url, a_database() as dsn:
        ratio, two, one = uvloop.run(measure(url, dsn))
    question = f"messages a second of two replicas, {CONNECTIONS} slow connections each, of one"
    yield question, f"{two:,.0f}", f"{one:,.0f}", f"{ratio:.2f}", f"{TARGET:.2f}", ratio >= TARGET
