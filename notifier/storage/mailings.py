"""Mailings: what people do with them through the API and the pages."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from notifier import policy
from notifier.errors import Code, Conflict, IllegalTransition, Invalid, NotFound, Problem, Stale
from notifier.models import INT64_MAX, MAILING_TRANSITIONS, OVER, Filter, Mailing, MailingStatus, Status, Window
from notifier.storage.database import Db, transaction

# Changes that other replicas must hear of; they listen on this channel (see cluster/control.py).
CHANNEL = "notifier"

# Seconds for which a deleted mailing can be restored; after that `mailing_lifecycle.purge` takes its rows away.
KEEP_DELETED = 30 * 86_400.0

# SQL over ``mailings m``: no piece of it was purged.
WHOLE = "m.audience = (SELECT coalesce(sum(last_id - first_id + 1), 0) FROM slices WHERE mailing_id = m.id)"

# Text and gateway are scalar subqueries: a join may become one of whole tables, and then a page costs what lies above
# it. While the gateway is stopped, out of order or throttling, that is what keeps a mailing waiting.
_COLUMNS = """
    m.id, m.name, m.text_version, m.filter, m.starts_at, m.ends_at, m.window_from, m.window_to, m.priority, m.status,
    coalesce(m.status_reason, (
        SELECT CASE WHEN state <> 'running' THEN 'gateway_' || state
                    WHEN m.status = 'running' AND breaker <> 'closed' THEN 'gateway_unavailable'
                    WHEN m.status = 'running' AND paused_until > now() THEN 'gateway_throttled' END
        FROM gateways WHERE name = 'default' AND m.status IN ('scheduled', 'running')
    )) AS status_reason, (
        SELECT coalesce(sum(n), 0)::bigint FROM counters c
        WHERE c.mailing_id = m.id AND (c.state = 'unknown' OR c.state = 'doubtful' AND m.over_at IS NOT NULL)
    ) AS undecided, m.audience, m.planned, m.version, m.created_at, m.updated_at,
    m.started_at, m.over_at AS finished_at, m.archived_at
"""
_READ = f"""
    SELECT {_COLUMNS}, m.deleted_at,
           (SELECT text FROM mailing_texts WHERE mailing_id = m.id AND version = m.text_version) AS text
    FROM mailings m
