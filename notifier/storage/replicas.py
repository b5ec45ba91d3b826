"""The replicas that run a scheduler: each has a row with a heartbeat counter."""

from __future__ import annotations

from notifier.storage.database import Db


async def register(db: Db, name: str) -> int:
    """A number for a replica that starts; ``name`` is for people."""
    number: int = await db.fetchval("INSERT INTO replicas (name) VALUES ($1) RETURNING id", name)
    return number


async def beat(db: Db, replica: int, name: str) -> dict[int, int]:
    """Raise the own counter (a row that was taken away comes back) and read everybody's: replica → counter."""
    rows = await db.fetch(
        """
        WITH mine AS (
            INSERT INTO replicas (id, name, beat) OVERRIDING SYSTEM VALUE VALUES ($1, $2, 1)
            ON CONFLICT (id) DO UPDATE SET beat = replicas.beat + 1
        )
        SELECT id, beat FROM replicas
        """,
        replica,
        name,
    )
    return {row["id"]: row["beat"] for row in rows}


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
