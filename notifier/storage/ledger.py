"""Ledger rows that are not written out of an owned batch: late results, an operator's decisions.

The rows of a message are numbered 1, 2, 3 without a gap. Whoever inserts (message, last + 1) makes the transition of
its standing and the counter's delta; the loser of that race reads again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import asyncpg

from notifier.errors import Conflict, NotFound
from notifier.models import IN_DOUBT, MAX_IN_DOUBT, OPEN_STANDINGS, OVER, MailingStatus, Outcome, Reason, Standing
from notifier.storage.database import Db, transaction
from notifier.storage.mailings import CHANNEL
from notifier.storage.queue import Result

# How often a lost race for the next number is run again; every loss means that somebody else got ahead.
RACES = 20


async def mine(db: Db, replica: int, keys: Sequence[tuple[int, int, datetime]]) -> set[tuple[int, int, datetime]]:
    """Which of the (message, seq, started_at) this replica has written already.

    It is how a commit is noticed whose acknowledgement was lost.
    """
    if not keys:
        return set()
    rows = await db.fetch(
        """
        SELECT a.message_id, a.seq, a.started_at
        FROM unnest($2::bigint[], $3::smallint[], $4::timestamptz[]) k (id, seq, at)
        JOIN attempts a ON a.message_id = k.id AND a.seq = k.seq AND a.started_at = k.at AND a.replica = $1
        """,
        replica,
        *(list(column) for column in zip(*keys, strict=True)),
    )
    return {(row["message_id"], row["seq"], row["started_at"]) for row in rows}


def standing_after(last: Standing, new: Standing, *, doubts: int) -> Standing:
    """The standing after a late truth: an acceptance always counts, and nothing but it overrules a final one.

    `unknown` is final only for want of better, so whatever is known later overrules it. ``doubts`` are the requests
    that left open whether the text was sent; the late truth settles one of them, and says nothing of the others.
    """
    if last in (Standing.SENT, Standing.DELIVERED, Standing.UNDELIVERED):
        return last
    if new is Standing.SENT or last in OPEN_STANDINGS or last is Standing.UNKNOWN:
        return _IN_DOUBT.get(new, new) if doubts > 1 else new
    return last


# What a truth that says "surely not sent" of one request leaves where another one is in doubt.
_IN_DOUBT = {Standing.RETRYING: Standing.DOUBTFUL, Standing.FAILED: Standing.UNKNOWN}


async def _written(conn: Db, replica: int, result: Result) -> bool:
    """Whether this late row is there already: its commit's acknowledgement was lost, and its number is not known."""
    return bool(
        await conn.fetchval(
            """
            SELECT EXISTS (
                SELECT FROM attempts
                WHERE message_id = $1 AND replica = $2 AND started_at = $3 AND outcome = $4
            )
            """,
            result.message_id,
            replica,
            result.started_at,
            result.outcome,
        )
    )


async def append_late(db: Db, replica: int, result: Result) -> bool:
    """Write a true result that came after its batch was lost, at last + 1; False when the message was purged.

    Where the message goes on, a batch of the number after that is added: the retry batch of a take-over waits with
    last + 1, and whoever loads it finds that number taken.
    """
    for _ in range(RACES):
        try:
            async with transaction(db) as conn:
                head = await _lock(conn, result.message_id)
                if head is None:
                    return False
                if await _written(conn, replica, result):
                    return True
                # what is under way is in doubt until its row is there
                standing = standing_after(head.standing, result.standing, doubts=head.doubts + head.marked)
                final = head.given_up or head.standing is Standing.UNKNOWN
                if standing is Standing.DOUBTFUL and result.outcome in IN_DOUBT and final:
                    standing = Standing.UNKNOWN  # its owner did not know what others did meanwhile
                await _write(
                    conn,
                    head,
                    replica,
                    result._replace(
                        standing=standing,
                        reason=Reason.LATE,
                        detail=f"{result.reason}: {result.detail}" if result.reason else result.detail,
                    ),
                )
                if standing in OPEN_STANDINGS:
                    await _enqueue(conn, head, standing, result.due_at)
                return True
        except asyncpg.UniqueViolationError:
            continue
    raise Conflict(f"Message {result.message_id} changes faster than it can be written.")


Decision = Literal["sent", "failed", "again"]


