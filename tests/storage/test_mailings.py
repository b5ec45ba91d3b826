"""Mailings: every verb from every status, the rules of editing, and the few steps the scheduler takes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, time, timedelta
from functools import partial
from typing import Any

import asyncpg
import pytest

from chaos.stage import PATIENCE
from notifier.errors import Conflict, IllegalTransition, Invalid, NotFound, Stale
from notifier.models import MAILING_TRANSITIONS, OVER, Filter, Mailing, MailingStatus, Window
from notifier.storage import audience, ledger, mailings, queue, statistics
from notifier.storage.database import Connection, Db, Pool
from tests.conftest import poll_until
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import while_held, without
from tests.storage.scenes import (
    ME,
    batches_of,
    claim_one,
    insert_batch,
    insert_clients,
    insert_ledger,
    insert_mailing,
    insert_messages,
    let_a_month_pass,
    marked,
    plan_slice,
    record_one,
    report,
    result,
    running,
    soon,
)

STATUSES = [status.value for status in MailingStatus]
DAY = Window(time(9), time(21))
NIGHT = Window(time(22, 30), time(6))


async def create(db: Db, **changes: Any) -> Mailing:
    fields = {
        "name": "spring",
        "text": "Hi",
        "filter": Filter(),
        "starts_at": None,
        "ends_at": soon(3600),
        "window": None,
        "priority": 0,
        "draft": False,
        **changes,
    }
    return await mailings.create(db, **fields)


async def texts_of(db: Db, mailing_id: int) -> list[tuple[int, str]]:
    rows = await db.fetch("SELECT version, text FROM mailing_texts WHERE mailing_id = $1 ORDER BY 1", mailing_id)
    return [tuple(row) for row in rows]


# ---- create, read -------------------------------------------------------------------------------------------------


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
    [(None, -1, "over already"), (-60, -30, "over already"), (60, 60, "after starts_at"), (60, 30, "after starts_at")],
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
    assert await mailings.close(db, 1) is False


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


# ---- act ----------------------------------------------------------------------------------------------------------

VERBS = ["start", "pause", "resume", "cancel"]


async def test_every_verb_from_every_status(db: Pool) -> None:
    """What the table of transitions does not list is refused, and changes nothing."""
    for verb, status in itertools.product(VERBS, STATUSES):
        mailing_id = await insert_mailing(db, status)
        before = await mailings.get(db, mailing_id)
        sources, target = MAILING_TRANSITIONS[verb]
        if status in sources:
            after = await mailings.act(db, mailing_id, verb)
            assert (after.status, after.version, after.status_reason) == (target, 2, None)
            assert after.updated_at > before.updated_at
            over_at = await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id)
            assert (over_at is not None) == (verb == "cancel")
        else:
            with pytest.raises(IllegalTransition, match=f"{status} cannot {verb}"):
                await mailings.act(db, mailing_id, verb)
            assert await mailings.get(db, mailing_id) == before


async def test_the_table_of_transitions_is_the_documented_one() -> None:
    """Written once more, as docs and API have it."""
    assert {verb: (set(sources), target) for verb, (sources, target) in MAILING_TRANSITIONS.items()} == {
        "start": ({"draft"}, "scheduled"),
        "begin": ({"scheduled"}, "running"),
        "pause": ({"scheduled", "running"}, "paused"),
        "resume": ({"paused"}, "running"),
        "cancel": ({"draft", "scheduled", "running", "paused"}, "cancelled"),
        "finish": ({"scheduled", "running", "paused"}, "finished"),
    }


async def test_resume_leads_back_to_where_the_pause_came_from(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60))
    await mailings.act(db, mailing.id, "pause")
    assert await audience.begin_due(db) == []
    assert (await mailings.act(db, mailing.id, "resume")).status == "scheduled"
    await mailings.edit(db, mailing.id, {"starts_at": soon(-1)})
    assert [begun.id for begun in await audience.begin_due(db)] == [mailing.id]
    await mailings.act(db, mailing.id, "pause")
    assert (await mailings.act(db, mailing.id, "resume")).status == "running"


async def test_nothing_goes_on_after_the_end(db: Pool) -> None:
    for status, verb in (("draft", "start"), ("paused", "resume")):
        mailing_id = await insert_mailing(db, status, ends_in=-1)
        with pytest.raises(IllegalTransition, match="is over"):
            await mailings.act(db, mailing_id, verb)
        assert (await mailings.act(db, mailing_id, "cancel")).status == "cancelled"


async def test_an_older_version_is_stale(db: Pool) -> None:
    mailing = await create(db)
    assert (await mailings.act(db, mailing.id, "pause", if_match=1)).version == 2
    for call in (
        mailings.act(db, mailing.id, "resume", if_match=1),
        mailings.edit(db, mailing.id, {"name": "x"}, if_match=1),
        mailings.delete(db, mailing.id, if_match=1),
    ):
        with pytest.raises(Stale):
            await call
    assert (await mailings.get(db, mailing.id)).version == 2


async def test_two_editors_at_once_one_is_stale(db: Pool) -> None:
    mailing = await create(db)
    with pytest.raises(Stale):
        await while_held(
            db,
            lambda conn: mailings.edit(conn, mailing.id, {"text": "one"}, if_match=1),
            lambda conn: mailings.edit(conn, mailing.id, {"text": "other"}, if_match=1),
        )
    assert (await mailings.get(db, mailing.id)).text == "one"


@pytest.mark.parametrize("verb", ["pause", "delete", "edit"])
async def test_a_word_that_waits_for_an_edit_of_the_text_is_not_lost(db: Pool, verb: str) -> None:
    """Its row lock comes when the mailing has another text than the one it first saw."""
    mailing = await create(db)
    words: dict[str, Callable[[Connection], Awaitable[object]]] = {
        "pause": lambda conn: mailings.act(conn, mailing.id, "pause"),
        "delete": lambda conn: mailings.delete(conn, mailing.id),
        "edit": lambda conn: mailings.edit(conn, mailing.id, {"text": "three"}),
    }
    await while_held(db, lambda conn: mailings.edit(conn, mailing.id, {"text": "two"}), words[verb])
    texts = [(1, "Hi"), (2, "two")]
    assert await texts_of(db, mailing.id) == ([*texts, (3, "three")] if verb == "edit" else texts)


async def _written(db: Db) -> dict[str, int]:
    """Rows inserted, updated and deleted so far over this connection, by table."""
    rows = await db.fetch("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del AS n FROM pg_stat_xact_user_tables")
    return {row["relname"]: row["n"] for row in rows if row["n"]}


async def test_a_word_writes_one_row_however_large_the_mailing_is(db: Pool) -> None:
    for verb, batches in itertools.product(("pause", "cancel", "delete", "expire"), (2, 200)):
        mailing_id, _ = await running(db, *([1] * batches))
        async with db.acquire() as conn, conn.transaction():
            before = await _written(conn)
            if verb == "delete":
                await mailings.delete(conn, mailing_id)
            elif verb == "expire":
                await conn.execute("UPDATE mailings SET ends_at = clock_timestamp() WHERE id = $1", mailing_id)
                before["mailings"] = before.get("mailings", 0) + 1
                assert await mailings.finish_ended(conn) == [mailing_id]
            else:
                await mailings.act(conn, mailing_id, verb)
            assert await _written(conn) == before | {"mailings": before.get("mailings", 0) + 1}
        assert not await ledger_errors(db)


# ---- edit ---------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "name": "autumn",
    "text": "Bye",
    "filter": Filter(["917"]),
    "starts_at": datetime(2035, 1, 1, tzinfo=UTC),
    "ends_at": datetime(2036, 1, 1, tzinfo=UTC),
    "window": DAY,
    "priority": 7,
}


async def test_every_field_in_every_status(db: Pool) -> None:
    for field, status in itertools.product(CHANGES, STATUSES):
        mailing_id = await insert_mailing(db, status, planned=status not in ("draft", "scheduled"))
        before = await mailings.get(db, mailing_id)
        changes = {field: CHANGES[field]}
        if field == "starts_at":
            changes["ends_at"] = CHANGES["ends_at"]
        begun = status in ("running", "paused")
        if status in OVER or (begun and field in ("filter", "starts_at")):
            with pytest.raises(
                Conflict, match="nothing can be changed" if status in OVER else f"{field} cannot be changed"
            ):
                await mailings.edit(db, mailing_id, changes)
            assert await mailings.get(db, mailing_id) == before
        else:
            after = await mailings.edit(db, mailing_id, changes)
            assert getattr(after, field) == CHANGES[field]
            assert after.version == 2
            for other in set(CHANGES) - set(changes):
                assert getattr(after, other) == getattr(before, other)


async def test_both_fixed_fields_are_named(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    with pytest.raises(Conflict, match="filter and starts_at"):
        await mailings.edit(db, mailing_id, {"filter": Filter(), "starts_at": soon()})


async def test_what_was_paused_before_its_start_can_be_changed_wholly(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60))
    await mailings.act(db, mailing.id, "pause")
    assert (await mailings.edit(db, mailing.id, {"filter": Filter(["917"])})).filter == Filter(["917"])


async def test_every_text_that_was_is_kept(db: Pool) -> None:
    mailing = await create(db, text="one")
    assert (await mailings.edit(db, mailing.id, {"text": "two"})).text_version == 2
    assert (await mailings.edit(db, mailing.id, {"text": "two", "name": None})).text_version == 2
    edited = await mailings.edit(db, mailing.id, {"text": "one"})
    assert (edited.text, edited.text_version, edited.name, edited.version) == ("one", 3, None, 4)
    assert await texts_of(db, mailing.id) == [(1, "one"), (2, "two"), (3, "one")]


async def test_an_edit_must_leave_times_that_can_be(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60), ends_at=soon(120))
    for changes in ({"ends_at": soon(-1)}, {"starts_at": soon(180)}, {"ends_at": soon(30)}):
        with pytest.raises(Invalid):
            await mailings.edit(db, mailing.id, changes)
    assert await mailings.get(db, mailing.id) == mailing
    # what is left alone is not judged: a mailing that is about to end can still be renamed
    await db.execute("UPDATE mailings SET starts_at = now() - interval '2 s', ends_at = now() - interval '1 s'")
    assert (await mailings.edit(db, mailing.id, {"name": "x"})).name == "x"


async def test_a_later_end_reaches_a_running_mailing(db: Pool) -> None:
    mailing_id, _, batch = await marked(db, 3, watermark=1)
    ends_at = soon(7200)
    await mailings.edit(db, mailing_id, {"ends_at": ends_at})
    recorded = await record_one(db, report(batch, 2, old_watermark=1))
    assert (recorded.ends_at, recorded.version, recorded.watermark) == (ends_at, 2, 2)


async def _five_batches(db: Db) -> tuple[int, list[int]]:
    """Waiting for a window, due already, in hand; a retry soon, a retry whose window opens in an hour."""
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 5)
    for id_ in ids[3:]:
        await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
    batches = [
        await insert_batch(db, mailing_id, [ids[0]], due_in=3600),
        await insert_batch(db, mailing_id, [ids[1]], due_in=-60),
        await insert_batch(db, mailing_id, [ids[2]], due_in=1000, replica=ME),
        await insert_batch(db, mailing_id, [ids[3]], seq=2, state="retrying", due_in=250),
        await insert_batch(db, mailing_id, [ids[4]], seq=2, state="retrying", due_in=3600),
    ]
    return mailing_id, batches


@pytest.mark.parametrize(("window", "due"), [(DAY, [0, 0, 1000, 250, 0]), (None, [3600, -60, 1000, 250, 3600])])
async def test_another_window_makes_what_waits_for_it_due_at_once(
    db: Pool, window: Window | None, due: list[int]
) -> None:
    """But a backoff goes on, what is in hand is its owner's; and no change of the window changes nothing."""
    mailing_id, batches = await _five_batches(db)
    now = await mailings.clock(db)
    await mailings.edit(db, mailing_id, {"window": window, "text": "new"})
    rows = {row["id"]: row["due_at"] for row in await batches_of(db, mailing_id)}
    assert [round((rows[batch] - now).total_seconds() / 10) * 10 for batch in batches] == due
    assert not await ledger_errors(db)


