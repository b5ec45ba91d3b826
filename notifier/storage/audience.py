"""The audience: which clients a mailing is for, and its planning into messages and batches, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

import asyncpg

from notifier.errors import Stale
from notifier.models import Filter, Window
from notifier.storage.database import Db
from notifier.storage.queue import BATCH_SIZE

# Clients looked at per slice, however few of them match: it bounds how long the other mailings wait.
SCANNED = 20_000


def matches(filter: Filter, first: int) -> tuple[str, list[list[str] | None]]:
    """SQL over ``clients c`` for a filter, with its parameters from ``$first`` on."""
    sql = (
        f"(${first}::text[] IS NULL OR c.operator_code = ANY(${first}::text[]))"
        f" AND (${first + 1}::text[] IS NULL OR c.tags && ${first + 1}::text[])"
    )
    return sql, [filter.operator_codes, filter.tags]


async def by_zone(db: Db, filter: Filter) -> dict[str | None, int]:
    """How many clients match at this moment, by their time zone; the start may find others."""
    matching, parameters = matches(filter, 1)
    rows = await db.fetch(
        f"SELECT c.timezone, count(*) AS n FROM clients c WHERE {matching} GROUP BY c.timezone", *parameters
    )
    return {row["timezone"]: row["n"] for row in rows}


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A running mailing as its planning found it: clients after ``cursor`` up to ``horizon`` are to be looked at."""

    id: int
    priority: int
    filter: Filter
    window: Window | None
    cursor: int
    horizon: int
    now: datetime


@dataclass(frozen=True, slots=True)
class Slice:
    """The next clients of a mailing by when they may be texted, and how far the audience is complete with them."""

    mailing: Unplanned
    clients: dict[datetime, list[int]]
    cursor: int
    done: bool

    @property
    def size(self) -> int:
        """How many clients it has: none where no client of many matches."""
        return sum(map(len, self.clients.values()))


_UNPLANNED = "id, priority, filter, window_from, window_to, cursor, horizon, now() AS now"


def _unplanned(row: asyncpg.Record) -> Unplanned:
    return Unplanned(
        id=row["id"],
        priority=row["priority"],
        filter=Filter.from_json(row["filter"]),
        window=Window.between(row["window_from"], row["window_to"]),
        cursor=row["cursor"],
        horizon=row["horizon"],
        now=row["now"],
    )


async def begin_due(db: Db) -> list[Unplanned]:
    """scheduled → running for those whose start has come; their audience is whoever is a client at this moment."""
    rows = await db.fetch(
        f"""
        UPDATE mailings
        SET status = 'running', started_at = now(), horizon = (SELECT coalesce(max(id), 0) FROM clients)
        WHERE status = 'scheduled' AND starts_at <= clock_timestamp() AND ends_at > clock_timestamp()
        RETURNING {_UNPLANNED}
        """
    )
    return [_unplanned(row) for row in rows]


async def unplanned(db: Db) -> list[Unplanned]:
    """Running mailings whose audience is not complete."""
    rows = await db.fetch(f"SELECT {_UNPLANNED} FROM mailings WHERE status = 'running' AND NOT planned")
    return [_unplanned(row) for row in rows]


async def take_ids(db: Db, count: int) -> int:
    """The first of ``count`` contiguous message ids that nobody else gets, in a short transaction of its own.

    Ids carry the time (2**22 a second since 2025), so they fit 2**53, and neither a restore nor a failover gives one
    twice: a gateway that drops repeated ids would swallow new messages.
    """
    first: int = await db.fetchval(
        """
        UPDATE message_ids
        SET next = greatest(next, (extract(epoch FROM clock_timestamp() - '2025-01-01Z'::timestamptz)
                                   * 4194304)::bigint) + $1
        RETURNING next - $1
        """,
        count,
    )
    return first


