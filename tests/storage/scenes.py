"""Scenes for the tests of storage: rows that say which message waits where, and the verbs in short."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from notifier.models import MessageState, Outcome, Reason, Window
from notifier.storage import audience, queue, recording
from notifier.storage.audience import Slice, Unplanned
from notifier.storage.database import Db
from notifier.storage.queue import Claimed
from notifier.storage.recording import BatchReport, Recorded, Result

AT = datetime(2026, 3, 1, 9, tzinfo=UTC)
LATER = datetime(2036, 3, 1, 9, tzinfo=UTC)
ME, PEER = 1, 2
"""Two replicas; neither needs a row to claim."""


async def insert_clients(
    db: Db, count: int, *, operator_code: str = "916", tags: Sequence[str] = (), timezone: str | None = None
) -> list[int]:
    """Insert ``count`` clients, and return their ids in order."""
    rows = await db.fetch(
        """
        INSERT INTO clients (phone, operator_code, tags, timezone)
        SELECT 79160000000 + coalesce((SELECT max(id) FROM clients), 0) + n, $2, $3, $4 FROM generate_series(1, $1) n
        RETURNING id
        """,
        count,
        operator_code,
        list(tags),
        timezone,
    )
    return [row["id"] for row in rows]


async def insert_mailing(
    db: Db,
    status: str = "running",
    *,
    starts_in: float = -3600,
    ends_in: float = 3600,
    over_for: float | None = None,
    planned: bool = True,
    priority: int = 0,
) -> int:
    """Insert a mailing; times in seconds from now, ``over_for`` seconds ago."""
    mailing_id: int = await db.fetchval(
        """
        WITH m AS (
            INSERT INTO mailings (starts_at, ends_at, status, planned, priority, over_at, horizon)
            VALUES (now() + $1 * interval '1 second', now() + $2 * interval '1 second', $3::text::mailing_status, $4,
                    $5, now() - $6 * interval '1 second', CASE WHEN $4 THEN 0 END)
            RETURNING id
        ), t AS (INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Hi' FROM m)
        SELECT id FROM m
        """,
        float(starts_in),
        float(ends_in),
        status,
        planned,
        priority,
        over_for,
    )
    return mailing_id


async def let_a_month_pass(db: Db) -> None:
    """What is deleted was deleted 31 days ago."""
    await db.execute("UPDATE mailings SET deleted_at = deleted_at - interval '31 days' WHERE deleted_at IS NOT NULL")


async def insert_messages(db: Db, mailing_id: int, count: int) -> list[int]:
    """Insert one slice of a mailing's messages to new clients, and return their ids."""
    clients = await insert_clients(db, count)
    first = await db.fetchval("SELECT coalesce(max(id), 0) + 1 FROM messages")
    await db.execute(
        "INSERT INTO messages SELECT $1 + n - 1, $2, c FROM unnest($3::bigint[]) WITH ORDINALITY u (c, n)",
        first,
        mailing_id,
        clients,
    )
    await db.execute("INSERT INTO slices VALUES ($1, $2, $3)", mailing_id, first, first + count - 1)
    await db.execute("UPDATE mailings SET audience = audience + $2 WHERE id = $1", mailing_id, count)
    await db.execute("UPDATE message_ids SET next = greatest(next, $1)", first + count)
    return list(range(first, first + count))


async def insert_batch(
    db: Db,
    mailing_id: int,
    ids: Sequence[int],
    *,
    seq: int = 1,
    state: str = "waiting",
    due_in: float = -1,
    replica: int | None = None,
    watermark: int = 0,
    done: int = 0,
) -> int:
    """Insert a batch: a range when ``ids`` is one, else a list; owned when there is a ``replica``."""
    batch_id: int = await db.fetchval(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, owner, replica, watermark, done,
                             ids)
        VALUES ($1, now() + $2 * interval '1 second', $3, $4, $5, $6, $7::text::message_state,
                CASE WHEN $8::int IS NOT NULL THEN nextval('owners') END, $8, $9, $10,
                $11)
        RETURNING id
        """,
        mailing_id,
        float(due_in),
        ids[0],
        ids[-1],
        len(ids),
        seq,
        state,
        replica,
        watermark,
        done,
        None if isinstance(ids, range) else list(ids),
    )
    return batch_id


async def insert_ledger(db: Db, mailing_id: int, message_id: int, *rows: tuple[str, str, str | None]) -> None:
    """Write the ledger of a message, (outcome, state, reason) each, and the books that belong to it."""
    before, failed_by = "waiting", None
    for seq, (outcome, state, reason) in enumerate(rows, 1):
        await db.execute(
            """
            INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq, reason)
            VALUES ($1, $2, now(), $3::text::outcome, $4::text::message_state, $5, $6)
            """,
            message_id,
            mailing_id,
            outcome,
            state,
            seq,
            reason,
        )
        for name, n in ((before, -1), (state, 1)):
            if name != "waiting" and before != state:
                await db.execute(
                    """
                    INSERT INTO counters VALUES ($1, 3, $2::text::message_state, $3, now(), now())
                    ON CONFLICT (mailing_id, slot, state) DO UPDATE SET n = counters.n + excluded.n
                    """,
                    mailing_id,
                    name,
                    n,
                )
        if state in ("sent", "failed") and before != state:
            await db.execute(
                """
                INSERT INTO series VALUES ($1, 3, date_bin('10 seconds', now(), 'epoch'), $2, $3)
                ON CONFLICT (mailing_id, at, slot) DO UPDATE
                SET sent = series.sent + excluded.sent, failed = series.failed + excluded.failed
                """,
                mailing_id,
                int(state == "sent"),
                int(state == "failed"),
            )
        if "failed" in (before, state) and before != state:
            failed_by = reason if state == "failed" else failed_by
            await db.execute(
                """
                INSERT INTO failures VALUES ($1, 3, $2, $3)
                ON CONFLICT (mailing_id, slot, reason) DO UPDATE SET n = failures.n + excluded.n
                """,
                mailing_id,
                failed_by,
                1 if state == "failed" else -1,
            )
        before = state


async def running(db: Db, *sizes: int, status: str = "running", priority: int = 0) -> tuple[int, list[int]]:
    """A planned mailing with due batches of these sizes: its id, and the ids of its messages."""
    mailing_id = await insert_mailing(db, status, priority=priority)
    ids = await insert_messages(db, mailing_id, sum(sizes)) if sizes else []
    start = 0
    for size in sizes:
        await insert_batch(db, mailing_id, range(ids[start], ids[start] + size))
        start += size
    return mailing_id, ids


async def adopt_all(db: Db, replica: int) -> list[queue.Claimed]:
    """Whatever anybody owns → owned by ``replica``."""
    return await queue.reclaim(db, replica, await queue.owned(db))


async def claim_one(db: Db, replica: int = ME) -> Claimed:
    """The one batch that is claimed now."""
    (batch,) = await queue.claim(db, replica, after=0)
    return batch


def report(
    batch: Claimed, watermark: int = 0, *, skipped: int = 0, release: bool = False, **changes: int
) -> BatchReport:
    """What the owner of a batch says, who asks for ``watermark`` (0: for none)."""
    words = {
        "batch_id": batch.id,
        "owner": batch.owner,
        "old_watermark": batch.watermark,
        "foreign_rows": batch.foreign_rows,
        **changes,
    }
    return BatchReport(new_watermark=watermark or batch.watermark, skipped=skipped, release=release, **words)


def result(
    batch: Claimed | int,
    message_id: int,
    outcome: str = "accepted",
    state: str = "sent",
    *,
    due_at: datetime | None = None,
    reason: str | None = None,
    **changes: Any,
) -> Result:
    """One answer of the gateway to a request for a message of ``batch``."""
    row = Result(
        batch_id=batch if isinstance(batch, int) else batch.id,
        message_id=message_id,
        outcome=Outcome(outcome),
        state=MessageState(state),
        started_at=AT,
        duration_ms=12,
        phone=79160000001,
        text_version=1,
        status_code=200,
        reason=None if reason is None else Reason(reason),
        detail=None,
        due_at=due_at,
    )
    return row._replace(**changes)


async def record_one(db: Db, report: BatchReport, *results: Result, replica: int = ME) -> Recorded:
    """Record what is to be said of one batch."""
    (recorded,) = await recording.record(db, replica, [report], results)
    return recorded


async def marked(db: Db, *sizes: int, watermark: int) -> tuple[int, list[int], Claimed]:
    """A running mailing whose first batch is ours and marked up to ``watermark``."""
    mailing_id, ids = await running(db, *sizes)
    batch = await claim_one(db)
    recorded = await record_one(db, report(batch, watermark))
    assert recorded.watermark == watermark
    return mailing_id, ids, batch


async def batches_of(db: Db, mailing_id: int) -> list[dict[str, Any]]:
    """All batches of a mailing, with the ids spelt out as ``members``."""
    rows = await db.fetch("SELECT * FROM batches WHERE mailing_id = $1 ORDER BY seq, first_id", mailing_id)
    return [dict(row, members=row["ids"] or list(range(row["first_id"], row["last_id"] + 1))) for row in rows]


async def ledger_of(db: Db, message_id: int) -> list[tuple[int, str, str, str | None]]:
    """The ledger of a message: (seq, outcome, state, reason)."""
    rows = await db.fetch(
        "SELECT seq, outcome, state, reason FROM attempts WHERE message_id = $1 ORDER BY seq", message_id
    )
    return [tuple(row) for row in rows]


async def set_status(db: Db, mailing_id: int, status: str) -> None:
    """Set a status past all rules."""
    await db.execute("UPDATE mailings SET status = $2::text::mailing_status WHERE id = $1", mailing_id, status)


def soon(seconds: float = 60) -> datetime:
    """So many seconds from now, by this process's clock."""
    return datetime.now(UTC) + timedelta(seconds=seconds)


def at_once(now: datetime, window: Window | None, timezone: str | None) -> datetime:
    """Everybody may be texted."""
    return now


async def plan_slice(db: Db, mailing: Unplanned, size: int, first_id: int, due_at: Any = at_once) -> Slice:
    """Choose the next slice of a mailing and write it."""
    slice_ = await audience.choose(db, mailing, size, due_at)
    await audience.store(db, slice_, first_id)
    return slice_