# ---- delete, purge ------------------------------------------------------------------------------------------------


async def test_any_mailing_is_deleted_and_what_is_not_over_stops(db: Pool) -> None:
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        over_at = await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id)
        await mailings.delete(db, mailing_id)
        row = await db.fetchrow("SELECT status, over_at, deleted_at, version FROM mailings WHERE id = $1", mailing_id)
        assert row is not None
        assert row["status"] == (status if status in OVER else "cancelled")
        assert row["over_at"] == (over_at or row["deleted_at"])
        assert row["version"] == 2
        for call in (
            mailings.get(db, mailing_id),
            mailings.delete(db, mailing_id),
            mailings.act(db, mailing_id, "cancel"),
        ):
            with pytest.raises(NotFound):
                await call


TABLES = ("messages", "slices", "batches", "attempts", "counters", "failures", "series", "mailing_texts", "mailings")


async def rows_left(db: Db) -> dict[str, int]:
    counts = {table: await db.fetchval(f"SELECT count(*) FROM {table}") for table in TABLES}
    return {table: n for table, n in counts.items() if n}


async def _sent_and_failed(db: Db) -> int:
    """A mailing with rows in every table, its messages in three slices."""
    mailing_id, ids = await running(db, 3)
    for _ in range(2):
        more = await insert_messages(db, mailing_id, 3)
        await insert_batch(db, mailing_id, more)
    batch = await claim_one(db)
    await record_one(db, report(batch, 2))
    rejected = result(batch, ids[1], "rejected", "failed", reason="rejected")
    await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, ids[0]), rejected)
    assert not await ledger_errors(db)
    return mailing_id


