"""The ids of a page of messages: what is still to be done from the batches, what happened from the ledger.

Each function returns ids, newest first, and where the next page begins. Two habits keep the plans the same whatever the
planner knows: the predicate of a partial index is a literal, since a generic plan cannot match a parameter with it; a
message's last row is a scalar subquery, which cannot become a join of whole tables.
"""

from __future__ import annotations

from collections.abc import Sequence

from notifier.models import (
    INT64_MAX,
    MessageState,
    Status,
)
from notifier.storage.database import Db

Cursor = tuple[int, ...]
"""Where a list goes on: below (message id,), in the batches below (seq, first id, message id)."""

EXAMINED = 10_000
"""Rows one page looks at; when too few of them belong to the list, the page is short."""


async def everything(db: Db, mailing_id: int, cursor: Cursor, limit: int) -> tuple[list[int], Cursor | None]:
    """All messages of a mailing."""
    rows = await db.fetch(
        """
        SELECT g.id
        FROM slices s CROSS JOIN LATERAL (
            SELECT id FROM messages WHERE id BETWEEN s.first_id AND least(s.last_id, $2::bigint - 1)
            ORDER BY id DESC LIMIT $3
        ) g
        WHERE s.mailing_id = $1 AND s.first_id < $2
        ORDER BY s.first_id DESC, g.id DESC LIMIT $3
        """,
        mailing_id,
        *cursor,
        limit + 1,
    )
    return _cut([row["id"] for row in rows], limit, None)


async def sent(db: Db, mailing_id: int, cursor: Cursor, limit: int) -> tuple[list[int], Cursor | None]:
    """Those whose last ledger row is `sent`: slices without ledger rows are passed over by one probe each."""
    row = await db.fetchrow(
        """
        WITH slice AS MATERIALIZED (
            SELECT first_id, last_id, sum(last_id - first_id + 1) OVER (ORDER BY first_id DESC) AS so_far
            FROM (
                SELECT s.first_id, cut.last_id
                FROM slices s CROSS JOIN LATERAL (SELECT least(s.last_id, $2::bigint - 1)) cut (last_id)
                WHERE s.mailing_id = $1 AND s.first_id < $2
                  AND (
                      SELECT min(message_id) FROM attempts WHERE message_id BETWEEN s.first_id AND cut.last_id
                  ) IS NOT NULL
                ORDER BY first_id DESC LIMIT 100
            ) begun
        ), chosen AS MATERIALIZED (
            SELECT first_id, last_id FROM slice WHERE so_far - (last_id - first_id + 1) < $4::int
        )
        SELECT ARRAY(
                   SELECT a.message_id
                   FROM chosen s CROSS JOIN LATERAL (
                       SELECT a.message_id FROM attempts a
                       WHERE a.message_id BETWEEN s.first_id AND s.last_id AND a.state = 'sent'
                         AND a.seq = (SELECT max(seq) FROM attempts l WHERE l.message_id = a.message_id)
                       ORDER BY a.message_id DESC LIMIT $3
                   ) a
                   ORDER BY s.first_id DESC, a.message_id DESC LIMIT $3
               ) AS ids,
               (
                   SELECT min(first_id) FROM chosen
                   HAVING EXISTS (
                       SELECT FROM slices WHERE mailing_id = $1 AND first_id < min(chosen.first_id)
                   )
               ) AS examined_to
        """,
        mailing_id,
        *cursor,
        limit + 1,
        EXAMINED // 2,  # and the slice that passes it, of 5,000 at most
    )
    assert row is not None
    return _cut(row["ids"], limit, row["examined_to"])


async def in_ledger(
    db: Db, mailing_id: int, status: Status, cursor: Cursor, limit: int
) -> tuple[list[int], Cursor | None]:
    """Those whose last ledger row says ``status``, from the index of rows that are not `sent`."""
    row = await db.fetchrow(
        """
        WITH found AS MATERIALIZED (
            SELECT ARRAY(
                SELECT a.message_id
                FROM (
                    SELECT message_id, seq FROM attempts
                    WHERE mailing_id = $1 AND state = $2 AND state <> 'sent' AND message_id < $3
                    ORDER BY message_id DESC LIMIT $5
                ) a
                WHERE a.seq = (SELECT max(seq) FROM attempts l WHERE l.message_id = a.message_id)
                ORDER BY a.message_id DESC LIMIT $4
            ) AS ids
        )
        SELECT ids, CASE WHEN cardinality(ids) < $4 THEN (
                   SELECT message_id FROM attempts
                   WHERE mailing_id = $1 AND state = $2 AND state <> 'sent' AND message_id < $3
                   ORDER BY message_id DESC OFFSET $5 - 1 LIMIT 1
               ) END AS examined_to
        FROM found
        """,
        mailing_id,
        status.value,
        *cursor,
        limit + 1,
        EXAMINED,
    )
    assert row is not None
    ids, examined_to = row["ids"], row["examined_to"]
    # Its other rows may lie beyond those examined: it is looked at again unless it is on this page.
    if examined_to is not None and examined_to not in ids:
        examined_to += 1
    return _cut(ids, limit, examined_to)