async def choose(
    db: Db, mailing: Unplanned, size: int, due_at: Callable[[datetime, Window, str | None], datetime]
) -> Slice:
    """The next up to ``size`` clients of a mailing, in id order.

    ``due_at(now, window, timezone)`` says when a client may be texted.
    """
    matching, parameters = matches(mailing.filter, 5)
    clients = await db.fetch(
        f"""
        WITH bound AS MATERIALIZED (
            -- how far this look goes; NULL to the end
            SELECT (SELECT id FROM clients WHERE id > $1 AND id <= $2 ORDER BY id OFFSET $3 - 1 LIMIT 1) AS id
        )
        (
            SELECT c.id, c.timezone FROM clients c
            WHERE c.id > $1 AND c.id <= coalesce((SELECT id FROM bound), $2) AND {matching}
            ORDER BY c.id LIMIT $4
        )
        UNION ALL
        SELECT coalesce(id, $2), CASE WHEN id IS NULL THEN 'end' END FROM bound
        """,
        mailing.cursor,
        mailing.horizon,
        SCANNED,
        size,
        *parameters,
    )
    *chosen, (looked_to, at_end) = clients
    full = len(chosen) == size
    groups: dict[datetime, list[int]] = {}
    due: dict[str | None, datetime] = {}
    for client_id, timezone in chosen:
        if timezone not in due:
            due[timezone] = due_at(mailing.now, mailing.window, timezone) if mailing.window else mailing.now
        groups.setdefault(due[timezone], []).append(client_id)
    cursor = chosen[-1]["id"] if full else looked_to
    return Slice(mailing, groups, cursor, at_end is not None and not full)


async def store(db: Db, slice_: Slice, first_id: int) -> None:
    """Write a slice as messages and batches, with ids from ``first_id`` on, by one statement.

    Raises Stale, and has written nothing, when the mailing has another window, was stopped or planned on since it was
    read: so no slice mixes two windows, and nobody is chosen twice.
    """
    mailing = slice_.mailing
    ranges = _ranges(first_id, slice_.clients)
    stored = await db.fetchval(
        """
        WITH mailing AS (
            UPDATE mailings SET audience = audience + cardinality($6::bigint[]), cursor = $3, planned = $4
            WHERE id = $1 AND cursor = $2 AND status = 'running' AND NOT planned
              AND (window_from, window_to) IS NOT DISTINCT FROM ($5::time, $11::time)
            RETURNING id
        ), chosen AS (
            INSERT INTO messages (id, mailing_id, client_id)
            SELECT $7 + position - 1, mailing.id, client_id
            FROM mailing CROSS JOIN unnest($6::bigint[]) WITH ORDINALITY c (client_id, position)
        ), queued AS (
            INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
            SELECT mailing.id, due_at, first_id, last_id, last_id - first_id + 1, 1, 'waiting'
            FROM mailing CROSS JOIN unnest($8::timestamptz[], $9::bigint[], $10::bigint[]) r (due_at, first_id, last_id)
        ), noted AS (
            INSERT INTO slices (mailing_id, first_id, last_id)
            SELECT id, $7, $7 + cardinality($6::bigint[]) - 1 FROM mailing WHERE cardinality($6::bigint[]) > 0
        )
        SELECT EXISTS (SELECT FROM mailing)
        """,
        mailing.id,
        mailing.cursor,
        slice_.cursor,
        slice_.done,
        mailing.window and mailing.window.start,
        [client for group in slice_.clients.values() for client in group],  # so that every batch is one range of ids
        first_id,
        [due_at for due_at, _, _ in ranges],
        [first for _, first, _ in ranges],
        [last for _, _, last in ranges],
        mailing.window and mailing.window.end,
    )
    if not stored:
        raise Stale


def _ranges(first_id: int, groups: dict[datetime, list[int]]) -> Sequence[tuple[datetime, int, int]]:
    ranges = []
    for due_at, group in groups.items():
        for start in range(0, len(group), BATCH_SIZE):
            count = min(BATCH_SIZE, len(group) - start)
            ranges.append((due_at, first_id, first_id + count - 1))
            first_id += count
    return ranges