async def test_a_deleted_mailing_goes_piece_by_piece_and_leaves_nothing(db: Pool) -> None:
    kept = await _sent_and_failed(db)
    await db.execute("UPDATE batches SET due_at = due_at + interval '1 hour'")
    before = await rows_left(db)
    deleted = await _sent_and_failed(db)
    assert await mailings.purge(db) is False
    await mailings.delete(db, deleted)
    assert await mailings.purge(db) is False
    assert not await ledger_errors(db)
    await let_a_month_pass(db)

    messages = []
    while await mailings.purge(db):
        messages.append(await db.fetchval("SELECT count(*) FROM messages WHERE mailing_id = $1", deleted))
        assert not await ledger_errors(db)

    assert messages == [6, 3, 0, 0]
    assert await rows_left(db) == before
    assert (await mailings.get(db, kept)).audience == 9


async def test_nothing_is_purged_while_somebody_owns_a_batch(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)
    assert await mailings.purge(db) is False
    await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
    assert await mailings.purge(db) is False
    assert (await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[1]))).finished
    assert await mailings.purge(db) is True
    assert await mailings.purge(db) is True
    assert await rows_left(db) == {}


async def test_without_waiting_for_the_owner_rows_are_left_that_belong_to_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)
    async with without(db, {"AND b.owner IS NOT NULL)": "AND false)"}) as changed:
        await mailings.purge(changed)
        await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
        while await mailings.purge(changed):
            pass
    assert await ledger_errors(db) == ["1 ledger rows of no message"]


