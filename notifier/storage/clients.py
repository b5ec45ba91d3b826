"""Clients: those who can be texted."""

from __future__ import annotations

from typing import Any

import asyncpg
import orjson

from notifier import phones
from notifier.errors import Code, NotFound, PhoneTaken, Stale
from notifier.models import INT64_MAX, Client
from notifier.storage.database import Connection, Db, transaction

EXAMINED = 10_000
"""Rows a page may look at; with filters that no index has in the order of ids it may be short, or empty."""
PIECE = 1000
"""Erased clients that are looked after at once."""

_SELECT = """
    SELECT id, phone, operator_code, tags, timezone, attributes, version, created_at, updated_at FROM clients
"""
# What the ledger and the gateways tell of the clients in ``gone``.
_ERASED = """
        erased AS (
            UPDATE attempts SET phone = NULL, detail = NULL, reference = NULL
            FROM gone JOIN messages ON messages.client_id = gone.client_id
            WHERE attempts.message_id = messages.id
              AND (attempts.phone IS NOT NULL OR attempts.detail IS NOT NULL OR attempts.reference IS NOT NULL)
        ), theirs AS (
            -- the ids that are named, so that the few errors and not all messages are looked through
            SELECT g.name, messages.id
            FROM gateways g, jsonb_array_elements(g.last_errors) error
            JOIN messages ON messages.id = (error ->> 'message_id')::bigint
            JOIN gone ON gone.client_id = messages.client_id
        ), words AS (
            -- a gateway's sentences name no message: they are told by the words, which an outage puts its reason before
            SELECT DISTINCT regexp_replace(attempts.detail, '^[a-z_]+: ', '') AS said
            FROM gone
            JOIN messages ON messages.client_id = gone.client_id
            JOIN attempts ON attempts.message_id = messages.id
            WHERE attempts.detail IS NOT NULL
        ), unsaid AS (
            UPDATE gateways SET
                last_errors = (
                    SELECT coalesce(jsonb_agg(
                        CASE WHEN (error ->> 'message_id')::bigint IN (SELECT id FROM theirs)
                             THEN error || '{"detail": null}' ELSE error END ORDER BY place), '[]')
                    FROM jsonb_array_elements(last_errors) WITH ORDINALITY AS each (error, place)),
                detail = CASE WHEN NOT EXISTS (SELECT FROM words WHERE said <> '' AND strpos(detail, said) > 0)
                         THEN detail END,
                breaker_detail = CASE WHEN NOT EXISTS (
                    SELECT FROM words WHERE said <> '' AND strpos(breaker_detail, said) > 0) THEN breaker_detail END
            WHERE name IN (SELECT name FROM theirs) OR EXISTS (
                SELECT FROM words WHERE said <> '' AND strpos(concat(detail, ' ', breaker_detail), said) > 0)
        )
"""


async def create(
    db: Db,
    *,
    phone: int,
    operator_code: str | None = None,
    tags: list[str] | None = None,
    timezone: str | None = None,
    attributes: dict[str, Any] | None = None,
) -> Client:
    """Add a client; the operator's code is the number's when none is given. Raises ``PhoneTaken``."""
    while True:
        row = await db.fetchrow(
            """
            INSERT INTO clients (phone, operator_code, tags, timezone, attributes) VALUES ($1, $2, $3, $4, $5)
            ON CONFLICT (phone) DO NOTHING
            RETURNING id, phone, operator_code, tags, timezone, attributes, version, created_at, updated_at
            """,
            phone,
            operator_code or phones.operator_code(phone),
            tags or [],
            timezone,
            attributes or {},
        )
        if row is not None:
            return Client(**row)
        other = await _id_of(db, phone)
        if other is not None:  # else it was deleted between the two
            raise PhoneTaken(other)


async def get(db: Db, client_id: int) -> Client:
    """Return a client. Raises ``NotFound``."""
    row = await db.fetchrow(_SELECT + "WHERE id = $1", client_id)
    if row is None:
        raise NotFound(Code.NO_CLIENT, id=client_id)
    return Client(**row)


