"""Two connections at once, and statements with a part left out: they show what a lock or a condition is for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest

from notifier.storage import recording
from notifier.storage.database import Connection, Db, Pool
from tests.conftest import poll_until

T = TypeVar("T")


class Rewritten:
    """A connection that says something else than it was given: each key is replaced by its value, and must occur."""

    def __init__(self, db: Db, replace: dict[str, str]) -> None:
        self._db = db
        self._replace = replace
        self.missing = set(replace)

    def _said(self, sql: str) -> str:
        for old, new in self._replace.items():
            if old in sql:
                self.missing.discard(old)
                sql = sql.replace(old, new)
        return sql

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._db, name)
        if name not in ("fetch", "fetchrow", "fetchval", "execute"):
            return found
        return lambda sql, *args: found(self._said(sql), *args)


def leave_out(monkeypatch: pytest.MonkeyPatch, old: str, new: str = "") -> None:
    """Change the statement of ``recording.record``; ``old`` must occur in it."""
    assert old in recording._RECORD
    monkeypatch.setattr(recording, "_RECORD", recording._RECORD.replace(old, new))


@asynccontextmanager
async def without(db: Pool, replace: dict[str, str]) -> AsyncIterator[Any]:
    """A connection of its own on which the statements are changed like that."""
    async with db.acquire() as connection:
        changed = Rewritten(connection, replace)
        yield changed
        assert not changed.missing, f"no statement says {changed.missing}"


async def waiting_for_a_lock(db: Db, connection: Any) -> None:
    """Return when the server says that this connection waits for somebody's lock."""
    pid = connection.get_server_pid()

    async def waits() -> bool:
        return bool(
            await db.fetchval(
                "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND wait_event_type = 'Lock')", pid
            )
        )

    await poll_until(waits)


async def while_held(
    db: Pool,
    held: Callable[[Connection], Awaitable[Any]],
    then: Callable[[Any], Awaitable[T]],
    *,
    replace: dict[str, str] | None = None,
) -> T:
    """Do ``held`` in a transaction, begin ``then`` on another connection, commit when that one waits."""
    async with without(db, replace or {}) as second:
        async with db.acquire() as first, first.transaction():
            await held(first)
            task = asyncio.ensure_future(then(second))
            await waiting_for_a_lock(db, second)
        return await task
