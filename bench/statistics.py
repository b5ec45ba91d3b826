"""Do the numbers cost the same however many messages they are about: of one mailing, and of all."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import uvloop

from bench import fill
from bench.throughput import Row
from bench.timing import in_turn, p50, p99
from notifier.storage import statistics
from notifier.storage.database import create_pool

ROUNDS = 300
MAILINGS = 1_000
TARGET, TARGET_P99 = 1.2, 0.010  # of the same at 50,000; seconds


async def of_mailing(small: str, large: str) -> list[list[float]]:
    """Seconds of the statistics of one mailing, which has been sending for half an hour, in the small and the large."""
    async with (
        await create_pool(small, size=1, application_name="bench") as few,
        await create_pool(large, size=1, application_name="bench") as many,
    ):
        ids = [await db.fetchval("SELECT max(id) FROM mailings") for db in (few, many)]
        return await in_turn(
            ROUNDS, *(partial(statistics.of_mailing, db, id_) for db, id_ in zip((few, many), ids, strict=True))
        )


async def totals(small: str, large: str) -> list[list[float]]:
    """Seconds of the totals over all mailings in the small database and in the large."""
    async with (
        await create_pool(small, size=1, application_name="bench") as few,
        await create_pool(large, size=1, application_name="bench") as many,
    ):
        return await in_turn(ROUNDS, partial(statistics.totals, few), partial(statistics.totals, many))


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    with fill.two_databases() as databases:
        for dsn, size in zip(databases, (fill.SMALL, fill.LARGE), strict=True):
            fill.clients(dsn, size)
            fill.mailings(dsn, size, through=size // 2, sending=100)
        times = uvloop.run(of_mailing(*databases))
    yield from _rows(f"statistics of {fill.LARGE:,}", *times)
    with fill.two_databases() as databases:
        for dsn, size in zip(databases, (fill.SMALL, fill.LARGE), strict=True):
            each = size // MAILINGS
            fill.clients(dsn, each)
            # the same rows in the counters of both
            fill.mailings(dsn, each, count=MAILINGS, through=each // 2, every=each // 10)
        times = uvloop.run(totals(*databases))
    yield from _rows(f"totals of {fill.LARGE:,} in {MAILINGS:,} mailings", *times)


def _rows(name: str, small: list[float], large: list[float]) -> Iterator[Row]:
    a, b = p50(large), p50(small)
    yield (
        f"{name}, p50, of {fill.SMALL:,}",
        f"{a * 1000:.2f} ms",
        f"{b * 1000:.2f} ms",
        f"{a / b:.2f}",
        f"{TARGET}",
        a <= TARGET * b,
    )
    a, b = p99(large), p99(small)
    yield (
        f"{name}, p99",
        f"{a * 1000:.1f} ms",
        f"{b * 1000:.1f} ms",
        f"{a / b:.2f}",
        f"{TARGET_P99 * 1000:.0f} ms",
        a <= TARGET_P99,
    )
