"""Statistics: each scenario states its counters and batches, then the numbers that follow from them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from notifier.errors import NotFound
from notifier.models import MailingStatus, Status
from notifier.storage import mailings, statistics
from notifier.storage.database import Db, Pool
from notifier.storage.statistics import Failure, Line, Point, Step, Totals


async def insert_mailing(db: Db, status: str = "running", audience: int = 0, planned: bool = True) -> int:
    mailing_id: int = await db.fetchval(
        """
        WITH m AS (
            INSERT INTO mailings (name, starts_at, ends_at, status, audience, planned)
            VALUES ('a', now() - interval '1h', now() + interval '1h', $1::text::mailing_status, $2, $3)
            RETURNING id
        ), t AS (INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Hi' FROM m)
        SELECT id FROM m
        """,
        status,
        audience,
        planned,
    )
    return mailing_id


async def insert_counters(db: Db, mailing_id: int, **numbers: int) -> None:
    """Each number is spread over two slots, as two replicas would."""
    for state, n in numbers.items():
        for slot, part in ((0, n // 3), (5, n - n // 3)):
            await db.execute(
                "INSERT INTO counters VALUES ($1, $2, $3::text::message_state, $4, now(), now())",
                mailing_id,
                slot,
                state,
                part,
            )


async def insert_owned(db: Db, mailing_id: int, state: str, watermark: int, done: int) -> None:
    await db.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, owner, replica, watermark,
                             done)
        VALUES ($1, now(), 1, 100, 100, 1, $2::text::message_state, 1, 1, $3, $4)
        """,
        mailing_id,
        state,
        watermark,
        done,
    )


def numbers(messages: dict[Status, int]) -> dict[str, int]:
    assert list(messages) == list(Status)
    return {status.value: n for status, n in messages.items() if n}


COUNTERS = {
    "retrying": 20,
    "doubtful": 10,
    "sent": 30,
    "delivered": 3,
    "undelivered": 2,
    "failed": 5,
    "suppressed": 1,
    "unknown": 4,
}
FINAL = {"sent": 30, "delivered": 3, "undelivered": 2, "failed": 5, "suppressed": 1, "sending": 12}


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        ("running", {**FINAL, "waiting": 21, "retrying": 22, "unknown": 4}),
        ("paused", {**FINAL, "waiting": 21, "retrying": 22, "unknown": 4}),
        ("finished", {**FINAL, "expired": 21 + 15, "unknown": 4 + 7}),
        ("cancelled", {**FINAL, "cancelled": 21 + 15, "unknown": 4 + 7}),
    ],
)
async def test_every_status_is_named_and_the_sum_is_the_audience(
    db: Pool, status: str, expected: dict[str, int]
) -> None:
    """Sending is taken off the counters that the owned batches name: 4 waiting, 5 retrying, 3 in doubt."""
    mailing_id = await insert_mailing(db, status, audience=100)
    await insert_counters(db, mailing_id, **COUNTERS)
    await insert_owned(db, mailing_id, "waiting", watermark=50, done=46)
    await insert_owned(db, mailing_id, "retrying", watermark=5, done=0)
    await insert_owned(db, mailing_id, "doubtful", watermark=3, done=0)

    found = await statistics.of_mailing(db, mailing_id)

    assert numbers(found.messages) == expected
    assert found.audience == sum(found.messages.values()) == 100
    assert (await statistics.of_mailings(db, None, 10)) == [
        Line(mailing_id, "a", MailingStatus(status), 100, found.messages)
    ]
    assert await statistics.totals(db) == Totals(100, found.messages)


async def test_a_draft_has_nothing(db: Pool) -> None:
    mailing_id = await insert_mailing(db, "draft", planned=False)

    found = await statistics.of_mailing(db, mailing_id)

    assert (found.audience, found.planned, numbers(found.messages)) == (0, False, {})
    assert (found.failures, found.rate, found.series) == ([], 0.0, [])
    assert (found.forecast_finish_at, found.first_sent_at, found.last_sent_at) == (None, None, None)


