"""The row of a gateway in the tests of storage: read, and set past all rules."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from notifier.storage.database import Db

NAME = "default"


async def row_of(db: Db) -> dict[str, Any]:
    """The row, and how long the pause and the wait for a probe still last."""
    row = await db.fetchrow("SELECT *, paused_until - now() AS paused_for, retry_at - now() AS retry_in FROM gateways")
    assert row is not None
    return dict(row)


def about(value: timedelta, seconds: float) -> bool:
    """Whether ``value`` is ``seconds``, or up to two less."""
    return seconds - 2 < value.total_seconds() <= seconds


async def state(db: Db, **columns: Any) -> None:
    """Set columns of the row; those that end in ``_in`` are seconds from now."""
    for name, value in columns.items():
        if name.endswith("_in"):
            column = {"paused_in": "paused_until", "retry_in": "retry_at", "tokens_in": "tokens_at"}[name]
            await db.execute(f"UPDATE gateways SET {column} = now() + $1 * interval '1 second'", float(value))
        else:
            await db.execute(f"UPDATE gateways SET {name} = $1", value)