async def test_two_who_purge_pass_each_other(db: Pool) -> None:
    first, second = await _sent_and_failed(db), None
    await mailings.delete(db, first)
    await let_a_month_pass(db)
    async with db.acquire() as conn, conn.transaction():
        assert await mailings.purge(conn)
        assert await asyncio.wait_for(mailings.purge(db), PATIENCE) is False
        assert second is None
    while await mailings.purge(db):
        pass
    assert await rows_left(db) == {}


async def test_a_deleted_mailing_is_restored_whole(db: Pool) -> None:
    """Also when a request was under way at its deletion, and was answered after it."""
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        before = await mailings.get(db, mailing_id)
        await mailings.delete(db, mailing_id)
        assert (await mailings.get_deleted(db, mailing_id)).id == mailing_id
        after = await mailings.restore(db, mailing_id)
        assert after.status == (status if status in OVER else "cancelled")
        assert (after.version, after.text, after.finished_at is not None) == (3, before.text, True)
        assert after.updated_at > before.updated_at
        assert await mailings.restore(db, mailing_id) == after
        with pytest.raises(NotFound):
            await mailings.get_deleted(db, mailing_id)

    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await mailings.delete(db, mailing_id)
    await record_one(db, report(batch, 2, old_watermark=2), result(batch, ids[0]))
    await mailings.restore(db, mailing_id)
    await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, ids[1]))
    assert not await ledger_errors(db)
    assert await queue.claim(db, ME, after=0) == []
    counts = (await statistics.of_mailing(db, mailing_id)).messages
    assert {status: n for status, n in counts.items() if n} == {"sent": 2, "cancelled": 2}


