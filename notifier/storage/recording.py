"""The record: results and watermarks of owned batches, written in one statement.

Why each condition of it is there is said in docs/invariants.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

import asyncpg

from notifier.models import MailingStatus, MessageState, Outcome, Reason
from notifier.storage.database import Db


class Result(NamedTuple):
    """One ledger row to be written; ``due_at`` also puts the message into a batch of the next number."""

    batch_id: int
    message_id: int
    outcome: Outcome
    state: MessageState
    started_at: datetime
    duration_ms: int | None
    phone: int | None
    text_version: int | None
    status_code: int | None
    reason: Reason | None
    detail: str | None
    due_at: datetime | None


class BatchReport(NamedTuple):
    """What an owner says of a batch with a record.

    ``new_watermark`` asks for leave to start further ids; ``skipped`` of those between the watermarks have their row
    already. ``release`` gives back what lies beyond the watermark; then ``skipped`` are rows below it that are not
    counted in ``done``.
    """

    batch_id: int
    owner: int
    old_watermark: int
    new_watermark: int
    skipped: int
    foreign_rows: int
    release: bool


class Recorded(NamedTuple):
    """What the record found; when not ``owned`` the batch is not ours any more, nothing was written, the rest is None.

    ``watermark`` is the committed one, ``written`` how many ledger rows of this batch were inserted; ``foreign_rows``
    moved when somebody else wrote a row for one of its messages, so load again before asking for a watermark.
    """

    batch_id: int
    owned: bool
    watermark: int
    foreign_rows: int
    finished: bool
    written: int
    status: MailingStatus
    version: int
    ends_at: datetime
    now: datetime


_RECORD = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::int[], $4::int[], $5::int[], $6::int[], $7::bool[])
        AS g (id, owner, old_watermark, new_watermark, skipped, foreign_rows, release)
), fence AS MATERIALIZED (
    -- whose batch this is not any more writes nothing
    SELECT b.id, b.mailing_id, b.due_at, b.first_id, b.last_id, b.size, b.seq, b.state, b.watermark, b.done,
           b.foreign_rows, b.ids, g.new_watermark, g.skipped, g.release, m.status, m.version, m.ends_at,
           m.status = 'running' AND m.ends_at > now() AND NOT g.release AND g.new_watermark > b.watermark
               AND b.watermark = g.old_watermark AND b.foreign_rows = g.foreign_rows AS granted,
           g.release AND b.foreign_rows = g.foreign_rows AS settled
    FROM given g
    JOIN batches b ON b.id = g.id AND b.owner = g.owner
    JOIN mailings m ON m.id = b.mailing_id
    ORDER BY b.id FOR UPDATE OF b
), result AS MATERIALIZED (
    SELECT * FROM unnest($8::text::bigint[], $9::text::bigint[], $10::text::outcome[], $11::text::message_state[],
                         $12::text::timestamptz[], $13::text::int[], $14::text::bigint[], $15::text::int[],
                         $16::text::smallint[], $17::text[], $18::text[], $19::text::timestamptz[])
        AS r (batch_id, message_id, outcome, state, started_at, duration_ms, phone, text_version, status_code,
              reason, detail, due_at)
), written AS (
    INSERT INTO attempts (message_id, mailing_id, started_at, phone, duration_ms, replica, text_version, outcome,
                          state, seq, status_code, reason, detail)
    SELECT r.message_id, f.mailing_id, r.started_at, r.phone, r.duration_ms, $20, r.text_version, r.outcome,
           r.state, f.seq, r.status_code, r.reason, r.detail
    FROM result r JOIN fence f ON f.id = r.batch_id
    -- not ON CONFLICT: that writes a speculative token to the WAL for every row (212 against 164 bytes)
    WHERE NOT EXISTS (SELECT FROM attempts a WHERE a.message_id = r.message_id AND a.seq = f.seq)
    RETURNING message_id, seq
), entry AS MATERIALIZED (
    SELECT f.id AS batch_id, f.mailing_id, f.seq, f.state AS before, r.state, r.message_id, r.due_at, r.reason
    -- by the number too: a late row may have moved the message on into a second batch of ours
    FROM written w JOIN result r USING (message_id) JOIN fence f ON f.id = r.batch_id AND f.seq = w.seq
), tally AS (
    SELECT batch_id, count(*)::int AS n FROM entry GROUP BY batch_id
), after AS MATERIALIZED (
    SELECT f.id, f.granted, coalesce(t.n, 0) AS written,
           CASE WHEN f.granted THEN f.new_watermark ELSE f.watermark END AS watermark,
           f.done + coalesce(t.n, 0) + CASE WHEN f.granted OR f.settled THEN f.skipped ELSE 0 END AS done,
           CASE WHEN f.release THEN f.watermark ELSE f.size END AS size
    FROM fence f LEFT JOIN tally t ON t.batch_id = f.id
), counted AS (
    INSERT INTO counters (mailing_id, slot, state, n, first_at, last_at)
    SELECT mailing_id, $20 % 8, state, sum(n), now(), now()
    FROM (SELECT mailing_id, state, 1 AS n FROM entry UNION ALL SELECT mailing_id, before, -1 FROM entry) d
    WHERE state <> 'waiting'
    GROUP BY mailing_id, state HAVING sum(n) <> 0
    ORDER BY mailing_id, state
    ON CONFLICT (mailing_id, slot, state) DO UPDATE
    SET n = counters.n + excluded.n, last_at = excluded.last_at
), failed AS (
    INSERT INTO failures (mailing_id, slot, reason, n)
    SELECT mailing_id, $20 % 8, coalesce(reason, 'unknown'), count(*) FROM entry WHERE state = 'failed'
    GROUP BY 1, 3 ORDER BY 1, 3
    ON CONFLICT (mailing_id, slot, reason) DO UPDATE SET n = failures.n + excluded.n
), plotted AS (
    INSERT INTO series (mailing_id, slot, at, sent, failed)
    SELECT mailing_id, $20 % 8, date_bin('10 seconds', now(), 'epoch'), count(*) FILTER (WHERE state = 'sent'),
           count(*) FILTER (WHERE state = 'failed')
    FROM entry WHERE state IN ('sent', 'failed') GROUP BY mailing_id ORDER BY mailing_id
    ON CONFLICT (mailing_id, at, slot) DO UPDATE
    SET sent = series.sent + excluded.sent, failed = series.failed + excluded.failed
), again AS (
    INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, ids)
    SELECT mailing_id, due_at, min(message_id), max(message_id), count(*), seq + 1, state,
           array_agg(message_id ORDER BY message_id)
    FROM entry WHERE due_at IS NOT NULL GROUP BY mailing_id, due_at, seq, state
), tail AS (
    INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, ids)
    SELECT mailing_id, due_at, coalesce(ids[watermark + 1], first_id + watermark), last_id, size - watermark, seq,
           state, ids[watermark + 1:]
    FROM fence WHERE release AND watermark < size
), moved AS (
    UPDATE batches b
    SET watermark = a.watermark, done = a.done, size = a.size,
        -- an untouched list keeps its place outside the row
        ids = CASE WHEN a.size < b.size THEN b.ids[:a.size] ELSE b.ids END,
        last_id = coalesce(b.ids[a.size], b.first_id + a.size - 1)
    FROM after a
    WHERE b.id = a.id AND a.done < a.size
      AND (b.watermark, b.done, b.size) IS DISTINCT FROM (a.watermark, a.done, a.size)
), finished AS (
    DELETE FROM batches b USING after a WHERE b.id = a.id AND a.done = a.size
)
SELECT g.id, f.id IS NOT NULL, a.watermark, f.foreign_rows, a.done = a.size, a.written, f.status, f.version, f.ends_at,
       clock_timestamp()
FROM given g LEFT JOIN fence f ON f.id = g.id LEFT JOIN after a ON a.id = g.id
"""


async def record(db: Db, replica: int, reports: Sequence[BatchReport], results: Sequence[Result]) -> list[Recorded]:
    """Results and watermarks of owned batches, in one statement: every further one would wait a turn of a busy loop.

    Under the fence of ``owner``: ledger rows, counter deltas from rows really inserted, retry batches, watermark and
    done, released tails, and finished batches deleted. A row that is there already is left alone and not counted.
    Raises asyncpg.UniqueViolationError when another's row came in between (nothing is written then).
    """
    said = [list(column) for column in zip(*reports, strict=True)]
    columns = zip(*results, strict=True) if results else [()] * len(Result._fields)
    happened = [
        list(column) if name in ("reason", "detail") else _literal(column)
        for name, column in zip(Result._fields, columns, strict=True)
    ]
    rows = await db.fetch(_RECORD, *said, *happened, replica)
    return [_recorded(row) for row in rows]


def _literal(column: Sequence[object]) -> str:
    """An array as PostgreSQL writes it, of what needs no quotes: asyncpg takes twice as long for each element."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in column]) + "}"


def _recorded(row: asyncpg.Record) -> Recorded:
    recorded = Recorded(*row)
    return recorded._replace(status=MailingStatus(recorded.status)) if recorded.owned else recorded
