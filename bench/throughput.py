"""Messages a second end to end, everything on, beside a bare aiohttp loop without a database.

All run one after the other in one process against the same nginx with the same number of connections. The bare loop
uses aiohttp's session as fast as it goes (`bench/plain.py`), the engine its own HTTP (decision 0021); beside
a loop over that the ratio is what the engine itself costs. The baseline of a run is the mean of the loop's runs before
and after it, since the machine drifts. All run under the service's own settings of the garbage collector.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import orjson
import uvloop

from bench.plain import TEXT, Plain
from notifier.delivery.gateway import Gateway
from notifier.delivery.scheduler import Scheduler
from notifier.models import Filter, OnUnknown, Outcome
from notifier.process import collect_rarely
from notifier.storage import mailings
from notifier.storage.database import Pool, create_pool
from notifier.storage.embedded import running
from notifier.storage.installation import Hold
from notifier.storage.migrations import migrate

MESSAGES = 30_000
ROUNDS = 3
CONNECTIONS = 128
TARGET = 0.85
TARGET_OWN = 0.40  # what was reached: the engine and its share of the database cost as much as one and a half requests

Loop = Callable[[str, int, int], Coroutine[None, None, float]]  # address, messages, connections → messages a second
Row = tuple[str, str, str, str, str, bool]  # question, figure, baseline, ratio, target, met


async def bare(url: str, messages: int, connections: int) -> float:
    """Messages a second of as many coroutines as connections, each sending one message after the other."""
    async with Plain(url) as plain:
        return await _pace(plain.send, messages, connections)


async def own(url: str, messages: int, connections: int) -> float:
    """The same over the engine's own HTTP: what it would have, were everything else for free."""
    text = orjson.dumps(TEXT)
    async with Gateway("default", url, "token", timeout=15) as gateway:

        async def send(message_id: int) -> None:
            answer = await gateway.send(message_id, 79_000_000_000 + message_id, text)
            assert answer.outcome is Outcome.ACCEPTED

        return await _pace(send, messages, connections)


async def _pace(send: Callable[[int], Awaitable[None]], messages: int, connections: int) -> float:
    ids = iter(range(1, messages + 1))

    async def run() -> None:
        for message_id in ids:
            await send(message_id)

    collect_rarely()
    started = time.perf_counter()
    await asyncio.gather(*(run() for _ in range(connections)))
    return messages / (time.perf_counter() - started)


@contextmanager
def a_database() -> Iterator[str]:
    """Yield the address of a migrated database that goes with the block."""
    with tempfile.TemporaryDirectory(prefix="notifier-bench-") as folder:
        Path(folder).chmod(0o711)  # as root the server runs as somebody else
        with running(Path(folder, "db")) as dsn:
            migrate(dsn)
            yield dsn


async def clear(db: Pool, clients: int) -> None:
    """An empty database but for so many clients."""
    await db.execute(
        "TRUNCATE clients, mailings, mailing_texts, messages, slices, batches, attempts, counters, failures, series"
    )
    await db.execute(
        "INSERT INTO clients (phone, operator_code, timezone) SELECT 79000000000 + i, '900', 'Europe/Moscow' "
        "FROM generate_series(1, $1) i",
        clients,
    )
    await db.execute("VACUUM ANALYZE clients")


def a_scheduler(db: Pool, gateway: Gateway | None, concurrency: int) -> Scheduler:
    """An engine with the defaults of the settings; without a gateway it only plans."""
    return Scheduler(
        db,
        name="bench",
        gateway=gateway,
        concurrency=concurrency,
        rate=0,
        timeout=15,
        on_unknown=OnUnknown.RETRY,
        default_zone=ZoneInfo("UTC"),
        hold=Hold(db, None),
    )


async def create(db: Pool, *, priority: int = 0, tag: str | None = None) -> int:
    """A mailing to everybody, or to those with a tag, that starts now and lasts an hour; its id."""
    mailing = await mailings.create(
        db,
        name=None,
        text=TEXT,
        filter=Filter(tags=[tag] if tag else None),
        starts_at=None,
        ends_at=datetime.now(UTC) + timedelta(hours=1),
        window=None,
        priority=priority,
        draft=False,
    )
    return mailing.id


async def pace(db: Pool, since: datetime | None = None) -> tuple[int, float]:
    """How many messages were sent, and how many a second from the start of the first request to the last answer.

    Only requests started from ``since`` on count, where it is given.
    """
    row = await db.fetchrow(
        """
        SELECT count(*) AS n,
               extract(epoch FROM max(started_at + duration_ms * interval '1 ms') - min(started_at))::float8 AS seconds
        FROM attempts WHERE state = 'sent' AND started_at >= coalesce($1, '-infinity'::timestamptz)
        """,
        since,
    )
    assert row is not None
    return row["n"], row["n"] / row["seconds"]


async def engine(url: str, dsn: str, messages: int = MESSAGES, connections: int = CONNECTIONS) -> float:
    """Messages a second from the start of the first request to the last answer, of one mailing."""
    db = await create_pool(dsn, size=9, application_name="bench")
    await clear(db, messages)
    async with Gateway("default", url, "token", timeout=15) as gateway:
        scheduler = a_scheduler(db, gateway, connections)
        await scheduler.start()
        try:
            collect_rarely()
            mailing = await create(db)
            scheduler.wake()
            while (await mailings.get(db, mailing)).status != "finished":
                await asyncio.sleep(0.25)
            sent, rate = await pace(db)
            assert sent == messages, f"{sent} of {messages} sent"
            return rate
        finally:
            await scheduler.stop(5)
            await db.close()


def beside(loop: Loop, url: str, question: str, messages: int, connections: int, target: float) -> Row:
    """A row of the table: the median of a few rounds, each beside the runs of the loop before and after it."""
    with a_database() as dsn:
        baselines, figures = [uvloop.run(loop(url, messages, connections))], []
        for _ in range(ROUNDS):
            figures.append(uvloop.run(engine(url, dsn, messages, connections)))
            baselines.append(uvloop.run(loop(url, messages, connections)))
    around = [(before + after) / 2 for before, after in pairwise(baselines)]
    ratio, ours, baseline = sorted((f / b, f, b) for f, b in zip(figures, around, strict=True))[ROUNDS // 2]
    return question, f"{ours:,.0f}", f"{baseline:,.0f}", f"{ratio:.2f}", f"{target:.2f}", ratio >= target


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    question = f"messages a second, {CONNECTIONS} connections, of a bare loop"
    yield beside(bare, url, question, MESSAGES, CONNECTIONS, TARGET)
    question = "the same, of a bare loop over the engine's HTTP"
    yield beside(own, url, question, MESSAGES, CONNECTIONS, TARGET_OWN)