async def _over(db: Db) -> int:
    """A finished mailing with three messages in two slices, all sent."""
    mailing_id = await insert_mailing(db, "finished", over_for=5)
    for message_id in [*await insert_messages(db, mailing_id, 2), *await insert_messages(db, mailing_id, 1)]:
        await insert_ledger(db, mailing_id, message_id, ("accepted", "sent", None))
    return mailing_id


async def test_what_was_deleted_too_long_ago_is_not_restored(db: Pool) -> None:
    """After 30 days, whether its purge has begun or not; and what an older version has begun to purge at once."""
    expired, begun = await _over(db), await _over(db)
    for mailing_id in (expired, begun):
        await mailings.delete(db, mailing_id)
    await db.execute("UPDATE mailings SET deleted_at = deleted_at - interval '30 days' WHERE id = $1", expired)
    await db.execute("DELETE FROM slices WHERE first_id = (SELECT max(first_id) FROM slices)")
    for mailing_id in (expired, begun):
        with pytest.raises(NotFound, match="too long ago"):
            await mailings.restore(db, mailing_id)
    with pytest.raises(NotFound, match="There is no mailing"):
        await mailings.restore(db, 999)


async def test_a_restore_that_waits_for_a_purge_finds_it_begun(db: Pool) -> None:
    mailing_id = await _over(db)
    await mailings.delete(db, mailing_id)
    await let_a_month_pass(db)

    async def purge(conn: Connection) -> None:
        await mailings.purge(conn)
        await conn.execute("UPDATE mailings SET deleted_at = now()")  # so that only the purge speaks against it

    with pytest.raises(NotFound):
        await while_held(db, purge, lambda conn: mailings.restore(conn, mailing_id))


# ---- archive ------------------------------------------------------------------------------------------------------


async def test_what_is_over_is_archived_and_back(db: Pool) -> None:
    for status in STATUSES:
        mailing_id = await insert_mailing(db, status, over_for=5 if status in OVER else None)
        if status not in OVER:
            for archived in (True, False):
                with pytest.raises(IllegalTransition, match=f"this one is {status}"):
                    await mailings.archive(db, mailing_id, archived)
            continue
        with pytest.raises(Stale):
            await mailings.archive(db, mailing_id, True, if_match=2)
        put_away = await mailings.archive(db, mailing_id, True, if_match=1)
        assert (put_away.version, put_away.archived_at) == (2, put_away.updated_at)
        assert await mailings.archive(db, mailing_id, True) == put_away
        back = await mailings.archive(db, mailing_id, False)
        assert (back.version, back.archived_at) == (3, None)
        assert await mailings.archive(db, mailing_id, False) == back


async def test_archived_ones_are_in_a_list_of_their_own_and_in_the_totals(db: Pool) -> None:
    """Of nine finished ones every third is archived; one of those is deleted."""
    made = [await _over(db) for _ in range(9)]
    for mailing_id in made[::3]:
        await mailings.archive(db, mailing_id, True)
    await mailings.delete(db, made[6])
    away, listed = [made[3], made[0]], [n for n in reversed(made) if n not in made[::3]]
    for archived, expected in ((True, away), (False, listed)):
        for status in (None, MailingStatus.FINISHED):
            first = await mailings.page(db, status=status, before=None, limit=1, archived=archived)
            rest = await mailings.page(db, status=status, before=first[0].id, limit=50, archived=archived)
            assert [mailing.id for mailing in first + rest] == expected
        assert await mailings.page(db, status=MailingStatus.DRAFT, before=None, limit=50, archived=archived) == []
        assert [line.id for line in await statistics.of_mailings(db, None, 50, archived=archived)] == expected
    assert len(await statistics.of_mailings(db, None, 50, ids=made)) == 8
    assert (await statistics.totals(db)).audience == 8 * 3


