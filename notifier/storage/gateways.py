"""What all replicas must agree on about a gateway: one row each, changed by compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg

from notifier.errors import Code, NotFound, Stale
from notifier.models import BreakerState, GatewayState
from notifier.storage.database import Db, transaction
from notifier.storage.mailings import CHANNEL

# The breaker stays open 10 s at first, twice as long each time in a row, at most 5 minutes.
OPEN_SECONDS, OPEN_CAP = 10, 300
# A 429 that names no time pauses for 1 s, twice as long each time in a row; named ones are clamped to the same bounds.
THROTTLE_SECONDS, THROTTLE_CAP = 1, 3600
# Ten of them tell what is going on without growing the row that every replica reads.
LAST_ERRORS = 10


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway's row; ``concurrency`` and ``rate`` None mean those of the settings; ``now`` is when it was read.

    ``detail`` says in a sentence why it is misconfigured, ``breaker_detail`` why the breaker is not closed.
    ``identity`` is that of the address and token that some replica began to use last.
    """

    name: str
    concurrency: int | None
    rate: float | None
    state: GatewayState
    reason: str | None
    detail: str | None
    paused_until: datetime | None
    breaker: BreakerState
    retry_at: datetime | None
    breaker_detail: str | None
    identity: str | None
    last_errors: list[dict[str, Any]]
    version: int
    now: datetime


def _gateway(row: asyncpg.Record) -> Gateway:
    return Gateway(
        name=row["name"],
        concurrency=row["concurrency"],
        rate=row["rate"],
        state=GatewayState(row["state"]),
        reason=row["reason"],
        detail=row["detail"] if row["state"] == GatewayState.MISCONFIGURED else None,
        paused_until=row["paused_until"],
        breaker=BreakerState(row["breaker"]),
        retry_at=row["retry_at"],
        breaker_detail=row["breaker_detail"] if row["breaker"] != BreakerState.CLOSED else None,
        identity=row["identity"],
        # an older version wrote them without what is here
        last_errors=[
            {"first_at": each["at"], "count": 1, "message_id": None, "detail": None, **each}
            for each in row["last_errors"]
        ],
        version=row["version"],
        now=row["now"],
    )


async def get(db: Db, name: str) -> Gateway:
    """The gateway of that name; raises NotFound."""
    row = await db.fetchrow("SELECT *, clock_timestamp() AS now FROM gateways WHERE name = $1", name)
    if row is None:
        raise NotFound(Code.NO_GATEWAY, name=name)
    return _gateway(row)


async def names(db: Db) -> list[str]:
    """All names, sorted."""
    return [row["name"] for row in await db.fetch("SELECT name FROM gateways ORDER BY name")]


async def _locked(conn: Db, name: str, if_match: int | None) -> Gateway:
    row = await conn.fetchrow("SELECT *, clock_timestamp() AS now FROM gateways WHERE name = $1 FOR UPDATE", name)
    if row is None:
        raise NotFound(Code.NO_GATEWAY, name=name)
    if if_match is not None and if_match != row["version"]:
        raise Stale
    return _gateway(row)


async def edit(db: Db, name: str, changes: dict[str, Any], *, if_match: int | None = None) -> Gateway:
    """Change ``concurrency`` and ``rate``; None gives the word back to the settings. Raises NotFound, Stale."""
    async with transaction(db) as conn:
        gateway = await _locked(conn, name, if_match)
        if not changes:
            return gateway
        await conn.execute(
            # the bucket starts empty, so that a raised rate is not a burst
            "UPDATE gateways SET concurrency = $2, rate = $3, tokens = 0, tokens_at = now(), version = version + 1 "
            "WHERE name = $1",
            name,
            changes.get("concurrency", gateway.concurrency),
            changes.get("rate", gateway.rate),
        )
        await conn.execute("SELECT pg_notify($1, '')", CHANNEL)
        return await get(conn, name)


async def pause(db: Db, name: str, *, if_match: int | None = None) -> Gateway:
    """Any state → paused, by hand."""
    return await _set_state(db, name, GatewayState.PAUSED, if_match)


