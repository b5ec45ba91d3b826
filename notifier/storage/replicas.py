"""Replicas: the key they share; for those with a scheduler a row with a heartbeat counter, and a session lock."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import secrets

from notifier.storage.database import Db
from notifier.storage.mailings import CHANNEL

LOCKS = 0x6E6F7469
"""The class of the advisory locks of replicas: "noti" in ASCII; the object is the replica's number."""


SALT = 16
"""Random bytes that a mark of the key begins with."""
OLD_MARK = 32
"""Bytes of a mark that version 0.1.0 wrote: an HMAC."""


async def share_key(db: Db, secret_key: str) -> bool:
    """Note the key; False when the replica that started last had another.

    The mark is a slow hash with a salt, so that who reads the database cannot try keys by the million. Version 0.1.0
    had a fast one, which is replaced.
    """
    before: bytes | None = await db.fetchval("SELECT mark FROM secret_key")
    if before is not None and len(before) != OLD_MARK:
        same = hmac.compare_digest(before, await asyncio.to_thread(_mark, secret_key, before[:SALT]))
        if same:
            return True
    else:
        same = before is None or hmac.compare_digest(before, hmac.digest(secret_key.encode(), b"notifier", "sha256"))
    await db.execute(
        "INSERT INTO secret_key (mark) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET mark = excluded.mark",
        await asyncio.to_thread(_mark, secret_key, secrets.token_bytes(SALT)),
    )
    return same


def _mark(secret_key: str, salt: bytes) -> bytes:
    return salt + hashlib.scrypt(secret_key.encode(), salt=salt, n=2**15, r=8, p=1, maxmem=2**26)


async def register(db: Db, name: str) -> int:
    """A number for a replica that starts; ``name`` is for people."""
    number: int = await db.fetchval("INSERT INTO replicas (name) VALUES ($1) RETURNING id", name)
    return number


async def beat(db: Db, replica: int, name: str, *, session: bool) -> dict[int, int]:
    """Raise the own counter (a row that was taken away comes back) and read everybody's: replica → counter.

    ``session`` says whether the lock is held (see cluster/control.py).
    """
    rows = await db.fetch(
        """
        WITH mine AS (
            INSERT INTO replicas (id, name, beat, session) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 1, $3)
            ON CONFLICT (id) DO UPDATE SET beat = replicas.beat + 1, session = $3
        )
        SELECT id, beat FROM replicas
        """,
        replica,
        name,
        session,
    )
    return {row["id"]: row["beat"] for row in rows}


async def lock(db: Db, replica: int) -> bool:
    """Take the replica's lock for the life of this connection; False while another connection has it."""
    taken: bool = await db.fetchval("SELECT pg_try_advisory_lock($1, $2)", LOCKS, replica)
    return taken


async def unlocked(db: Db) -> set[int]:
    """The replicas that said they hold their lock, and do not."""
    rows = await db.fetch(
        """
        SELECT r.id FROM replicas r
        WHERE r.session AND NOT EXISTS (
            SELECT FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
            WHERE l.locktype = 'advisory' AND l.classid = $1::bigint::oid AND l.objid = r.id::bigint::oid
              AND l.objsubid = 2
        )
        """,
        LOCKS,
    )
    return {row["id"] for row in rows}


async def call(db: Db, replica: int) -> None:
    """Say the replica's number to all who listen."""
    await db.execute("SELECT pg_notify($1, $2)", CHANNEL, str(replica))


async def forget(db: Db, replica: int) -> bool:
    """Take a replica off the list, unless it owns batches still: False then."""
    gone = await db.fetchval(
        """
        DELETE FROM replicas
        WHERE id = $1 AND NOT EXISTS (SELECT FROM batches b WHERE b.owner IS NOT NULL AND b.replica = $1)
        RETURNING id
        """,
        replica,
    )
    return gone is not None
