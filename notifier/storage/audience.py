"""The audience: which clients a mailing is for, and its planning into messages and batches, slice by slice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from notifier.models import Filter, MailingStatus, Window
from notifier.storage.database import Db, transaction
from notifier.storage.queue import BATCH_SIZE

# Clients looked at per slice, however few of them match: it bounds how long the mailing's row is locked.
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


async def unplanned(db: Db) -> list[int]:
    """Running mailings whose audience is not complete, higher priority first, then the smallest so far."""
    rows = await db.fetch(
        "SELECT id FROM mailings WHERE status = 'running' AND NOT planned ORDER BY priority DESC, audience, id"
    )
    return [row["id"] for row in rows]


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
    mailing_id: int,
    size: int,
    first_id: int,
    due_at: Callable[[datetime, Window, str | None], datetime],
) -> Slice:
    """Choose the next up to ``size`` clients of a running mailing, in id order, in one transaction.

    ``first_id`` starts a block of ``size`` ids from `take_ids`; ``due_at(now, window, timezone)`` says when a client
    may be texted. Filter and window are read under the mailing's lock, so that a slice never mixes two of them.
    """
    async with transaction(db) as conn:
        mailing = await conn.fetchrow(
            """
            SELECT status, planned, filter, window_from, window_to, cursor, horizon, now() AS now FROM mailings
            WHERE id = $1 FOR UPDATE
            """,
            mailing_id,
        )
        if mailing is None or mailing["planned"] or mailing["status"] != MailingStatus.RUNNING:
            return Slice(0, done=True)
        matching, parameters = matches(Filter.from_json(mailing["filter"]), 5)
        clients = await conn.fetch(
            f"""
            WITH scanned AS MATERIALIZED (
                SELECT * FROM clients WHERE id > $1 AND id <= $2 ORDER BY id LIMIT $3
            )
            (SELECT c.id, c.timezone FROM scanned c WHERE {matching} ORDER BY c.id LIMIT $4)
            UNION ALL
            -- the last row says how far the scan came; NULL when it found nobody
            SELECT max(id), CASE WHEN count(*) < $3 THEN 'end' END FROM scanned
            """,
            mailing["cursor"],
            mailing["horizon"],
            SCANNED,
            size,
            *parameters,
        )
        *chosen, (scanned_to, at_end) = clients
        full = len(chosen) == size
        done = at_end is not None and not full
        cursor = chosen[-1]["id"] if full else scanned_to
        groups: dict[datetime, list[int]] = {}
        if mailing["window_from"] is None:
            if chosen:
                groups[mailing["now"]] = [row["id"] for row in chosen]
        else:
            window = Window(mailing["window_from"], mailing["window_to"])
            due: dict[str | None, datetime] = {}
            for client_id, timezone in chosen:
                if timezone not in due:
                    due[timezone] = due_at(mailing["now"], window, timezone)
                groups.setdefault(due[timezone], []).append(client_id)
        await _store(conn, mailing_id, first_id, groups)
        await conn.execute(
            "UPDATE mailings SET audience = audience + $2, cursor = coalesce($3, cursor), planned = $4 WHERE id = $1",
            mailing_id,
            len(chosen),
            cursor,
            done,
        )
        return Slice(len(chosen), done)


async def _store(conn: Db, mailing_id: int, first_id: int, groups: dict[datetime, list[int]]) -> None:
    """Write messages and batches: ids run on through the groups, so that every batch is one range."""
    if not groups:
        return
    clients = [client for group in groups.values() for client in group]
    await conn.execute(
        """
        INSERT INTO messages (id, mailing_id, client_id)
        SELECT $1 + position - 1, $2, client_id FROM unnest($3::bigint[]) WITH ORDINALITY c (client_id, position)
        """,
        first_id,
        mailing_id,
        clients,
    )
    ranges = _ranges(first_id, groups)
    await conn.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, standing)
        SELECT $1, due_at, first_id, last_id, last_id - first_id + 1, 1, 'waiting'
        FROM unnest($2::timestamptz[], $3::bigint[], $4::bigint[]) r (due_at, first_id, last_id)
        """,
        mailing_id,
        *zip(*ranges, strict=True),
    )
    await conn.execute(
        "INSERT INTO slices (mailing_id, first_id, last_id) VALUES ($1, $2, $3)",
        mailing_id,
        first_id,
        first_id + len(clients) - 1,
    )


def _ranges(first_id: int, groups: dict[datetime, list[int]]) -> Sequence[tuple[datetime, int, int]]:
    ranges = []
    for due_at, group in groups.items():
        for start in range(0, len(group), BATCH_SIZE):
            count = min(BATCH_SIZE, len(group) - start)
            ranges.append((due_at, first_id, first_id + count - 1))
            first_id += count
    return ranges