"""
_SELECT = f"{_READ} WHERE m.deleted_at IS NULL"


def _mailing(row: asyncpg.Record) -> Mailing:
    return Mailing(
        id=row["id"],
        name=row["name"],
        text=row["text"],
        text_version=row["text_version"],
        filter=Filter.from_json(row["filter"]),
        starts_at=row["starts_at"],
        ends_at=row["ends_at"],
        window=Window.between(row["window_from"], row["window_to"]),
        priority=row["priority"],
        status=MailingStatus(row["status"]),
        status_reason=row["status_reason"],
        undecided=row["undecided"],
        audience=row["audience"],
        planned=row["planned"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        archived_at=row["archived_at"],
    )


async def names(db: Db, ids: Sequence[int]) -> dict[int, str | None]:
    """The names of these mailings by id; None for one that has none."""
    rows = await db.fetch("SELECT id, name FROM mailings WHERE id = ANY ($1::bigint[])", ids)
    return {row["id"]: row["name"] for row in rows}


async def create(
    db: Db,
    *,
    name: str | None,
    text: str,
    filter: Filter,
    starts_at: datetime | None,
    ends_at: datetime,
    window: Window | None,
    priority: int,
    draft: bool,
) -> Mailing:
    """Store a mailing, `scheduled` or `draft`; without ``starts_at`` it starts now.

    Raises Invalid when it would end before it starts, or has ended already by the database's clock.
    """
    row = await db.fetchrow(
        f"""
        WITH given AS (
            SELECT coalesce($3::timestamptz, now()) AS starts_at, $4::timestamptz AS ends_at
        ), m AS (
            INSERT INTO mailings (name, filter, starts_at, ends_at, window_from, window_to, priority, status)
            SELECT $1, $2, starts_at, ends_at, $5, $6, $7, $8 FROM given WHERE ends_at > starts_at AND ends_at > now()
            RETURNING *
        ), text AS (
            INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, $9 FROM m
        )
        SELECT {_COLUMNS}, $9::text AS text, given.starts_at AS begins_at, now() AS now,
               CASE WHEN m.id IS NOT NULL THEN pg_notify($10, '') END
        FROM given LEFT JOIN m ON true
        """,
        name,
        filter.as_json(),
        starts_at,
        ends_at,
        window.start if window else None,
        window.end if window else None,
        priority,
        (MailingStatus.DRAFT if draft else MailingStatus.SCHEDULED).value,
        text,
        CHANNEL,
    )
    assert row is not None
    _check_times(row["begins_at"], ends_at, row["now"])
    return _mailing(row)


def _check_times(starts_at: datetime, ends_at: datetime, now: datetime) -> None:
    if ends_at <= now:
        raise Invalid([Problem("/ends_at", Code.ENDS_IN_THE_PAST)])
    if ends_at <= starts_at:
        raise Invalid([Problem("/ends_at", Code.ENDS_BEFORE_START)])


async def _announce(conn: Db) -> None:
    await conn.execute("SELECT pg_notify($1, '')", CHANNEL)


async def get(db: Db, mailing_id: int) -> Mailing:
    """The mailing; NotFound also when it was deleted."""
    row = await db.fetchrow(_SELECT + " AND m.id = $1", mailing_id)
    if row is None:
        raise NotFound(Code.NO_MAILING, id=mailing_id)
    return _mailing(row)


async def get_deleted(db: Db, mailing_id: int) -> Mailing:
    """A mailing that can be restored; NotFound for any other."""
    row = await db.fetchrow(
        _READ + "WHERE m.id = $1 AND m.deleted_at > now() - $2 * interval '1 second'", mailing_id, KEEP_DELETED
    )
    if row is None:
        raise NotFound(Code.NO_DELETED_MAILING, id=mailing_id)
    return _mailing(row)


async def page(
    db: Db, *, status: MailingStatus | None, before: int | None, limit: int, archived: bool = False
) -> list[Mailing]:
    """Up to ``limit`` mailings with ids under ``before``, newest first: the archived ones, or all others."""
    before = INT64_MAX if before is None else before
    # A statement for each: a plan that serves all uses the index of none.
    select = f"{_SELECT} AND m.archived_at IS {'NOT NULL' if archived else 'NULL'} "
    if status is None:
        rows = await db.fetch(select + "AND m.id < $1 ORDER BY m.id DESC LIMIT $2", before, limit)
    else:
        # Pairs, in the order of the index by status: asked for ids alone, the planner may walk down all mailings.
        rows = await db.fetch(
            select
            + """
              AND (m.status, m.id) < ($3::text::mailing_status, $1) AND (m.status, m.id) > ($3::text::mailing_status, 0)
            ORDER BY m.status DESC, m.id DESC LIMIT $2
            """,
            before,
            limit,
            status.value,
        )
    return [_mailing(row) for row in rows]


async def deleted(db: Db, *, before: int | None, limit: int) -> list[tuple[Mailing, datetime]]:
    """Up to ``limit`` mailings with ids under ``before`` that can be restored, newest first, each with until when."""
    rows = await db.fetch(
        _READ
        + """
        WHERE m.deleted_at IS NOT NULL AND m.deleted_at > now() - $3 * interval '1 second' AND m.id < $1
        ORDER BY m.id DESC LIMIT $2
        """,
        INT64_MAX if before is None else before,
        limit,
        KEEP_DELETED,
    )
    return [(_mailing(row), row["deleted_at"] + timedelta(seconds=KEEP_DELETED)) for row in rows]


async def troubled(db: Db, status: Status, *, before: int | None, limit: int) -> list[Mailing]:
    """Up to ``limit`` mailings with ids under ``before`` that have failed (or unknown) messages, newest first."""
    rows = await db.fetch(
        _SELECT
        + """
          AND m.archived_at IS NULL AND m.id < $1 AND (
              SELECT sum(n) FROM counters c
              WHERE c.mailing_id = m.id AND (
                  c.state = ANY ($3::message_state[])
                  -- in doubt and over: that is unknown, too
                  OR $4 AND c.state = 'doubtful' AND m.status IN ('finished', 'cancelled')
              )
          ) > 0
        ORDER BY m.id DESC LIMIT $2
        """,
        INT64_MAX if before is None else before,
        limit,
        ["unknown"] if status is Status.UNKNOWN else ["failed", "undelivered"],
        status is Status.UNKNOWN,
    )
    return [_mailing(row) for row in rows]


async def _locked(conn: Db, mailing_id: int, if_match: int | None) -> tuple[Mailing, bool]:
    """The mailing, locked until the caller's transaction ends, and whether its audience is already being chosen.

    The lock comes first and alone: read together with it, a text that was changed meanwhile would be missing.
    """
    row = await conn.fetchrow(
        "SELECT version, horizon FROM mailings WHERE id = $1 AND deleted_at IS NULL FOR UPDATE", mailing_id
    )
    if row is None:
        raise NotFound(Code.NO_MAILING, id=mailing_id)
    if if_match is not None and if_match != row["version"]:
        raise Stale
    return await get(conn, mailing_id), row["horizon"] is not None


async def edit(db: Db, mailing_id: int, changes: dict[str, Any], *, if_match: int | None = None) -> Mailing:
    """Change the named fields (``name text filter starts_at ends_at window priority``); what was sent stays known.

    Everything while the audience is not being chosen yet; after that all but ``filter`` and ``starts_at``. Raises
    NotFound, Stale, Conflict where the status does not allow it, Invalid for times that cannot be.
    """
    async with transaction(db) as conn:
        mailing, begun = await _locked(conn, mailing_id, if_match)
        if mailing.status in OVER:
            raise Conflict(Code.MAILING_OVER, status=mailing.status)
        fixed = [key for key in ("filter", "starts_at") if key in changes] if begun else []
        if fixed:
            raise Conflict(Code.MAILING_STARTED, fields=" and ".join(fixed))
        if not changes:
            return await get(conn, mailing_id)
        starts_at = changes.get("starts_at", mailing.starts_at)
        ends_at = changes.get("ends_at", mailing.ends_at)
        if "starts_at" in changes or "ends_at" in changes:
            _check_times(starts_at, ends_at, await conn.fetchval("SELECT now()"))
        window: Window | None = changes.get("window", mailing.window)
        text = changes.get("text", mailing.text)
        text_version = mailing.text_version + (text != mailing.text)
        if text_version != mailing.text_version:
            await conn.execute(
                "INSERT INTO mailing_texts (mailing_id, version, text) VALUES ($1, $2, $3)",
                mailing_id,
                text_version,
                text,
            )
        await conn.execute(
            """
            UPDATE mailings
            SET name = $2, text_version = $3, filter = $4, starts_at = $5, ends_at = $6, window_from = $7,
                window_to = $8, priority = $9, version = version + 1, updated_at = now()
            WHERE id = $1
            """,
            mailing_id,
            changes.get("name", mailing.name),
            text_version,
            changes.get("filter", mailing.filter).as_json(),
            starts_at,
            ends_at,
            window.start if window else None,
            window.end if window else None,
            changes.get("priority", mailing.priority),
        )
        if window != mailing.window:
            await _reschedule(conn, mailing_id)
        await _announce(conn)
        return await get(conn, mailing_id)


async def _reschedule(conn: Db, mailing_id: int) -> None:
    """Unclaimed batches become due at once: whoever loads them sorts them by the new window.

    A wait longer than the longest backoff is a window's.
    """
    await conn.execute(
        """
        UPDATE batches SET due_at = now()
        WHERE mailing_id = $1 AND owner IS NULL
          AND (state = 'waiting' OR due_at > now() + $2 * interval '1 second')
        """,
        mailing_id,
        policy.CAP,
    )


async def act(db: Db, mailing_id: int, verb: str, *, if_match: int | None = None) -> Mailing:
    """`start`, `pause`, `resume` or `cancel`: the transition of that name in `models.MAILING_TRANSITIONS`.

    One row is written, however large the mailing is. Raises NotFound, Stale, IllegalTransition.
    """
    async with transaction(db) as conn:
        mailing, begun = await _locked(conn, mailing_id, if_match)
        sources, target = MAILING_TRANSITIONS["resume_unbegun" if verb == "resume" and not begun else verb]
        if mailing.status not in sources:
            raise IllegalTransition(Code.STATUS_FORBIDS, status=mailing.status, verb=verb)
        if verb in ("start", "resume") and mailing.ends_at <= await conn.fetchval("SELECT now()"):
            raise IllegalTransition(Code.END_HAS_COME, verb=verb)
        await conn.execute(
            """
            UPDATE mailings
            SET status = $2, version = version + 1, updated_at = now(), status_reason = NULL,
                over_at = CASE WHEN $2::mailing_status = 'cancelled' THEN now() END
            WHERE id = $1
            """,
            mailing_id,
            target.value,
        )
        await _announce(conn)
        return await get(conn, mailing_id)


async def archive(db: Db, mailing_id: int, archived: bool, *, if_match: int | None = None) -> Mailing:
    """Put a mailing that is over out of the lists, or back into them; where it is there already nothing changes.

    Raises NotFound, Stale, IllegalTransition when it is not over.
    """
    async with transaction(db) as conn:
        mailing, _ = await _locked(conn, mailing_id, if_match)
        if mailing.status not in OVER:
            raise IllegalTransition(Code.NOT_OVER, status=mailing.status)
        if (mailing.archived_at is not None) == archived:
            return mailing
        await conn.execute(
            """
            UPDATE mailings
            SET archived_at = CASE WHEN $2::boolean THEN now() END, version = version + 1, updated_at = now()
            WHERE id = $1
            """,
            mailing_id,
            archived,
        )
        return await get(conn, mailing_id)


async def delete(db: Db, mailing_id: int, *, if_match: int | None = None) -> None:
    """Any status → deleted; what is not over is cancelled first. The rows are purged later."""
    async with transaction(db) as conn:
        mailing, _ = await _locked(conn, mailing_id, if_match)
        await conn.execute(
            """
            UPDATE mailings
            SET status = $2, deleted_at = now(), over_at = coalesce(over_at, now()), version = version + 1,
                updated_at = now()
            WHERE id = $1
            """,
            mailing_id,
            (mailing.status if mailing.status in OVER else MailingStatus.CANCELLED).value,
        )
        await _announce(conn)


async def restore(db: Db, mailing_id: int, *, if_match: int | None = None) -> Mailing:
    """Bring a deleted mailing back as it was, or cancelled where the deletion stopped it; else nothing changes.

    Raises Stale, and NotFound when there is none, or it was deleted more than KEEP_DELETED seconds ago.
    """
    async with transaction(db) as conn:
        row = await conn.fetchrow("SELECT version, deleted_at FROM mailings WHERE id = $1 FOR UPDATE", mailing_id)
        if row is None:
            raise NotFound(Code.NO_MAILING, id=mailing_id)
        if if_match is not None and if_match != row["version"]:
            raise Stale
        if row["deleted_at"] is not None:
            # A second statement, which sees what a purge did that held the lock before; and a replica of an older
            # version purges at once.
            restored = await conn.fetchval(
                f"""
                UPDATE mailings m SET deleted_at = NULL, version = version + 1, updated_at = now()
                WHERE id = $1 AND deleted_at > now() - $2 * interval '1 second' AND {WHOLE} RETURNING id
                """,
                mailing_id,
                KEEP_DELETED,
            )
            if restored is None:
                raise NotFound(Code.MAILING_PURGED, id=mailing_id)
        return await get(conn, mailing_id)


async def clock(db: Db) -> datetime:
    """The database's time."""
    now: datetime = await db.fetchval("SELECT clock_timestamp()")
    return now
