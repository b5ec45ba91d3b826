"""Does a page of a list cost the same wherever it lies, and whatever status it is of."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import psycopg
import uvloop

from bench import fill
from bench.throughput import Row
from bench.timing import Call, in_turn, p50, p99
from notifier.models import MailingStatus, Status
from notifier.storage import clients, mailings, messages
from notifier.storage.database import create_pool

ROUNDS = 200
LIMIT = 50
DEPTH = fill.LARGE // 5
ENDED = {Status.EXPIRED: MailingStatus.FINISHED, Status.CANCELLED: MailingStatus.CANCELLED}
TARGET, TARGET_P99 = 1.3, 0.020  # of the first page; seconds


def many_mailings(dsn: str, count: int) -> None:
    """Add so many old mailings that have nothing left but their texts."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(
            """
            WITH mailing AS (
                INSERT INTO mailings (name, starts_at, ends_at, status, over_at, planned, horizon)
                SELECT 'Old ' || i, now() - interval '2 days', now() - interval '1 day', 'finished',
                       now() - interval '1 day', true, 0
                FROM generate_series(1, %s) i RETURNING id
            )
            INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Здравствуйте!' FROM mailing
            """,
            (count,),
        )
        db.execute("VACUUM ANALYZE mailings, mailing_texts")


async def at_depth(dsn: str) -> dict[str, list[list[float]]]:
    """List → seconds of its first page, and of the one at `DEPTH`."""
    async with await create_pool(dsn, size=1, application_name="bench") as db:
        # ids were given without a gap
        deep = {
            table: await db.fetchval(f"SELECT max(id) - {DEPTH} FROM {table}")
            for table in ("mailings", "clients", "messages")
        }
        mailing_id = await db.fetchval("SELECT max(mailing_id) FROM slices")
        lists: dict[str, tuple[Call, Call]] = {
            "mailings": (
                partial(mailings.page, db, status=None, before=None, limit=LIMIT),
                partial(mailings.page, db, status=None, before=deep["mailings"], limit=LIMIT),
            ),
            "clients": (
                partial(clients.page, db, limit=LIMIT),
                partial(clients.page, db, before=deep["clients"], limit=LIMIT),
            ),
            "messages of a mailing": (
                partial(messages.of_mailing, db, mailing_id, None, None, LIMIT),
                partial(messages.of_mailing, db, mailing_id, None, (deep["messages"],), LIMIT),
            ),
        }
        return {name: await in_turn(ROUNDS, *calls) for name, calls in lists.items()}


async def by_status(small: str, large: str) -> dict[str, list[list[float]]]:
    """List → seconds of its first page in the small database and in the large: of messages, and of mailings."""
    times = {}
    async with (
        await create_pool(small, size=1, application_name="bench") as few,
        await create_pool(large, size=1, application_name="bench") as many,
    ):
        both = [(db, await db.fetchval("SELECT max(mailing_id) FROM slices")) for db in (few, many)]
        for state in MailingStatus:
            times[f"{state} mailings"] = await in_turn(
                ROUNDS, *(partial(mailings.page, db, status=state, before=None, limit=LIMIT) for db, _ in both)
            )
        for status in sorted(Status, key=lambda status: status in ENDED):
            for db, id_ in both:
                if status in ENDED:  # one row, and what is left reads so
                    await db.execute(
                        "UPDATE mailings SET status = $2::text::mailing_status, over_at = now() WHERE id = $1",
                        id_,
                        ENDED[status].value,
                    )
            times[f"{status} messages"] = await in_turn(
                ROUNDS, *(partial(messages.of_mailing, db, id_, status, None, LIMIT) for db, id_ in both)
            )
    return times


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table; of the lists by status only the slowest."""
    with fill.two_databases() as databases:
        for dsn, size in zip(databases, (fill.SMALL, fill.LARGE), strict=True):
            fill.clients(dsn, size)
            # among old ones, and most of it sent
            fill.mailings(dsn, size, through=size // 10 * 9, sending=100)
            many_mailings(dsn, size // 4)
        statuses = uvloop.run(by_status(*databases))
        depths = uvloop.run(at_depth(databases[1]))
    for name, (first, deep) in depths.items():
        a, b = p50(deep), p50(first)
        question = f"{name}, page at depth {DEPTH:,}, of the first"
        yield question, f"{a * 1000:.2f} ms", f"{b * 1000:.2f} ms", f"{a / b:.2f}", f"{TARGET}", a <= TARGET * b
    for noun in ("messages", "mailings"):
        name, (small, large) = max(
            ((name, times) for name, times in statuses.items() if noun in name), key=lambda item: p99(item[1][1])
        )
        a, b = p99(large), p99(small)
        yield (
            f"{noun} by status at {fill.LARGE:,}, p99 of the slowest ({name.split()[0]})",
            f"{a * 1000:.1f} ms",
            f"{b * 1000:.1f} ms",
            f"{a / b:.2f}",
            f"{TARGET_P99 * 1000:.0f} ms",
            a <= TARGET_P99,
        )