async def test_a_deleted_mailing_is_nowhere(db: Pool) -> None:
    mailing_id = await insert_mailing(db, audience=7)
    await insert_counters(db, mailing_id, sent=3)
    await mailings.delete(db, mailing_id)

    with pytest.raises(NotFound):
        await statistics.of_mailing(db, mailing_id)
    assert await statistics.of_mailings(db, None, 10) == []
    assert await statistics.totals(db) == Totals(0, dict.fromkeys(Status, 0))


async def test_totals_add_up_mailings_that_run_and_that_are_over(db: Pool) -> None:
    for status in ("running", "running", "finished", "cancelled", "draft"):
        mailing_id = await insert_mailing(db, status, audience=0 if status == "draft" else 10)
        if status != "draft":
            await insert_counters(db, mailing_id, sent=3, retrying=2, doubtful=1)
    await insert_owned(db, mailing_id - 4, "waiting", watermark=2, done=1)

    found = await statistics.totals(db)

    assert found.audience == 40
    assert numbers(found.messages) == {
        "waiting": 4 + 3,
        "sending": 1,
        "retrying": 3 + 3,
        "sent": 12,
        "expired": 4 + 2,
        "cancelled": 4 + 2,
        "unknown": 2,
    }
    lines = await statistics.of_mailings(db, None, 10)
    assert {status: sum(line.messages[status] for line in lines) for status in Status} == found.messages


async def test_mailings_are_paged_newest_first(db: Pool) -> None:
    ids = [await insert_mailing(db) for _ in range(5)]

    first = await statistics.of_mailings(db, None, 2)
    second = await statistics.of_mailings(db, first[-1].id, 2)

    assert [line.id for line in (*first, *second)] == ids[:0:-1]


async def test_failures_sum_to_failed(db: Pool) -> None:
    """5 failed in two slots; one `reset` was put down in the one and taken back in the other."""
    mailing_id = await insert_mailing(db, audience=9)
    await insert_counters(db, mailing_id, failed=5)
    rows = [(0, "rejected", 2), (1, "rejected", 2), (1, "declined", 1), (0, "reset", 1), (1, "reset", -1)]
    await db.executemany("INSERT INTO failures VALUES ($1, $2, $3, $4)", [(mailing_id, *row) for row in rows])

    found = await statistics.of_mailing(db, mailing_id)

    assert found.failures == [Failure("rejected", 4), Failure("declined", 1)]
    assert sum(failure.count for failure in found.failures) == found.messages[Status.FAILED]


async def test_first_and_last_sent_are_of_the_sent_alone(db: Pool) -> None:
    at = datetime(2026, 3, 1, 9, tzinfo=UTC)
    minute = timedelta(minutes=1)
    mailing_id = await insert_mailing(db, audience=9)
    rows = [
        (0, "sent", 1, at + minute, at + 2 * minute),
        (1, "sent", 1, at, at + minute),
        (0, "retrying", 1, at - minute, at + 9 * minute),
    ]
    await db.executemany("INSERT INTO counters VALUES ($1, $2, $3, $4, $5, $6)", [(mailing_id, *row) for row in rows])

    found = await statistics.of_mailing(db, mailing_id)

    assert (found.first_sent_at, found.last_sent_at) == (at, at + 2 * minute)


async def test_the_rate_slides_over_ten_seconds(db: Pool) -> None:
    """Now is 4 s into a row: all 40 of it and 6 tenths of the 100 before it lie in the last 10 s; 30 wait."""
    async with db.acquire() as connection, connection.transaction():
        # now() stands still in a transaction, and every row is put where it is seen from there
        mailing_id = await insert_mailing(connection, audience=140)
        await insert_counters(connection, mailing_id, sent=108, failed=2)
        await connection.execute(
            """
            INSERT INTO series SELECT $1, slot, now() - seconds * interval '1 second', sent, failed
            FROM (VALUES (0, 4, 30, 0), (1, 4, 9, 1), (0, 14, 99, 1), (0, 24, 500, 0))
                AS r (slot, seconds, sent, failed)
            """,
            mailing_id,
        )

        found = await statistics.of_mailing(connection, mailing_id)

        assert found.rate == 10.0
        now = await connection.fetchval("SELECT now()")
        assert found.forecast_finish_at == now + timedelta(seconds=3)
        for change in ("planned = false", "planned = true, status = 'paused'"):
            await connection.execute(f"UPDATE mailings SET {change}")
            assert (await statistics.of_mailing(connection, mailing_id)).forecast_finish_at is None