async def test_deleted_ones_are_listed_as_long_as_they_can_be_restored(db: Pool) -> None:
    """Of five, four are deleted, of which one is restored and one was deleted too long ago."""
    kept, late, back, *made = [await _over(db) for _ in range(5)]
    for mailing_id in (late, back, *made):
        await mailings.delete(db, mailing_id)
    await mailings.restore(db, back)
    await db.execute("UPDATE mailings SET deleted_at = now() - interval '31 days' WHERE id = $1", late)
    [(newest, until)] = await mailings.deleted(db, before=None, limit=1)
    [(older, _)] = await mailings.deleted(db, before=newest.id, limit=50)
    assert [older.id, newest.id] == made
    assert until == newest.updated_at + timedelta(days=30)
    assert await mailings.deleted(db, before=older.id, limit=50) == []
    assert {mailing.id for mailing in await mailings.page(db, status=None, before=None, limit=9)} == {kept, back}


async def test_an_archived_mailing_that_goes_on_is_back_in_the_lists(db: Pool) -> None:
    """An operator has one of its unknown messages sent again; a deleted one never goes on."""
    for deleted in (False, True):
        mailing_id, [message_id] = await running(db, 1)
        await db.execute("DELETE FROM batches")
        await insert_ledger(db, mailing_id, message_id, ("unknown", "unknown", "timeout"))
        assert await mailings.close(db, mailing_id)
        await mailings.archive(db, mailing_id, True)
        if deleted:
            await mailings.delete(db, mailing_id)
            late = result(0, message_id, "unavailable", "retrying", reason="dns")
            assert await ledger.append_late(db, ME, late)
            row = await db.fetchrow("SELECT status, over_at FROM mailings WHERE id = $1", mailing_id)
            assert row is not None
            assert (row["status"], row["over_at"] is not None) == ("finished", True)
            assert await queue.claim(db, ME, after=0) == []
        else:
            await ledger.resolve(db, message_id, "again")
            mailing = await mailings.get(db, mailing_id)
            assert (mailing.status, mailing.archived_at, mailing.finished_at) == ("running", None, None)
            await mailings.act(db, mailing_id, "cancel")


# ---- begin, finish, close -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", STATUSES)
async def test_what_is_scheduled_begins_when_its_start_has_come(db: Pool, status: str) -> None:
    clients = await insert_clients(db, 3)
    due = await insert_mailing(db, status, starts_in=-1, planned=False)
    await insert_mailing(db, "scheduled", starts_in=60, planned=False)
    await insert_mailing(db, "scheduled", starts_in=-60, ends_in=-1, planned=False)
    assert [begun.id for begun in await audience.begin_due(db)] == ([due] if status == "scheduled" else [])
    row = await db.fetchrow("SELECT status, horizon, version FROM mailings WHERE id = $1", due)
    assert row is not None
    assert tuple(row) == (("running", clients[-1], 1) if status == "scheduled" else (status, None, 1))
    assert await audience.begin_due(db) == []


async def test_two_replicas_begin_a_mailing_once(db: Pool) -> None:
    mailing_id = await insert_mailing(db, "scheduled", planned=False)
    assert await while_held(db, audience.begin_due, audience.begin_due) == []
    assert (await mailings.get(db, mailing_id)).status == "running"


async def test_what_has_ended_is_finished(db: Pool) -> None:
    for status in STATUSES:
        ended = await insert_mailing(db, status, ends_in=-0.01)
        await insert_mailing(db, status, ends_in=60)
        alive = status in ("scheduled", "running", "paused")
        assert await mailings.finish_ended(db) == ([ended] if alive else [])
        mailing = await mailings.get(db, ended)
        assert mailing.status == ("finished" if alive else status)
        assert mailing.status_reason == ("nobody_matched" if alive else None)
        assert (await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", ended) is not None) == alive
        assert await mailings.finish_ended(db) == []


async def test_a_mailing_is_closed_when_it_is_planned_and_nothing_is_left(db: Pool) -> None:
    for status, left in itertools.product(STATUSES, ("nothing", "a batch", "a batch in hand", "clients")):
        mailing_id = await insert_mailing(db, status, planned=left != "clients")
        if "batch" in left:
            ids = await insert_messages(db, mailing_id, 1)
            await insert_batch(db, mailing_id, ids, replica=ME if "hand" in left else None)
        ready = status in ("running", "paused") and left == "nothing"
        assert await mailings.worked_off(db) == ([mailing_id] if ready else [])
        assert await mailings.close(db, mailing_id) is ready
        mailing = await mailings.get(db, mailing_id)
        assert (mailing.status, mailing.status_reason) == (("finished", "nobody_matched") if ready else (status, None))
        assert (await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id) is not None) == ready
        assert await mailings.close(db, mailing_id) is False