async def resolve(db: Db, message_id: int, decision: Decision) -> None:
    """unknown → sent, failed, or waiting for another try, by an operator's word.

    Raises NotFound, and Conflict unless the message is unknown, or for ``again`` after the mailing's end.
    """
    for _ in range(RACES):
        try:
            async with transaction(db) as conn:
                head = await _lock(conn, message_id)
                if head is None or head.deleted:
                    raise NotFound(f"There is no message {message_id}.")
                over = head.status in OVER
                doubtful = over and head.standing is Standing.DOUBTFUL and not head.marked
                if head.standing is not Standing.UNKNOWN and not doubtful:
                    raise Conflict("Only a message that is unknown can be resolved.")
                if decision == "again" and (head.status is MailingStatus.CANCELLED or head.ends_at <= head.now):
                    raise Conflict("The mailing is over; the message cannot be sent again.")
                standing = {"sent": Standing.SENT, "failed": Standing.FAILED, "again": Standing.DOUBTFUL}[decision]
                row = Result(
                    batch_id=0,
                    message_id=message_id,
                    outcome=Outcome.RESOLVED,
                    standing=standing,
                    started_at=head.now,
                    duration_ms=None,
                    phone=None,
                    text_version=None,
                    status_code=None,
                    reason=Reason.OPERATOR,
                    detail=None,
                    due_at=None,
                )
                await _write(conn, head, None, row)
                if decision == "again":
                    await _enqueue(conn, head, standing, None)
                return
        except asyncpg.UniqueViolationError:
            continue
    raise Conflict(f"Message {message_id} changes faster than it can be written.")


class _Head:
    """The end of a message's ledger, read under the locks of its mailing and of the batch that holds the message."""

    def __init__(self, mailing: asyncpg.Record, last: asyncpg.Record, batch: asyncpg.Record | None) -> None:
        self.message_id: int = mailing["message_id"]
        self.mailing_id: int = mailing["id"]
        self.status = MailingStatus(mailing["status"])
        self.ends_at: datetime = mailing["ends_at"]
        self.deleted: bool = mailing["deleted_at"] is not None
        self.now: datetime = mailing["now"]
        self.seq: int = last["seq"]
        self.standing = Standing(last["standing"])
        self.doubts: int = last["doubts"]
        self.batch_id: int | None = batch["id"] if batch else None
        self.marked: bool = bool(batch and batch["marked"])
        # Whether one more doubt, told late, is one too many; what is under way counts as one.
        self.given_up: bool = last["requests"] + self.marked >= MAX_IN_DOUBT


async def _lock(conn: Db, message_id: int) -> _Head | None:
    """Lock in the order that all keep: mailing, batch, ledger; None when the message is not there any more."""
    mailing = await conn.fetchrow(
        """
        SELECT g.id AS message_id, m.id, m.status, m.ends_at, m.deleted_at, clock_timestamp() AS now
        FROM messages g JOIN mailings m ON m.id = g.mailing_id WHERE g.id = $1 FOR UPDATE OF m
        """,
        message_id,
    )
    before = await _last(conn, message_id)
    if mailing is None or before is None:  # purged, perhaps while the lock was waited for
        return None
    batch = await _batch(conn, mailing["id"], before["seq"] + 1, message_id)
    if batch is None and before["standing"] in OPEN_STANDINGS:
        # It was split while its lock was waited for; only a younger statement sees the part that holds the message.
        batch = await _batch(conn, mailing["id"], before["seq"] + 1, message_id)
    # Read again: its owner may have recorded while the lock was waited for; then the batch is not the one of last + 1.
    after = await _last(conn, message_id)
    if after is None or after != before:
        raise asyncpg.UniqueViolationError("somebody else wrote the next row")
    return _Head(mailing, after, batch)


async def _last(conn: Db, message_id: int) -> asyncpg.Record | None:
    return await conn.fetchrow(
        """
        SELECT coalesce(max(a.seq), 0) AS seq,
               coalesce((array_agg(a.standing ORDER BY a.seq DESC))[1], 'waiting') AS standing,
               count(*) FILTER (WHERE a.outcome IN ('unknown', 'interrupted')) AS doubts,
               -- in doubt with one that is told late now, less those that an operator let go: a late row is the second
               -- one of a request that was interrupted
               1 + count(*) FILTER (WHERE a.outcome = 'unknown') - count(*) FILTER (WHERE a.outcome = 'resolved')
                   + greatest(0, count(*) FILTER (WHERE a.outcome = 'interrupted')
                                 - count(*) FILTER (WHERE a.reason = 'late') - 1) AS requests
        FROM messages g LEFT JOIN attempts a ON a.message_id = g.id WHERE g.id = $1 GROUP BY g.id
        """,
        message_id,
    )


