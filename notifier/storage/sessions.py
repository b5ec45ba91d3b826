"""Who is logged in to the pages: one row a session, from log-in until log-out or its end."""

from __future__ import annotations

from dataclasses import dataclass

from notifier.storage.database import Db

HOURS = 12
"""A session's longest life, counted by the database's clock."""
IDLE_MINUTES = 60
"""It ends so long after the last request of a person."""


@dataclass(frozen=True, slots=True)
class Session:
    """A session that is good: ``token`` as `begin` got it, ``due`` when nobody was noted for a minute."""

    token: bytes
    due: bool


async def begin(db: Db, hash: bytes, token: bytes) -> None:
    """Keep a new session; ``hash`` is the SHA-256 of its secret, ``token`` says whose it is."""
    await db.execute(
        "INSERT INTO sessions (hash, token, expires_at) VALUES ($1, $2, now() + make_interval(hours => $3))",
        hash,
        token,
        HOURS,
    )


async def find(db: Db, hash: bytes) -> Session | None:
    """Return the session whose secret has this SHA-256, unless it is over."""
    row = await db.fetchrow(
        """
        SELECT token, seen_at < now() - interval '1 minute' AS due FROM sessions
        WHERE hash = $1 AND expires_at > now() AND seen_at > now() - make_interval(mins => $2)
        """,
        hash,
        IDLE_MINUTES,
    )
    return None if row is None else Session(row["token"], row["due"])


async def touch(db: Db, hash: bytes) -> None:
    """Note that a person was here."""
    await db.execute("UPDATE sessions SET seen_at = now() WHERE hash = $1", hash)


async def end(db: Db, hash: bytes) -> None:
    """Forget a session."""
    await db.execute("DELETE FROM sessions WHERE hash = $1", hash)


async def purge(db: Db) -> None:
    """Forget those that are over."""
    await db.execute(
        "DELETE FROM sessions WHERE expires_at <= now() OR seen_at <= now() - make_interval(mins => $1)", IDLE_MINUTES
    )