@pytest.mark.parametrize("gap", [14, 24])
async def test_there_is_no_forecast_before_the_rate_is_of_ten_seconds_of_sending(db: Pool, gap: int) -> None:
    """Sending began, or went on after a pause, in the row of 4 s or of 14 s ago: the last 10 s are not all of it."""
    async with db.acquire() as connection, connection.transaction():
        mailing_id = await insert_mailing(connection, audience=1_000)
        await insert_counters(connection, mailing_id, sent=100)
        rows = [(mailing_id, seconds) for seconds in (4, 14, 24, 34)]
        insert = "INSERT INTO series SELECT $1, 0, now() - $2 * interval '1 second', 50, 0"
        await connection.executemany(insert, [row for row in rows if row[1] != gap])
        found = await statistics.of_mailing(connection, mailing_id)
        assert found.rate > 0
        assert found.forecast_finish_at is None
        await connection.execute(insert, mailing_id, gap)
        assert (await statistics.of_mailing(connection, mailing_id)).forecast_finish_at is not None


async def test_a_series_has_points_of_the_width_asked_for(db: Pool) -> None:
    """Rows of ten seconds and two slots, over two hours and two days, in UTC."""
    mailing_id = await insert_mailing(db, audience=9)
    day = datetime(2026, 3, 1, tzinfo=UTC)
    times = [
        timedelta(hours=9),
        timedelta(hours=9, seconds=50),
        timedelta(hours=9, minutes=1),
        timedelta(hours=33),
    ]
    await db.executemany(
        "INSERT INTO series VALUES ($1, $2, $3, $4, $5)",
        [(mailing_id, slot, day + time, 2, slot) for time in times for slot in (0, 1)],
    )

    async def series(step: Step) -> list[Point]:
        return (await statistics.of_mailing(db, mailing_id, step)).series

    assert await series(Step.MINUTE) == [
        Point(day + timedelta(hours=9), 8, 2),
        Point(day + timedelta(hours=9, minutes=1), 4, 1),
        Point(day + timedelta(hours=33), 4, 1),
    ]
    assert await series(Step.HOUR) == [
        Point(day + timedelta(hours=9), 12, 3),
        Point(day + timedelta(hours=33), 4, 1),
    ]
    assert await series(Step.DAY) == [Point(day, 12, 3), Point(day + timedelta(days=1), 4, 1)]


async def test_a_series_ends_at_its_newest_thousand_points(db: Pool) -> None:
    mailing_id = await insert_mailing(db, audience=9)
    await db.execute(
        "INSERT INTO series SELECT $1, 0, '2026-03-01Z'::timestamptz + m * interval '1 minute', 1, 0 "
        "FROM generate_series(1, 1200) m",
        mailing_id,
    )

    series = (await statistics.of_mailing(db, mailing_id)).series

    start = datetime(2026, 3, 1, tzinfo=UTC)
    assert [point.at for point in series] == [start + timedelta(minutes=m) for m in range(201, 1201)]


async def test_a_series_reads_no_more_the_longer_a_mailing_sends(db: Pool) -> None:
    """A week without a pause, by two replicas: the newest thousand minutes are whole, and all that is read."""
    mailing_id = await insert_mailing(db, audience=9)
    await db.execute("INSERT INTO counters SELECT $1, slot, 'sent', 1 FROM generate_series(1, 2) slot", mailing_id)
    await db.execute(
        """
        INSERT INTO series SELECT $1, slot, '2026-03-01Z'::timestamptz + n * interval '10 seconds', 1, 0
        FROM generate_series(1, 60480) n, generate_series(1, 2) slot
        """,
        mailing_id,
    )
    await db.execute("VACUUM ANALYZE series, counters")
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'series'"
    async with db.acquire() as connection, connection.transaction():
        for plan in ("force_custom_plan", "force_generic_plan"):
            await connection.execute(f"SET LOCAL plan_cache_mode = {plan}")
            start = await connection.fetchval(read)
            series = (await statistics.of_mailing(connection, mailing_id)).series
            assert await connection.fetchval(read) - start <= 15_000, plan
            assert len(series) == 1_000
            assert {point.sent for point in series[:-1]} == {12}
