"""The steps of a mailing's life that the scheduler takes: it ends, is closed when nothing is left, and is purged."""

from __future__ import annotations

from notifier.storage import mailings
from notifier.storage.database import Db, transaction


async def finish_ended(db: Db) -> list[int]:
    """scheduled, running, paused → finished for those whose end has come. One row each: what is left over expires."""
    rows = await db.fetch(
        """
        UPDATE mailings
        SET status = 'finished', over_at = now(),
            status_reason = CASE WHEN planned AND audience = 0 THEN 'nobody_matched' ELSE 'ended' END
        WHERE status IN ('scheduled', 'running', 'paused') AND ends_at <= clock_timestamp()
        RETURNING id
        """
    )
    return [row["id"] for row in rows]


async def worked_off(db: Db) -> list[int]:
    """Mailings that look ready to be closed: planned, alive, no batch left."""
    rows = await db.fetch(
        """
        SELECT m.id FROM mailings m
        WHERE m.status IN ('running', 'paused') AND m.planned
          AND NOT EXISTS (SELECT FROM batches b WHERE b.mailing_id = m.id)
        """
    )
    return [row["id"] for row in rows]


async def close(db: Db, mailing_id: int) -> bool:
    """running, paused → finished when planned and nothing is left; True when it was done here.

    The mailing is locked first and the batches are looked at by a second statement, whose snapshot is younger than the
    lock: whoever adds batches other than out of an owned batch holds that lock (docs/delivery.md).
    """
    async with transaction(db) as conn:
        open_still = await conn.fetchval(
            "SELECT status IN ('running', 'paused') AND planned FROM mailings WHERE id = $1 FOR UPDATE",
            mailing_id,
        )
        if not open_still or await conn.fetchval(
            "SELECT EXISTS (SELECT FROM batches WHERE mailing_id = $1)", mailing_id
        ):
            return False
        await conn.execute(
            """
            UPDATE mailings
            SET status = 'finished', over_at = now(),
                status_reason = CASE WHEN audience = 0 THEN 'nobody_matched' ELSE 'completed' END
            WHERE id = $1
            """,
            mailing_id,
        )
        return True


async def seconds_to_next(db: Db) -> float | None:
    """Seconds until the next start or end of a mailing, by the database's clock; None when there is none ahead."""
    seconds = await db.fetchval(
        """
        SELECT extract(epoch FROM min(CASE WHEN status = 'scheduled' AND starts_at > clock_timestamp()
                                           THEN starts_at ELSE ends_at END) - clock_timestamp())
        FROM mailings WHERE status IN ('scheduled', 'running', 'paused')
        """
    )
    return None if seconds is None else max(0.0, float(seconds))


async def purge(db: Db) -> bool:
    """Take away one slice of a mailing that was deleted long ago; True when there may be more.

    Long ago: `mailings.KEEP_DELETED` seconds. A slice is up to 5,000 messages with their attempts. None of a mailing
    that somebody is still sending.
    """
    async with transaction(db) as conn:
        mailing_id = await conn.fetchval(
            """
            SELECT m.id FROM mailings m
            WHERE m.deleted_at IS NOT NULL AND m.deleted_at <= now() - $1 * interval '1 second'
              AND NOT EXISTS (SELECT FROM batches b WHERE b.mailing_id = m.id AND b.owner IS NOT NULL)
            ORDER BY m.id LIMIT 1 FOR UPDATE SKIP LOCKED
            """,
            mailings.KEEP_DELETED,
        )
        if mailing_id is None:
            return False
        piece = await conn.fetchrow(
            "DELETE FROM slices WHERE (mailing_id, first_id) = "
            "(SELECT mailing_id, first_id FROM slices WHERE mailing_id = $1 LIMIT 1) RETURNING first_id, last_id",
            mailing_id,
        )
        if piece is not None:
            await conn.execute("DELETE FROM attempts WHERE message_id BETWEEN $1 AND $2", *piece)
            await conn.execute("DELETE FROM messages WHERE id BETWEEN $1 AND $2", *piece)
            return True
        await conn.execute("DELETE FROM batches WHERE mailing_id = $1", mailing_id)
        await conn.execute("DELETE FROM counters WHERE mailing_id = $1", mailing_id)
        await conn.execute("DELETE FROM failures WHERE mailing_id = $1", mailing_id)
        await conn.execute("DELETE FROM series WHERE mailing_id = $1", mailing_id)
        await conn.execute("DELETE FROM mailings WHERE id = $1", mailing_id)
        return True
