"""Mailings: creating one, reading it back, the pages of the list, and what other replicas hear of."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from notifier.errors import Invalid, NotFound
from notifier.models import Filter, MailingStatus, Window
from notifier.storage import mailing_lifecycle, mailings, statistics
from notifier.storage.database import Pool
from tests.conftest import poll_until
from tests.storage.mailing_scenes import create
from tests.storage.scenes import soon

NIGHT = Window(time(22, 30), time(6))


async def test_what_was_created_is_read_back(db: Pool) -> None:
    starts_at, ends_at = soon(60), soon(120)
    created = await create(
        db,
        filter=Filter(["916"], ["vip"]),
        starts_at=starts_at,
        ends_at=ends_at,
        window=NIGHT,
        priority=-3,
        draft=True,
    )
    assert created == await mailings.get(db, created.id)
    assert (created.name, created.text, created.text_version) == ("spring", "Hi", 1)
    assert (created.filter, created.window, created.priority) == (Filter(["916"], ["vip"]), NIGHT, -3)
    assert (created.starts_at, created.ends_at) == (starts_at, ends_at)
    assert (created.status, created.status_reason, created.version) == (MailingStatus.DRAFT, None, 1)
    assert (created.audience, created.planned) == (0, False)


async def test_without_a_start_it_starts_now_by_the_databases_clock(db: Pool) -> None:
    created = await create(db, name=None)
    assert created.status == "scheduled"
    assert created.name is None
    assert created.starts_at == created.created_at
    assert created.filter == Filter()


@pytest.mark.parametrize(
    ("starts_in", "ends_in", "message"),
    [
        (None, -1, "ends_in_the_past"),
        (-60, -30, "ends_in_the_past"),
        (60, 60, "ends_before_start"),
        (60, 30, "ends_before_start"),
    ],
)
async def test_times_that_cannot_be_are_refused(
    db: Pool, starts_in: float | None, ends_in: float, message: str
) -> None:
    base = datetime.now(UTC)
    starts_at = None if starts_in is None else base + timedelta(seconds=starts_in)
    with pytest.raises(Invalid, match=message) as caught:
        await create(db, starts_at=starts_at, ends_at=base + timedelta(seconds=ends_in))
    assert [problem.at for problem in caught.value.problems] == ["/ends_at"]
    assert await db.fetchval("SELECT count(*) FROM mailings") == 0


async def test_a_start_in_the_past_is_fine_while_the_end_is_ahead(db: Pool) -> None:
    assert (await create(db, starts_at=soon(-60))).status == "scheduled"


async def test_what_is_not_there_is_not_found(db: Pool) -> None:
    for call in (
        mailings.get(db, 1),
        mailings.edit(db, 1, {}),
        mailings.act(db, 1, "pause"),
        mailings.delete(db, 1),
    ):
        with pytest.raises(NotFound):
            await call
    assert await mailing_lifecycle.close(db, 1) is False


async def test_pages_are_newest_first_and_by_status(db: Pool) -> None:
    made = [(await create(db, draft=n % 2 == 0)).id for n in range(6)]
    await mailings.delete(db, made[5])

    async def page(**kwargs: Any) -> list[int]:
        return [
            mailing.id for mailing in await mailings.page(db, **{"status": None, "before": None, "limit": 50} | kwargs)
        ]

    assert await page() == made[4::-1]
    assert await page(limit=2) == [made[4], made[3]]
    assert await page(before=made[3]) == [made[2], made[1], made[0]]
    assert await page(status=MailingStatus.DRAFT) == [made[4], made[2], made[0]]
    assert await page(status=MailingStatus.SCHEDULED, before=made[3], limit=1) == [made[1]]
    assert await page(status=MailingStatus.RUNNING) == []


async def test_no_page_of_mailings_reads_more_the_deeper_it_lies(db: Pool) -> None:
    """30,000 mailings, half of them archived in two blocks, two drafts, 4,000 deleted in two blocks: a page reads its
    own rows, whatever the list, in whatever plan."""
    await db.execute(
        """
        INSERT INTO mailings (starts_at, ends_at, status, planned, over_at, horizon)
        SELECT now() - interval '2 days', now() - interval '1 day',
               (CASE WHEN n IN (2, 100) THEN 'draft' ELSE 'finished' END)::mailing_status, true, now(), 0
        FROM generate_series(1, 30000) n
        """
    )
    await db.execute("UPDATE mailings SET archived_at = now() WHERE id % 15000 < 7500 AND status = 'finished'")
    await db.execute("UPDATE mailings SET deleted_at = now() WHERE id % 15000 BETWEEN 9000 AND 10999")
    await db.execute("INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Hi' FROM mailings")
    await db.execute("ANALYZE mailings, mailing_texts")
    read = """
        SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))::bigint FROM pg_stat_xact_user_tables
        WHERE relname IN ('mailings', 'mailing_texts')
    """
    async with db.acquire() as connection, connection.transaction():
        middle = await connection.fetchval("SELECT min(id) + 15000 FROM mailings")

        async def cost(page: Callable[[], Awaitable[Any]]) -> int:
            start = await connection.fetchval(read)
            await page()
            return int(await connection.fetchval(read) - start)

        pages: dict[str, Callable[[], Awaitable[Any]]] = {
            f"{status} before {before}, archived {archived}": partial(
                mailings.page, connection, status=status, before=before, limit=50, archived=archived
            )
            for status in (None, MailingStatus.DRAFT, MailingStatus.FINISHED)
            for before in (None, middle)
            for archived in (False, True)
        }
        pages |= {
            f"lines before {before}, archived {archived}": partial(
                statistics.of_mailings, connection, before, 50, archived=archived
            )
            for before in (None, middle)
            for archived in (False, True)
        }
        for before in (None, middle):
            pages[f"deleted before {before}"] = partial(mailings.deleted, connection, before=before, limit=50)
        pages["lines of some"] = partial(
            statistics.of_mailings, connection, None, 50, ids=list(range(middle, middle + 50))
        )
        for plan in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET LOCAL plan_cache_mode = {plan}")
            costs = {name: await cost(page) for name, page in pages.items()}
            assert max(costs.values()) <= 110, (plan, costs)


async def test_what_others_must_hear_of_is_announced(db: Pool, dsn: str) -> None:
    heard: list[object] = []
    listener = await asyncpg.connect(dsn)
    await listener.add_listener(mailings.CHANNEL, lambda *words: heard.append(words))
    mailing = await create(db, draft=True)
    await poll_until(lambda: len(heard) == 1)
    for count, verb in enumerate(("start", "pause", "resume", "cancel"), 2):
        await mailings.act(db, mailing.id, verb)
        await poll_until(lambda count=count: len(heard) == count)  # type: ignore[misc]
    other = await create(db)
    await mailings.edit(db, other.id, {"text": "new"})
    await mailings.delete(db, other.id)
    await poll_until(lambda: len(heard) == 8)
    await listener.close()


async def test_the_clock_is_the_databases(db: Pool) -> None:
    first = await mailings.clock(db)
    assert first.tzinfo is not None
    assert await mailings.clock(db) > first