async def page(
    db: Db,
    *,
    phone: int | None = None,
    operator_code: str | None = None,
    tag: str | None = None,
    timezone: str | None = None,
    before: int | None = None,
    limit: int,
) -> tuple[list[Client], int | None]:
    """Return up to ``limit`` clients with ids below ``before``, newest first, and the next ``before``, None at the end.

    All filters given must match. A page by operator and zone looks at `EXAMINED` rows at most, and may be short. So
    does one by tag at first; where that does not fill it, the tag is rare there, and its own index finds the rest.
    """
    before = INT64_MAX if before is None else before
    value: int | str | None = None
    # A statement for each: a plan that serves all of them uses the index of none.
    if phone is not None:
        narrow, value = "WHERE phone = $1::bigint AND id < $2", phone
    elif operator_code is not None:
        narrow, value = "WHERE operator_code = $1::text AND id < $2", operator_code
    elif timezone is not None:
        narrow, value = "WHERE timezone = $1::text AND id < $2", timezone
    else:
        narrow = "WHERE $1::text IS NULL AND id < $2"
    if tag is None and (phone, operator_code, timezone).count(None) >= 2:
        # Nothing but what the index knows: any further condition could make the planner sort instead.
        last = None
        rows = await db.fetch(_SELECT + narrow + " ORDER BY id DESC LIMIT $3", value, before, limit + 1)
    else:
        last = await db.fetchval(
            "SELECT id FROM clients " + narrow + " ORDER BY id DESC OFFSET $3 LIMIT 1",
            value,
            before,
            EXAMINED - 1,
        )
        rows = await db.fetch(
            _SELECT
            + narrow
            + """
            AND id >= $3 AND ($4::text IS NULL OR operator_code = $4) AND ($5::text IS NULL OR $5 = ANY (tags))
            AND ($6::text IS NULL OR timezone = $6)
            ORDER BY id DESC LIMIT $7
            """,
            value,
            before,
            last or 0,
            operator_code,
            tag,
            timezone,
            limit + 1,
        )
        if tag is not None and last is not None and len(rows) <= limit:
            # `id + 0` keeps the planner from walking the ids again.
            rows = await db.fetch(
                _SELECT
                + narrow
                + """
                AND tags @> ARRAY[$3::text] AND ($4::text IS NULL OR operator_code = $4)
                AND ($5::text IS NULL OR timezone = $5)
                ORDER BY id + 0 DESC LIMIT $6
                """,
                value,
                before,
                tag,
                operator_code,
                timezone,
                limit + 1,
            )
            last = None
    found = [Client(**row) for row in rows[:limit]]
    return found, found[-1].id if len(rows) > limit else last


async def zones(db: Db, most: int = 100) -> list[str]:
    """The zones that clients have, in order, ``most`` of them; each costs one probe of the index."""
    rows = await db.fetch(
        """
        WITH RECURSIVE used AS (
            SELECT min(timezone) AS zone FROM clients
            UNION ALL
            SELECT (SELECT min(timezone) FROM clients WHERE timezone > used.zone) FROM used WHERE used.zone IS NOT NULL
        )
        SELECT zone FROM used WHERE zone IS NOT NULL LIMIT $1
        """,
        most,
    )
    return [row["zone"] for row in rows]


async def count_in(db: Db, timezone: str) -> int:
    """Return how many clients have that time zone."""
    found: int = await db.fetchval("SELECT count(*) FROM clients WHERE timezone = $1", timezone)
    return found


async def edit(db: Db, client_id: int, changes: dict[str, Any], *, if_match: int | None = None) -> Client:
    """Change what ``changes`` names of phone, operator_code, tags, timezone and attributes.

    A new phone brings its operator's code, unless one is given. Raises ``NotFound``, ``Stale`` and ``PhoneTaken``.
    """
    phone = changes.get("phone")
    if phone is not None:
        changes = {"operator_code": phones.operator_code(phone), **changes}
    try:
        async with transaction(db) as connection:
            row = await connection.fetchrow(
                """
                UPDATE clients
                SET phone = coalesce($3, phone), operator_code = coalesce($4, operator_code),
                    tags = coalesce($5, tags), timezone = CASE WHEN $6 THEN $7 ELSE timezone END,
                    attributes = coalesce($8, attributes), version = version + $9::int,
                    updated_at = CASE WHEN $9 = 1 THEN now() ELSE updated_at END
                WHERE id = $1 AND ($2::int IS NULL OR version = $2)
                RETURNING id, phone, operator_code, tags, timezone, attributes, version, created_at, updated_at
                """,
                client_id,
                if_match,
                phone,
                changes.get("operator_code"),
                changes.get("tags"),
                "timezone" in changes,
                changes.get("timezone"),
                changes.get("attributes"),
                int(bool(changes)),
            )
    except asyncpg.UniqueViolationError:
        other = await _id_of(db, phone)
        if other is None or other == client_id:  # whoever had it let go of it meanwhile
            return await edit(db, client_id, changes, if_match=if_match)
        raise PhoneTaken(other) from None
    if row is None:
        await get(db, client_id)
        raise Stale
    return Client(**row)


