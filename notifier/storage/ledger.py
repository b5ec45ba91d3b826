"""Ledger rows that are not written out of an owned batch: late results, an operator's decisions.

The rows of a message are numbered 1, 2, 3 without a gap. Whoever inserts (message, last + 1) makes the transition of
its state and the counter's delta; the loser of that race reads again.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal

import asyncpg

from notifier import policy
from notifier.errors import Code, Conflict, NotFound
from notifier.models import IN_DOUBT, MAX_IN_DOUBT, OPEN_STATES, OVER, MailingStatus, MessageState, Outcome, Reason
from notifier.storage.database import Db, transaction
from notifier.storage.literals import listed
from notifier.storage.mailings import CHANNEL
from notifier.storage.recording import Result

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
                state = policy.after_late(head.state, result.state, doubts=head.doubts + head.marked)
                final = head.given_up or head.state is MessageState.UNKNOWN
                if state is MessageState.DOUBTFUL and result.outcome in IN_DOUBT and final:
                    state = MessageState.UNKNOWN  # its owner did not know what others did meanwhile
                await _write(
                    conn,
                    head,
                    replica,
                    result._replace(
                        state=state,
                        reason=Reason.LATE,
                        detail=f"{result.reason}: {result.detail}" if result.reason else result.detail,
                    ),
                )
                if state in OPEN_STATES:
                    await _enqueue(conn, head, state, result.due_at)
                return True
        except asyncpg.UniqueViolationError:
            continue
    raise Conflict(Code.CHANGES_TOO_FAST, id=result.message_id)


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
                    raise NotFound(Code.NO_MESSAGE, id=message_id)
                over = head.status in OVER
                doubtful = over and head.state is MessageState.DOUBTFUL and not head.marked
                if head.state is not MessageState.UNKNOWN and not doubtful:
                    raise Conflict(Code.MESSAGE_NOT_UNKNOWN)
                if decision == "again" and (head.status is MailingStatus.CANCELLED or head.ends_at <= head.now):
                    raise Conflict(Code.TOO_LATE_TO_SEND)
                state = {"sent": MessageState.SENT, "failed": MessageState.FAILED, "again": MessageState.DOUBTFUL}[
                    decision
                ]
                row = Result(
                    batch_id=0,
                    message_id=message_id,
                    outcome=Outcome.RESOLVED,
                    state=state,
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
                    await _enqueue(conn, head, state, None)
                return
        except asyncpg.UniqueViolationError:
            continue
    raise Conflict(Code.CHANGES_TOO_FAST, id=message_id)


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
        self.state = MessageState(last["state"])
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
    if batch is None and before["state"] in OPEN_STATES:
        # It was split while its lock was waited for; only a younger statement sees the part that holds the message.
        batch = await _batch(conn, mailing["id"], before["seq"] + 1, message_id)
    # Read again: its owner may have recorded while the lock was waited for; then the batch is not the one of last + 1.
    after = await _last(conn, message_id)
    if after is None or after != before:
        raise asyncpg.UniqueViolationError("somebody else wrote the next row")
    return _Head(mailing, after, batch)


async def _last(conn: Db, message_id: int) -> asyncpg.Record | None:
    return await conn.fetchrow(
        f"""
        SELECT coalesce(max(a.seq), 0) AS seq,
               coalesce((array_agg(a.state ORDER BY a.seq DESC))[1], 'waiting') AS state,
               count(*) FILTER (WHERE a.outcome IN ({listed(IN_DOUBT)})) AS doubts,
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
        SELECT id, coalesce(array_position(ids, $3), $3 - first_id + 1) <= watermark AS marked FROM batches
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
                              state, seq, status_code, reason, detail)
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
        row.state,
        head.seq + 1,
        row.status_code,
        row.reason,
        row.detail,
    )
    if head.batch_id is not None:
        await conn.execute(
            "UPDATE batches SET foreign_rows = foreign_rows + 1, done = done + $2::int WHERE id = $1",
            head.batch_id,
            int(head.marked),
        )
    if row.state is head.state:
        return
    # In the order in which a record of the same slot locks these rows, or the two could wait for each other.
    if row.state in (MessageState.SENT, MessageState.FAILED):
        await conn.execute(
            """
            INSERT INTO series (mailing_id, slot, at, sent, failed)
            VALUES ($1, $2, date_bin('10 seconds', now(), 'epoch'), $3, $4)
            ON CONFLICT (mailing_id, at, slot) DO UPDATE
            SET sent = series.sent + excluded.sent, failed = series.failed + excluded.failed
            """,
            head.mailing_id,
            slot,
            int(row.state is MessageState.SENT),
            int(row.state is MessageState.FAILED),
        )
    if MessageState.FAILED in (head.state, row.state):
        await _count_failure(conn, head, slot, row)
    await conn.execute(
        """
        INSERT INTO counters (mailing_id, slot, state, n, first_at, last_at)
        SELECT $1, $2, state, n, now(), now()
        FROM (VALUES ($3::message_state, -1), ($4::message_state, 1)) d (state, n) WHERE state <> 'waiting'
        ORDER BY state
        ON CONFLICT (mailing_id, slot, state) DO UPDATE SET n = counters.n + excluded.n, last_at = now()
        """,
        head.mailing_id,
        slot,
        head.state,
        row.state,
    )


async def _count_failure(conn: Db, head: _Head, slot: int, row: Result) -> None:
    """Failures by reason follow the state: the row that failed it gives the reason, also when it is overruled."""
    delta, reason = 1, row.reason
    if head.state is MessageState.FAILED:
        delta = -1
        reason = await conn.fetchval(
            """
            SELECT reason FROM attempts WHERE message_id = $1 AND seq <= $2 AND state = 'failed'
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


async def _enqueue(conn: Db, head: _Head, state: MessageState, due_at: datetime | None) -> None:
    """A batch for the try after the row just written, due now without ``due_at``; the mailing's lock keeps `close` off.

    A mailing that was closed already because nothing was left goes on, unless its end has come or it was deleted.
    """
    await conn.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
        VALUES ($1, coalesce($2, now()), $3, $3, 1, $4, $5)
        """,
        head.mailing_id,
        due_at,
        head.message_id,
        head.seq + 2,
        state,
    )
    await conn.execute(
        """
        UPDATE mailings SET status = 'running', status_reason = NULL, over_at = NULL, archived_at = NULL
        WHERE id = $1 AND status = 'finished' AND ends_at > now() AND deleted_at IS NULL
        """,
        head.mailing_id,
    )
    await conn.execute("SELECT pg_notify($1, '')", CHANNEL)
