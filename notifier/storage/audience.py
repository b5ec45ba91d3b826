"""The audience: which clients a mailing is for, and its planning into messages and batches, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from notifier.errors import Stale
from notifier.models import Filter, Window
from notifier.storage.database import Db
from notifier.storage.queue import BATCH_SIZE

# Clients looked at per slice, however few of them match: it bounds how long the other mailings wait.
SCANNED = 20_000


@dataclass(frozen=True, slots=True)
class Slice:
    """What one step of planning did; ``done`` when the audience is complete."""

    messages: int
    done: bool


def matches(filter: Filter, first: int) -> tuple[str, list[list[str] | None]]:
    """SQL over ``clients c`` for a filter, with its parameters from ``$first`` on."""
    sql = (
        f"(${first}::text[] IS NULL OR c.operator_code = ANY(${first}::text[]))"
        f" AND (${first + 1}::text[] IS NULL OR c.tags && ${first + 1}::text[])"
    )
    return sql, [filter.operator_codes, filter.tags]


async def count(db: Db, filter: Filter) -> int:
    """How many clients match at this moment; the start may find others."""
    matching, parameters = matches(filter, 1)
    found: int = await db.fetchval(f"SELECT count(*) FROM clients c WHERE {matching}", *parameters)
    return found


@dataclass(frozen=True, slots=True)
class Unplanned:
    """A running mailing as its planning found it: clients after ``cursor`` up to ``horizon`` are to be looked at."""

    id: int
    filter: Filter
    window: Window | None
    cursor: int
    horizon: int
    now: datetime


async def unplanned(db: Db) -> list[Unplanned]:
    """Running mailings whose audience is not complete, higher priority first, then the smallest so far."""
    rows = await db.fetch(
        """
        SELECT id, filter, window_from, window_to, cursor, horizon, now() AS now FROM mailings
        WHERE status = 'running' AND NOT planned ORDER BY priority DESC, audience, id
        """
    )
    return [
        Unplanned(
            id=row["id"],
            filter=Filter.from_json(row["filter"]),
            window=None if row["window_from"] is None else Window(row["window_from"], row["window_to"]),
            cursor=row["cursor"],
            horizon=row["horizon"],
            now=row["now"],
        )
        for row in rows
    ]


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


async def plan_slice(
    db: Db,
    mailing: Unplanned,
    size: int,
    first_id: int,
    due_at: Callable[[datetime, Window, str | None], datetime],
) -> Slice:
    """Choose the next up to ``size`` clients of a running mailing, in id order; all is written by one statement.

    ``first_id`` starts a block of ``size`` ids from `take_ids`; ``due_at(now, window, timezone)`` says when a client
    may be texted. Raises Stale, and has written nothing, when the mailing has another window, was stopped or planned on
    meanwhile: so no slice mixes two windows, and nobody is chosen twice.
    """
    matching, parameters = matches(mailing.filter, 5)
    clients = await db.fetch(
        f"""
        WITH scanned AS MATERIALIZED (
            SELECT * FROM clients WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3
        )
        (SELECT c.id, c.timezone FROM scanned c WHERE {matching} ORDER BY c.id LIMIT $4)
        UNION ALL
        -- the last row says how far the scan came; NULL when it found nobody
        SELECT max(id), CASE WHEN count(*) < $3 THEN 'end' END FROM scanned
        """,
        mailing.cursor,
        mailing.horizon,
        SCANNED,
        size,
        *parameters,
    )
    *chosen, (scanned_to, at_end) = clients
    full = len(chosen) == size
    done = at_end is not None and not full
    cursor = chosen[-1]["id"] if full else scanned_to
    groups: dict[datetime, list[int]] = {}
    due: dict[str | None, datetime] = {}
    for client_id, timezone in chosen:
        if timezone not in due:
            due[timezone] = due_at(mailing.now, mailing.window, timezone) if mailing.window else mailing.now
        groups.setdefault(due[timezone], []).append(client_id)
    await _store(db, mailing, first_id, groups, cursor=mailing.cursor if cursor is None else cursor, done=done)
    return Slice(len(chosen), done)


async def _store(
    db: Db, mailing: Unplanned, first_id: int, groups: dict[datetime, list[int]], *, cursor: int, done: bool
) -> None:
    """Write messages and batches: ids run on through the groups, so that every batch is one range."""
    ranges = _ranges(first_id, groups)
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
            INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, standing)
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
        cursor,
        done,
        mailing.window and mailing.window.start,
        [client for group in groups.values() for client in group],
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