def _cut(ids: list[int], limit: int, examined_to: int | None) -> tuple[list[int], Cursor | None]:
    """The page out of up to ``limit`` + 1 ids; below ``examined_to`` nothing was looked at, None: all was."""
    if len(ids) > limit:
        return ids[:limit], (ids[limit - 1] if limit else INT64_MAX,)
    return ids, None if examined_to is None else (examined_to,)


async def in_batches(
    db: Db, mailing_id: int, states: list[MessageState], cursor: Cursor, limit: int
) -> tuple[list[int], Cursor | None]:
    """Those beyond the watermarks of the batches of ``states`` whose next row nobody has written yet."""
    row = await db.fetchrow(
        """
        WITH found AS MATERIALIZED (
            SELECT ARRAY(
                SELECT row(b.seq, b.first_id, e.id)
                FROM (
                    SELECT seq, first_id, last_id, ids, watermark, state FROM batches
                    WHERE mailing_id = $1 AND (seq, first_id) <= ($2::bigint, $3::bigint)
                    ORDER BY seq DESC, first_id DESC LIMIT $6
                ) b
                CROSS JOIN LATERAL
                    unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
                    WITH ORDINALITY e (id, position)
                WHERE b.state = ANY($7::message_state[]) AND e.position > b.watermark
                  AND (b.seq, b.first_id, e.id) < ($2, $3, $4::bigint)
                  AND coalesce((SELECT max(seq) FROM attempts a WHERE a.message_id = e.id), 0) < b.seq
                ORDER BY b.seq DESC, b.first_id DESC, e.id DESC LIMIT $5
            ) AS ids
        )
        SELECT ids, CASE WHEN cardinality(ids) < $5 THEN (
                   SELECT row(seq, first_id, first_id) FROM batches
                   WHERE mailing_id = $1 AND (seq, first_id) <= ($2, $3)
                   ORDER BY seq DESC, first_id DESC OFFSET $6 - 1 LIMIT 1
               ) END AS examined_to
        FROM found
        """,
        mailing_id,
        *cursor,
        limit + 1,
        EXAMINED,
        [state.value for state in states],
    )
    assert row is not None
    return _cut_batches(row["ids"], limit, row["examined_to"])


async def sending(db: Db, mailing_id: int, cursor: Cursor, limit: int) -> tuple[list[int], Cursor | None]:
    """Those at or below the watermarks of owned batches whose row is not written yet; such batches are few."""
    rows = await db.fetch(
        """
        WITH batch AS MATERIALIZED (
            SELECT seq, first_id, last_id, ids, watermark FROM batches
            WHERE mailing_id = $1 AND owner IS NOT NULL AND done < watermark
        )
        SELECT b.seq, b.first_id, e.id
        FROM batch b
        CROSS JOIN LATERAL unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
            WITH ORDINALITY e (id, position)
        WHERE e.position <= b.watermark AND (b.seq, b.first_id, e.id) < ($2::bigint, $3, $4)
          AND coalesce((SELECT max(seq) FROM attempts a WHERE a.message_id = e.id), 0) < b.seq
        ORDER BY b.seq DESC, b.first_id DESC, e.id DESC LIMIT $5
        """,
        mailing_id,
        *cursor,
        limit + 1,
    )
    return _cut_batches([tuple(row) for row in rows], limit, None)


def _cut_batches(
    found: Sequence[tuple[int, ...]], limit: int, examined_to: tuple[int, ...] | None
) -> tuple[list[int], Cursor | None]:
    """The same out of rows (seq, first id, message id)."""
    following = found[limit - 1] if len(found) > limit else examined_to
    return [message_id for *_, message_id in found[:limit]], None if following is None else tuple(following)
