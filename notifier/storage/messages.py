"""Messages as people see them: put together from the recipients, the queue and the ledger (docs/delivery.md).

A page costs the same wherever it lies and however large the mailing is: its ids come from `message_lists.py`, and
`_described` reads those ids only.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

import asyncpg

from notifier.errors import Code, Invalid, NotFound, Problem
from notifier.models import (
    INT64_MAX,
    OPEN_STATES,
    OVER,
    REQUESTS,
    Attempt,
    MailingStatus,
    Message,
    MessageState,
    Outcome,
    Reason,
    Status,
    status_of,
)
from notifier.storage import message_lists
from notifier.storage.database import Db
from notifier.storage.message_lists import Cursor

IN_LEDGER = frozenset({Status.FAILED, Status.UNKNOWN, Status.SUPPRESSED, Status.DELIVERED, Status.UNDELIVERED})
WHY_OVER = {Status.EXPIRED: Reason.ENDED, Status.CANCELLED: Reason.CANCELLED}
"""The reason of a message whose ledger rows say nothing else."""
CURSOR_SIZES = {status: {3} for status in Status} | {status: {1} for status in (*IN_LEDGER, Status.SENT)}
CURSOR_SIZES[Status.UNKNOWN] = {1, 3}  # first the batches, then the ledger


async def get(db: Db, message_id: int) -> Message:
    """One message with its timeline and its text, in one snapshot. Raises NotFound, also when its mailing was deleted.

    The text is that of the last request, else of the mailing as it reads now: an edit reaches what is not sent yet.
    """
    for message in await _described(db, [message_id], timeline=True):
        return message
    raise NotFound(Code.NO_MESSAGE, id=message_id)


async def started_last(db: Db, mailing_id: int, limit: int) -> list[Message]:
    """Of a mailing under way, the messages with the highest ids of which something has happened.

    Ids are sent in their order, but for local hours and retries: so these are about those that were started last.
    """
    ids = await db.fetch(
        """
        SELECT begun.message_id AS id
        FROM slices s CROSS JOIN LATERAL (
            SELECT DISTINCT message_id FROM attempts WHERE message_id BETWEEN s.first_id AND s.last_id
            ORDER BY message_id DESC LIMIT $2
        ) begun
        WHERE s.mailing_id = $1 ORDER BY s.first_id DESC, begun.message_id DESC LIMIT $2
        """,
        mailing_id,
        limit,
    )
    return await _described(db, [row["id"] for row in ids])


async def of_mailing(
    db: Db, mailing_id: int, status: Status | None, cursor: Cursor | None, limit: int
) -> tuple[list[Message], Cursor | None]:
    """A page of a mailing's messages, newest first, and the cursor of the next; None at the end.

    With ``status`` only those that stand there now; such a page may be short or empty before the end. Raises
    NotFound, also for a deleted mailing, and Invalid for the cursor of another list.
    """
    _check(cursor, CURSOR_SIZES[status] if status else {1})
    name = await db.fetchval("SELECT status FROM mailings WHERE id = $1 AND deleted_at IS NULL", mailing_id)
    if name is None:
        raise NotFound(Code.NO_MAILING, id=mailing_id)
    if status is None:
        ids, following = await message_lists.everything(db, mailing_id, cursor or (INT64_MAX,), limit)
    elif status is Status.SENT:
        ids, following = await message_lists.sent(db, mailing_id, cursor or (INT64_MAX,), limit)
    elif status is Status.SENDING:
        ids, following = await message_lists.sending(db, mailing_id, cursor or (INT64_MAX,) * 3, limit)
    else:
        ids, following = [], None
        states = [s for s in OPEN_STATES if status_of(s, MailingStatus(name)) is status]
        if states and (cursor is None or len(cursor) == 3):
            ids, following = await message_lists.in_batches(db, mailing_id, states, cursor or (INT64_MAX,) * 3, limit)
            cursor = None
        if status in IN_LEDGER and following is None:
            more, following = await message_lists.in_ledger(
                db, mailing_id, status, cursor or (INT64_MAX,), limit - len(ids)
            )
            ids += more
    # A message may have gone on since its id was read.
    return [m for m in await _described(db, ids) if status in (None, m.status)], following


async def of_client(db: Db, client_id: int, cursor: Cursor | None, limit: int) -> tuple[list[Message], Cursor | None]:
    """A page of a client's messages, newest mailing first, and the cursor of the next; None at the end.

    Messages outlive their client. Raises NotFound when there is neither, Invalid for another list's cursor.
    """
    _check(cursor, {1})
    rows = await db.fetch(
        """
        SELECT g.id, g.mailing_id
        FROM messages g JOIN mailings m ON m.id = g.mailing_id AND m.deleted_at IS NULL
        WHERE g.client_id = $1 AND g.mailing_id < $2
        ORDER BY g.mailing_id DESC LIMIT $3
        """,
        client_id,
        cursor[0] if cursor else INT64_MAX,
        limit + 1,
    )
    if not rows and not await db.fetchval(
        """
        SELECT EXISTS (SELECT FROM clients WHERE id = $1)
            OR EXISTS (SELECT FROM messages WHERE client_id = $1)
        """,
        client_id,
    ):
        raise NotFound(Code.NO_CLIENT, id=client_id)
    page = rows[:limit]
    following = (page[-1]["mailing_id"],) if len(rows) > limit else None
    return await _described(db, [row["id"] for row in page]), following


def _check(cursor: Cursor | None, sizes: set[int]) -> None:
    if cursor is not None and (len(cursor) not in sizes or not all(0 <= part <= INT64_MAX for part in cursor)):
        raise Invalid([Problem("cursor", Code.CURSOR_ELSEWHERE, parameter=True)])


async def _described(db: Db, ids: Sequence[int], *, timeline: bool = False) -> list[Message]:
    """The messages with these ids, in their order, in one snapshot; those of deleted mailings are left out.

    An open message lies in the batch with its next number, looked for from its id downwards: it is one of the
    first there.
    """
    rows = await db.fetch(
        """
        SELECT g.id, g.mailing_id, g.client_id, c.phone, m.status AS mailing, slice.created_at,
               ledger.attempts, batch.due_at, batch.marked, m.over_at,
               CASE WHEN $2 THEN (
                   SELECT text FROM mailing_texts
                   WHERE mailing_id = g.mailing_id AND version = coalesce(ledger.text_version, m.text_version)
               ) END AS text
        FROM unnest($1::bigint[]) WITH ORDINALITY wanted (id, position)
        JOIN messages g ON g.id = wanted.id
        JOIN mailings m ON m.id = g.mailing_id AND m.deleted_at IS NULL
        LEFT JOIN clients c ON c.id = g.client_id
        CROSS JOIN LATERAL (
            SELECT coalesce(max(seq), 0) AS seq, (array_agg(state ORDER BY seq DESC))[1] AS state,
                   (array_agg(text_version ORDER BY seq DESC) FILTER (WHERE text_version IS NOT NULL))[1]
                       AS text_version,
                   coalesce(array_agg(row(seq, started_at, outcome::text, state::text, reason, detail,
                                          status_code, duration_ms, phone) ORDER BY seq), '{}') AS attempts
            FROM attempts WHERE message_id = g.id
        ) ledger
        LEFT JOIN LATERAL (
            SELECT created_at FROM slices WHERE mailing_id = g.mailing_id AND first_id <= g.id
            ORDER BY first_id DESC LIMIT 1
        ) slice ON true
        LEFT JOIN LATERAL (
            SELECT CASE WHEN owner IS NULL THEN due_at END AS due_at,
                   g.id <= coalesce(ids[watermark], first_id + watermark - 1) AS marked
            FROM batches
            WHERE mailing_id = g.mailing_id AND seq = ledger.seq + 1 AND first_id <= g.id AND last_id >= g.id
              AND (ids IS NULL OR g.id = ANY(ids))
              AND coalesce(ledger.state, 'waiting') IN ('waiting', 'retrying', 'doubtful')
            ORDER BY first_id DESC LIMIT 1
        ) batch ON true
        ORDER BY wanted.position
        """,
        ids,
        timeline,
    )
    return [_message(row, timeline) for row in rows]


def _message(row: asyncpg.Record, timeline: bool) -> Message:
    attempts = [_attempt(attempt) for attempt in row["attempts"]]
    phones = [phone for *_, phone in row["attempts"] if phone is not None]
    states = [MessageState(state) for _, _, _, state, *_ in row["attempts"]]
    mailing = MailingStatus(row["mailing"])
    sending = bool(row["marked"])
    status = status_of(states[-1] if states else MessageState.WAITING, mailing, sending=sending)
    reason = attempts[-1].reason if attempts else None
    if reason in (None, Reason.ENDED) and status in WHY_OVER:  # 0.1.0 wrote `ended` for a cancelled one, too
        reason = WHY_OVER[status]
    return Message(
        id=row["id"],
        mailing_id=row["mailing_id"],
        client_id=row["client_id"],
        phone=None if row["phone"] is None else [row["phone"], *phones][-1],
        status=status,
        reason=reason,
        attempts=sum(attempt.outcome in REQUESTS for attempt in attempts) + sending,
        created_at=row["created_at"],
        next_attempt_at=row["due_at"] if mailing not in OVER else None,
        sent_at=next((_end(a) for a, s in zip(attempts, states, strict=True) if s is MessageState.SENT), None),
        changed_at=_changed_at(status, attempts, row["over_at"]),
        text=row["text"],
        timeline=attempts if timeline else [],
    )


def _changed_at(status: Status, attempts: list[Attempt], over_at: datetime | None) -> datetime | None:
    if status in (Status.WAITING, Status.SENDING, Status.RETRYING):
        return None
    ends = [_end(attempts[-1])] if attempts else []
    # What was not sent in time became so when its mailing was over.
    if over_at is not None and status in (Status.EXPIRED, Status.CANCELLED):
        ends.append(over_at)
    return max(ends, default=over_at)


def _attempt(row: asyncpg.Record) -> Attempt:
    seq, at, outcome, state, reason, detail, status_code, duration_ms, _ = row
    return Attempt(
        seq=seq,
        at=at,
        outcome=Outcome(outcome),
        status=status_of(MessageState(state), MailingStatus.RUNNING),
        reason=reason,
        detail=detail,
        status_code=status_code,
        duration_ms=duration_ms,
    )


def _end(attempt: Attempt) -> datetime:
    return attempt.at + timedelta(milliseconds=attempt.duration_ms or 0)