async def resume(db: Db, name: str, *, if_match: int | None = None) -> Gateway:
    """paused, misconfigured → running; also ends a pause that the gateway asked for, and closes the breaker."""
    return await _set_state(db, name, GatewayState.RUNNING, if_match)


async def _set_state(db: Db, name: str, state: GatewayState, if_match: int | None) -> Gateway:
    async with transaction(db) as conn:
        await _locked(conn, name, if_match)
        await conn.execute(
            """
            UPDATE gateways
            SET state = $2, version = version + 1, reason = CASE WHEN $2 = 'paused' THEN 'operator' END,
                paused_until = CASE WHEN $2 = 'paused' THEN paused_until END,
                throttles = CASE WHEN $2 = 'paused' THEN throttles ELSE 0 END,
                breaker = CASE WHEN $2 = 'paused' THEN breaker ELSE 'closed' END,
                retry_at = CASE WHEN $2 = 'paused' THEN retry_at END,
                openings = CASE WHEN $2 = 'paused' THEN openings ELSE 0 END
            WHERE name = $1
            """,
            name,
            state.value,
        )
        await conn.execute("SELECT pg_notify($1, '')", CHANNEL)
        return await get(conn, name)


async def identify(db: Db, name: str, identity: str) -> None:
    """A replica begins to use this address and token: that is the newest identity from now on.

    A refusal belongs to what it was made with, so another identity starts a misconfigured gateway again.
    """
    await db.execute(
        """
        WITH changed AS (
            UPDATE gateways
            SET identity = $2,
                state = CASE WHEN state = 'misconfigured' AND identity IS NOT NULL THEN 'running' ELSE state END,
                reason = CASE WHEN state = 'misconfigured' AND identity IS NOT NULL THEN NULL ELSE reason END,
                version = version + (state = 'misconfigured' AND identity IS NOT NULL)::int
            WHERE name = $1 AND identity IS DISTINCT FROM $2 RETURNING name
        )
        SELECT pg_notify($3, '') FROM changed
        """,
        name,
        identity,
        CHANNEL,
    )


async def misconfigured(db: Db, name: str, reason: str, detail: str | None = None, identity: str | None = None) -> None:
    """running → misconfigured: it refuses everybody; only a person can put that right.

    ``detail`` is the sentence for that person. Nothing happens when the refusal was made with another ``identity``
    than the newest.
    """
    await db.execute(
        """
        WITH changed AS (
            UPDATE gateways SET state = 'misconfigured', reason = $2, detail = $4, version = version + 1
            WHERE name = $1 AND state = 'running' AND ($5::text IS NULL OR identity IS NULL OR identity = $5)
            RETURNING name
        )
        SELECT pg_notify($3, '') FROM changed
        """,
        name,
        reason,
        CHANNEL,
        detail,
        identity,
    )


async def throttle(db: Db, name: str, seconds: float | None, asked_at: datetime) -> None:
    """Pause for ``seconds`` (None: the gateway named no time) for all replicas.

    ``asked_at`` is when the throttled request was started: those that were under way together count as one,
    though one of them that names a later time extends the pause.
    """
    await db.execute(
        """
        WITH changed AS (
            UPDATE gateways
            SET paused_until = now() + interval '1 second'
                    * least($5, greatest($4, coalesce($2::float8, $4 * power(2, least(throttles, 12))))),
                throttles = throttles + (paused_until IS NULL OR paused_until <= $3)::int
            WHERE name = $1
              AND (paused_until IS NULL OR paused_until <= $3
                   OR $2::float8 > extract(epoch FROM paused_until - now()))
            RETURNING name
        )
        SELECT pg_notify($6, '') FROM changed
        """,
        name,
        seconds,
        asked_at,
        float(THROTTLE_SECONDS),
        float(THROTTLE_CAP),
        CHANNEL,
    )


async def unthrottled(db: Db, name: str) -> None:
    """A success after a pause: the next 429 without a time starts at one second again."""
    await db.execute("UPDATE gateways SET throttles = 0 WHERE name = $1 AND throttles > 0", name)


