"""How fast an audience is chosen, beside the same rows inserted at one stroke; how soon its first batch is claimed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import pairwise
from zoneinfo import ZoneInfo

import uvloop

from bench import fill
from bench.throughput import Row, a_database, create
from notifier.delivery.planner import Planner
from notifier.storage import audience, mailings, queue
from notifier.storage.database import Pool, create_pool

CLIENTS = 100_000
ROUNDS = 3
FIRSTS = 7
TARGET_RATIO, TARGET_FIRST = 0.6, 1.0  # of the bare insert; seconds

# The rows of a mailing to everybody as the planner makes them, ids from a place where none are.
_BARE = (
    """
    INSERT INTO messages (id, mailing_id, client_id)
    SELECT $1::bigint + row_number() OVER (ORDER BY id), $2, id FROM clients
    """,
    f"""
    INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
    SELECT $2, now(), $1::bigint + 1 + p, $1::bigint + {queue.BATCH_SIZE} + p, {queue.BATCH_SIZE}, 1, 'waiting'
    FROM generate_series(0, (SELECT count(*) FROM clients) - 1, {queue.BATCH_SIZE}) p
    """,
    f"""
    INSERT INTO slices (mailing_id, first_id, last_id) SELECT $2, $1::bigint + 1 + p, $1::bigint + {fill.SLICE} + p
    FROM generate_series(0, (SELECT count(*) FROM clients) - 1, {fill.SLICE}) p
    """,
)


def _planner(db: Pool) -> Planner:
    return Planner(db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)


async def _empty(db: Pool) -> None:
    await db.execute("TRUNCATE mailings, mailing_texts, messages, slices, batches")
    await db.execute("CHECKPOINT", timeout=60)


async def planned(db: Pool) -> float:
    """Clients a second that the planner chooses, by whom nobody is disturbed."""
    await _empty(db)
    mailing_id = await create(db)
    await audience.begin_due(db)
    planner = _planner(db)
    started = time.perf_counter()
    while await planner.poll() == 0.0:
        pass
    seconds = time.perf_counter() - started
    assert (await mailings.get(db, mailing_id)).audience == CLIENTS
    return CLIENTS / seconds


async def bare(db: Pool) -> float:
    """Clients a second of one transaction that inserts the same rows."""
    await _empty(db)
    started = time.perf_counter()
    async with db.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = 0")
        for statement in _BARE:
            await connection.execute(statement, 10**15, 1, timeout=600)
    return CLIENTS / (time.perf_counter() - started)


async def in_turn(dsn: str) -> tuple[list[float], list[float]]:
    """Clients a second of the planner, and of the bare inserts before and after each of its rounds."""
    db = await create_pool(dsn, size=2, application_name="bench")
    baselines, figures = [await bare(db)], []
    for _ in range(ROUNDS):
        figures.append(await planned(db))
        baselines.append(await bare(db))
    await db.close()
    return figures, [(before + after) / 2 for before, after in pairwise(baselines)]


async def first(dsn: str) -> float:
    """Seconds from the beginning of a mailing to everybody until its first batch is claimed; the worst of a few."""
    db = await create_pool(dsn, size=2, application_name="bench")
    worst = 0.0
    for _ in range(FIRSTS):
        await _empty(db)
        mailing_id = await create(db)
        planner = _planner(db)
        started = time.perf_counter()
        planner.begin(await audience.begin_due(db))
        await planner.poll()
        (batch,) = await queue.claim(db, 1, after=0)
        worst = max(worst, time.perf_counter() - started)
        assert batch.mailing_id == mailing_id
    await db.close()
    return worst


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table: the median of a few rounds of planning, and the worst first batch."""
    with a_database() as dsn:
        fill.clients(dsn, CLIENTS)
        figures, around = uvloop.run(in_turn(dsn))
    ratio, ours, baseline = sorted((f / b, f, b) for f, b in zip(figures, around, strict=True))[ROUNDS // 2]
    question = "clients planned a second, of a bare insert"
    yield question, f"{ours:,.0f}", f"{baseline:,.0f}", f"{ratio:.2f}", f"{TARGET_RATIO}", ratio >= TARGET_RATIO
    with a_database() as dsn:
        fill.clients(dsn, fill.LARGE)
        seconds = uvloop.run(first(dsn))
    question = f"begin to first batch, {fill.LARGE:,} clients"
    yield question, f"{seconds * 1000:.0f} ms", "-", "-", f"{TARGET_FIRST:.0f} s", seconds <= TARGET_FIRST