async def _batch(conn: Db, mailing_id: int, seq: int, message_id: int) -> asyncpg.Record | None:
    return await conn.fetchrow(
        """
        SELECT id, coalesce(array_position(ids, $3), $3 - first_id + 1) <= mark AS marked FROM batches
        WHERE mailing_id = $1 AND seq = $2 AND $3 BETWEEN first_id AND last_id AND (ids IS NULL OR ids @> ARRAY[$3])
        FOR UPDATE
        """,
        mailing_id,
        seq,
        message_id,
    )


async def _write(conn: Db, head: _Head, replica: int | None, row: Result) -> None:
    """Insert (message, last + 1) with the counters' deltas; its batch learns that the row is there."""
    slot = (replica or 0) % 8
    await conn.execute(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, phone, duration_ms, replica, text_version, outcome,
                              standing, seq, status_code, reason, detail)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
        """,
        row.message_id,
        head.mailing_id,
        row.started_at,
        row.phone,
        row.duration_ms,
        replica,
        row.text_version,
        row.outcome,
        row.standing,
        head.seq + 1,
        row.status_code,
        row.reason,
        row.detail,
    )
    if head.batch_id is not None:
        await conn.execute(
            "UPDATE batches SET late = late + 1, done = done + $2::int WHERE id = $1",
            head.batch_id,
            int(head.marked),
        )
    if row.standing is head.standing:
        return
    # In the order in which a record of the same slot locks these rows, or the two could wait for each other.
    if row.standing in (Standing.SENT, Standing.FAILED):
        await conn.execute(
            """
            INSERT INTO series (mailing_id, slot, at, sent, failed)
            VALUES ($1, $2, date_bin('10 seconds', now(), 'epoch'), $3, $4)
            ON CONFLICT (mailing_id, at, slot) DO UPDATE
            SET sent = series.sent + excluded.sent, failed = series.failed + excluded.failed
            """,
            head.mailing_id,
            slot,
            int(row.standing is Standing.SENT),
            int(row.standing is Standing.FAILED),
        )
    if Standing.FAILED in (head.standing, row.standing):
        await _count_failure(conn, head, slot, row)
    await conn.execute(
        """
        INSERT INTO counters (mailing_id, slot, standing, n, first_at, last_at)
        SELECT $1, $2, standing, n, now(), now()
        FROM (VALUES ($3::standing, -1), ($4::standing, 1)) d (standing, n) WHERE standing <> 'waiting'
        ORDER BY standing
        ON CONFLICT (mailing_id, slot, standing) DO UPDATE SET n = counters.n + excluded.n, last_at = now()
        """,
        head.mailing_id,
        slot,
        head.standing,
        row.standing,
    )


async def _count_failure(conn: Db, head: _Head, slot: int, row: Result) -> None:
    """Failures by reason follow the standing: the row that failed it gives the reason, also when it is overruled."""
    delta, reason = 1, row.reason
    if head.standing is Standing.FAILED:
        delta = -1
        reason = await conn.fetchval(
            """
            SELECT reason FROM attempts WHERE message_id = $1 AND seq <= $2 AND standing = 'failed'
            ORDER BY seq LIMIT 1
            """,
            row.message_id,
            head.seq,
        )
    await conn.execute(
        """
        INSERT INTO failures (mailing_id, slot, reason, n) VALUES ($1, $2, $3, $4)
        ON CONFLICT (mailing_id, slot, reason) DO UPDATE SET n = failures.n + excluded.n
        """,
        head.mailing_id,
        slot,
        reason or "unknown",
        delta,
    )


async def _enqueue(conn: Db, head: _Head, standing: Standing, due_at: datetime | None) -> None:
    """A batch for the try after the row just written, due now without ``due_at``; the mailing's lock keeps `close` off.

    A mailing that was closed already because nothing was left goes on, unless its end has come or it was deleted.
    """
    await conn.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, standing)
        VALUES ($1, coalesce($2, now()), $3, $3, 1, $4, $5)
        """,
        head.mailing_id,
        due_at,
        head.message_id,
        head.seq + 2,
        standing,
    )
    await conn.execute(
        """
        UPDATE mailings SET status = 'running', status_reason = NULL, over_at = NULL, archived_at = NULL
        WHERE id = $1 AND status = 'finished' AND ends_at > now() AND deleted_at IS NULL
        """,
        head.mailing_id,
    )
    await conn.execute("SELECT pg_notify($1, '')", CHANNEL)