async def open_breaker(db: Db, name: str, detail: str | None = None) -> None:
    """closed, half_open → open, for 10 s at first and twice as long each time in a row; ``detail`` says why."""
    await db.execute(
        """
        WITH changed AS (
            UPDATE gateways
            SET breaker = 'open', breaker_detail = $5, openings = openings + 1,
                retry_at = now() + interval '1 second' * least($3, $2 * power(2, least(openings, 12)))
            WHERE name = $1 AND breaker <> 'open' RETURNING name
        )
        SELECT pg_notify($4, '') FROM changed
        """,
        name,
        float(OPEN_SECONDS),
        float(OPEN_CAP),
        CHANNEL,
        detail,
    )


async def try_probe(db: Db, name: str, seconds: float) -> bool:
    """open → half_open: True for the one replica in the cluster that may send one request now.

    Should it never report, another may after ``seconds``.
    """
    won = await db.fetchval(
        """
        UPDATE gateways SET breaker = 'half_open', retry_at = now() + $2 * interval '1 second'
        WHERE name = $1 AND breaker <> 'closed' AND retry_at <= now() RETURNING true
        """,
        name,
        float(seconds),
    )
    return bool(won)


async def close_breaker(db: Db, name: str) -> None:
    """open, half_open → closed: the gateway answers again."""
    await db.execute(
        """
        WITH changed AS (
            UPDATE gateways SET breaker = 'closed', openings = 0, retry_at = NULL
            WHERE name = $1 AND breaker <> 'closed' RETURNING name
        )
        SELECT pg_notify($2, '') FROM changed
        """,
        name,
        CHANNEL,
    )


async def take_tokens(db: Db, name: str, rate: float, burst: float, wanted: int) -> tuple[int, float]:
    """Take up to ``wanted`` tokens from the bucket that all replicas share: how many, and seconds until the next.

    The bucket fills at ``rate`` a second up to ``burst``.
    """
    row = await db.fetchrow(
        """
        WITH filled AS (
            SELECT name, least($3, tokens + $2 * greatest(0, extract(epoch FROM clock_timestamp() - tokens_at))) AS n
            FROM gateways WHERE name = $1 FOR UPDATE
        ), given AS (
            SELECT name, n, greatest(0, least($4, floor(n))) AS taken FROM filled  -- lateness may have made a debt
        )
        UPDATE gateways g
        SET tokens = given.n - given.taken, tokens_at = clock_timestamp()
        FROM given WHERE g.name = given.name
        RETURNING given.taken::int, greatest(0, 1 - g.tokens) / $2
        """,
        name,
        rate,
        burst,
        float(wanted),
    )
    return (0, 1.0) if row is None else (row[0], float(row[1]))


async def charge(db: Db, name: str, tokens: float) -> None:
    """Take a part of a token more: one was used so much later than it was given."""
    await db.execute("UPDATE gateways SET tokens = tokens - $2 WHERE name = $1", name, tokens)


async def note_errors(db: Db, name: str, errors: list[dict[str, Any]]) -> None:
    """Keep the newest errors for people to read, newest first, those of one kind as one: counted, from first to last.

    Each has ``at first_at count outcome status_code reason message_id detail``; a kind is outcome, status code and
    reason, and the words are those of its newest. ``at`` is when the request was started, which is not the order in
    which they end.
    """
    await db.execute(
        """
        UPDATE gateways
        SET last_errors = (
            SELECT coalesce(jsonb_agg(error ORDER BY error ->> 'at' DESC), '[]')
            FROM (
                -- times of one zone and width: as text they sort as times
                SELECT (array_agg(error ORDER BY error ->> 'at' DESC))[1] || jsonb_build_object(
                           'first_at', min(coalesce(error ->> 'first_at', error ->> 'at')),
                           'count', sum(coalesce((error ->> 'count')::bigint, 1))
                       ) AS error
                FROM jsonb_array_elements($2::jsonb || last_errors) error
                GROUP BY error -> 'outcome', error -> 'status_code', error -> 'reason'
                ORDER BY max(error ->> 'at') DESC LIMIT $3
            ) newest
        )
        WHERE name = $1
        """,
        name,
        errors,
        LAST_ERRORS,
    )
