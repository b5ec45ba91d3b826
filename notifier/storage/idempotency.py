"""Answers kept for requests that are repeated with the same ``Idempotency-Key``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from notifier.errors import Code, Conflict, Invalid, Problem
from notifier.storage.database import Connection, Db, Pool, transaction

WAIT = 3.0
"""Seconds that a repeated request waits for the first one, which is usually done by then."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.2
"""Seconds between two looks."""

PIECE = 1000
"""Answers that are purged at once."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was given."""

    status: int
    headers: dict[str, str]
    body: bytes


async def once(
    db: Pool, key: bytes, body: bytes, make: Callable[[Connection], Awaitable[Answer]]
) -> tuple[Answer, bool]:
    """Return the answer given to this key in the last 24 h and True; else what ``make`` answers, and False.

    One transaction holds what ``make`` does and its stored answer, so a crash leaves neither. ``key`` and ``body`` are
    SHA-256 hashes. While another transaction has the key it is waited for, `WAIT` seconds at most and without a
    connection. Raises ``Conflict`` when it is still under way then, ``Invalid`` when the key was used with another
    body, and whatever ``make`` raises: then nothing is stored.
    """
    deadline, pause = time.monotonic() + WAIT, FIRST_PAUSE
    while True:
        async with transaction(db) as connection:
            stored, ours = await _look(connection, key, body)
            if stored is not None:
                return stored, True
            if ours:
                answer = await make(connection)
                await _keep(connection, key, body, answer)
                return answer, False
        if time.monotonic() >= deadline:
            raise Conflict(Code.FIRST_UNDER_WAY)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_PAUSE)


async def _look(connection: Connection, key: bytes, body: bytes) -> tuple[Answer | None, bool]:
    """Return the stored answer, and whether the key is ours until the transaction ends: its lock is "under way"."""
    ours: bool = await connection.fetchval("SELECT pg_try_advisory_xact_lock($1)", int.from_bytes(key[:8], signed=True))
    # A second statement, so that it sees what the one before committed. Without the lock too: whoever has it may only
    # be reading the answer.
    row = await connection.fetchrow(
        """
        SELECT body, status, headers, answer FROM idempotency_keys
        WHERE key = $1 AND created_at > now() - interval '24 hours'
        """,
        key,
    )
    if row is None:
        return None, ours
    if row["body"] != body:
        raise Invalid([Problem("", Code.KEY_USED)])
    return Answer(row["status"], row["headers"], row["answer"]), ours


async def _keep(db: Db, key: bytes, body: bytes, answer: Answer) -> None:
    await db.execute(
        """
        INSERT INTO idempotency_keys (key, body, status, headers, answer) VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (key) DO UPDATE
        SET body = excluded.body, status = excluded.status, headers = excluded.headers, answer = excluded.answer,
            created_at = excluded.created_at
        """,
        key,
        body,
        answer.status,
        answer.headers,
        answer.body,
    )


async def purge(db: Db, limit: int = PIECE) -> int:
    """Delete up to ``limit`` answers older than 24 h and return how many there were."""
    rows = await db.fetch(
        """
        DELETE FROM idempotency_keys WHERE key IN (
            SELECT key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
            ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING 1
        """,
        limit,
    )
    return len(rows)