async def test_a_mailing_to_nobody_says_so(db: Pool) -> None:
    """Closed or ended; where somebody was chosen, or the choice was not done, it does not."""
    for verb, audience_, planned, expected in (
        ("close", 0, True, "nobody_matched"),
        ("close", 1, True, "completed"),
        ("end", 0, True, "nobody_matched"),
        ("end", 0, False, "ended"),
        ("end", 1, True, "ended"),
    ):
        mailing_id = await insert_mailing(db, planned=planned, ends_in=-1 if verb == "end" else 60)
        if audience_:
            [message_id] = await insert_messages(db, mailing_id, 1)
            await insert_ledger(db, mailing_id, message_id, ("accepted", "sent", None))
        assert await mailings.close(db, mailing_id) if verb == "close" else await mailings.finish_ended(db)
        assert (await mailings.get(db, mailing_id)).status_reason == expected


async def test_when_it_started_and_finished_is_said_and_is_no_edit(db: Pool) -> None:
    mailing = await create(db)
    assert (mailing.started_at, mailing.finished_at) == (None, None)
    await audience.begin_due(db)
    begun = await mailings.get(db, mailing.id)
    assert begun.started_at is not None
    assert begun.started_at > mailing.created_at
    paused = await mailings.act(db, mailing.id, "pause")
    resumed = await mailings.act(db, mailing.id, "resume")
    assert resumed.started_at == begun.started_at
    assert resumed.updated_at > paused.updated_at > begun.updated_at == mailing.updated_at
    await db.execute("UPDATE mailings SET planned = true")
    assert await mailings.close(db, mailing.id)
    closed = await mailings.get(db, mailing.id)
    assert closed.finished_at is not None
    assert closed.finished_at > closed.updated_at == resumed.updated_at
    cancelled = await mailings.act(db, (await create(db)).id, "cancel")
    assert (cancelled.started_at, cancelled.finished_at) == (None, cancelled.updated_at)


async def test_two_replicas_close_a_mailing_once(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    assert not await while_held(
        db, lambda conn: mailings.close(conn, mailing_id), lambda conn: mailings.close(conn, mailing_id)
    )


async def test_the_last_slice_and_the_close_do_not_miss_each_other(db: Pool) -> None:
    await insert_clients(db, 2)
    mailing = await create(db)
    await audience.begin_due(db)
    (unplanned,) = await audience.unplanned(db)
    closed = await while_held(
        db,
        lambda conn: plan_slice(conn, unplanned, 5, 100),
        lambda conn: mailings.close(conn, mailing.id),
    )
    assert not closed
    assert not await ledger_errors(db)


async def test_what_is_left_over_at_the_end_expires(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch), result(batch, ids[0]))
    await db.execute("UPDATE mailings SET ends_at = now()")
    assert await mailings.finish_ended(db) == [mailing_id]
    assert not await ledger_errors(db)
    assert await queue.claim(db, ME, after=0) == []
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[1]))
    assert (recorded.status, recorded.watermark) == ("finished", 2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert not await ledger_errors(db)


# ---- time and waking ----------------------------------------------------------------------------------------------


async def test_the_next_start_or_end_that_is_ahead(db: Pool) -> None:
    assert await mailings.seconds_to_next(db) is None
    for status in ("draft", "finished", "cancelled"):
        await insert_mailing(db, status, starts_in=5, ends_in=9)
    assert await mailings.seconds_to_next(db) is None
    for status, starts_in, ends_in, expected in (
        ("paused", -5, 900, 900),
        ("scheduled", 300, 600, 300),
        ("running", -5, 200, 200),
        ("scheduled", -5, 100, 100),  # begun at once by whoever looks
        ("running", -5, -1, 0),
    ):
        await insert_mailing(db, status, starts_in=starts_in, ends_in=ends_in)
        seconds = await mailings.seconds_to_next(db)
        assert seconds is not None
        assert max(0, expected - 2) <= seconds <= expected


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