async def delete(db: Db, client_id: int, *, if_match: int | None = None) -> None:
    """Erase a client, and what the ledger tells of the person: phone, the gateway's words, and its own id of a message.

    The messages stay. Raises ``NotFound`` and ``Stale``.
    """
    gone = await db.fetchval(
        f"""
        WITH gone AS (
            DELETE FROM clients WHERE id = $1 AND ($2::int IS NULL OR version = $2) RETURNING id AS client_id
        ), {_ERASED}, noted AS (
            INSERT INTO erasures (client_id) SELECT client_id FROM gone
        )
        SELECT client_id FROM gone
        """,
        client_id,
        if_match,
    )
    if gone is None:
        await get(db, client_id)
        raise Stale


async def erase_again(db: Db, after: float) -> int:
    """Erase what requests under way at the time wrote since; for clients gone for ``after`` seconds.

    Returns how many clients these were, `PIECE` at most: then there may be more.
    """
    rows = await db.fetch(
        f"""
        WITH gone AS (
            DELETE FROM erasures WHERE client_id IN (
                SELECT client_id FROM erasures WHERE at < now() - $1 * interval '1 second'
                LIMIT $2 FOR UPDATE SKIP LOCKED)
            RETURNING client_id
        ), {_ERASED}
        SELECT client_id FROM gone
        """,
        float(after),
        PIECE,
    )
    return len(rows)


async def upsert(db: Db, items: list[dict[str, Any]]) -> list[tuple[int, bool]]:
    """Add or change clients by phone; return for each item the id, and whether it was added.

    An item has a phone and what is to be set; what it does not name stays as it is. The items take effect one after
    the other, so of two with one phone the later wins. ``version`` and ``updated_at`` move only where something
    changed. Two batches at once cannot deadlock: both take their rows in the order of phones.
    """
    merged: dict[int, dict[str, Any]] = {}
    for item in items:
        merged[item["phone"]] = {**merged.get(item["phone"], {}), **item}
    async with transaction(db) as connection:
        ids = await _upsert(connection, [merged[phone] for phone in sorted(merged)])
    results = []
    for item in items:
        client_id, created = ids[item["phone"]]
        results.append((client_id, created))
        ids[item["phone"]] = (client_id, False)
    return results


async def _upsert(db: Connection, items: list[dict[str, Any]]) -> dict[int, tuple[int, bool]]:
    def naming(key: str) -> list[int]:
        return [item["phone"] for item in items if key in item]

    numbers = [item["phone"] for item in items]
    # $6 to $9: which phones come with which key. The row proposed for insertion has no place to say so.
    rows = await db.fetch(
        """
        INSERT INTO clients AS old (phone, operator_code, tags, timezone, attributes)
        SELECT phone, operator_code, ARRAY(SELECT jsonb_array_elements_text(tags::jsonb)), timezone, attributes::jsonb
        FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[])
            AS item (phone, operator_code, tags, timezone, attributes)
        ORDER BY phone
        ON CONFLICT (phone) DO UPDATE
        SET operator_code =
                CASE WHEN old.phone = ANY ($6::bigint[]) THEN excluded.operator_code ELSE old.operator_code END,
            tags = CASE WHEN old.phone = ANY ($7::bigint[]) THEN excluded.tags ELSE old.tags END,
            timezone = CASE WHEN old.phone = ANY ($8::bigint[]) THEN excluded.timezone ELSE old.timezone END,
            attributes = CASE WHEN old.phone = ANY ($9::bigint[]) THEN excluded.attributes ELSE old.attributes END,
            version = old.version + 1,
            updated_at = now()
        WHERE (old.phone = ANY ($6) AND old.operator_code <> excluded.operator_code)
           OR (old.phone = ANY ($7) AND old.tags <> excluded.tags)
           OR (old.phone = ANY ($8) AND old.timezone IS DISTINCT FROM excluded.timezone)
           OR (old.phone = ANY ($9) AND old.attributes <> excluded.attributes)
        RETURNING phone, id, xmax = 0 AS created
        """,
        numbers,
        [item.get("operator_code") or phones.operator_code(item["phone"]) for item in items],
        [orjson.dumps(item.get("tags", [])).decode() for item in items],
        [item.get("timezone") for item in items],
        [orjson.dumps(item.get("attributes", {})).decode() for item in items],
        naming("operator_code"),
        naming("tags"),
        naming("timezone"),
        naming("attributes"),
    )
    ids = {row["phone"]: (row["id"], row["created"]) for row in rows}
    if len(ids) < len(numbers):  # those that had nothing to change; they are locked, so they are there
        same = await db.fetch("SELECT phone, id FROM clients WHERE phone = ANY ($1)", numbers)
        ids = {row["phone"]: (row["id"], False) for row in same} | ids
    return ids


async def _id_of(db: Db, phone: int | None) -> int | None:
    found: int | None = await db.fetchval("SELECT id FROM clients WHERE phone = $1", phone)
    return found
