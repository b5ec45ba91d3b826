"""Answers kept for requests that are repeated with the same ``Idempotency-Key``."""

from __future__ import annotations

from dataclasses import dataclass

from notifier.errors import Conflict, Invalid, Problem
from notifier.storage.database import Connection, Db


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it was given."""

    status: int
    headers: dict[str, str]
    body: bytes


async def claim(db: Connection, key: bytes, body: bytes) -> Answer | None:
    """Return the answer given to this key in the last 24 h; None makes the key the caller's until the transaction ends.

    ``db`` must be in a transaction: its lock is all that says "under way", so a crash leaves nothing to clear away.
    ``key`` and ``body`` are SHA-256 hashes. Raises ``Conflict`` while another transaction has the key, and
    ``Invalid`` when it was used with another body.
    """
    if not await db.fetchval("SELECT pg_try_advisory_xact_lock($1)", int.from_bytes(key[:8], signed=True)):
        raise Conflict("The first request with this Idempotency-Key is still under way.")
    # A second statement, so that it sees what the one before committed.
    row = await db.fetchrow(
        """
        SELECT body, status, headers, answer FROM idempotency_keys
        WHERE key = $1 AND created_at > now() - interval '24 hours'
        """,
        key,
    )
    if row is None:
        return None
    if row["body"] != body:
        raise Invalid([Problem("", "this Idempotency-Key was used with another body; take a new key")])
    return Answer(row["status"], row["headers"], row["answer"])


async def keep(db: Db, key: bytes, body: bytes, answer: Answer) -> None:
    """Store the answer, in the transaction that did what it tells of."""
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


async def purge(db: Db, limit: int = 1000) -> int:
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
