"""The control connection of a replica: it LISTENs to what others changed, and its lock says that this replica lives.

The lock goes with the connection, so a kill -9 frees it at once, long before the heartbeat is missed. It is a hint that
makes reclaiming faster, and nothing relies on it: behind a pooler in transaction mode sessions are shared. A
replica says that it holds its lock only after it has received, over this very connection, a notification that it sent
itself over another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import structlog

from notifier.storage import mailings, replicas
from notifier.storage.database import AWAY, Pool

log = structlog.get_logger(__name__)

# Seconds between two checks of the others' locks.
CHECK = 0.35
# Seconds between two tries while the server still holds the lock for our connection before: well under FREE_FOR.
AGAIN = 0.1
# A connection that is younger (seconds) shows nothing: a restart of the database frees all locks at once, and their
# holders need a moment to come back.
TRUSTED_AFTER = 5.0
# Seconds after which the own notification, which did not come back, is sent again: a pooler, or it was lost.
ECHO_WITHIN = 5.0


class ControlConnection:
    """Connects by itself, and again when the connection is lost.

    ``on_news`` is called when a replica changed something, ``on_locks`` with the numbers of those whose lock is
    free (nothing is known: None), ``on_held`` when the lock is held, ``on_lost`` when the connection broke.
    """

    def __init__(
        self,
        db: Pool,
        replica: int,
        *,
        on_news: Callable[[], None],
        on_locks: Callable[[set[int] | None], None],
        on_held: Callable[[], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._db = db
        self._replica = replica
        self._on_news = on_news
        self._on_locks = on_locks
        self._on_held = on_held
        self._on_lost = on_lost
        self._connection: Any = None
        self._since = 0.0
        self._asked = 0.0
        self._locked = False
        self._echoed = False

    @property
    def held(self) -> bool:
        """Whether the lock is held, and on a connection that is really ours."""
        return self._locked and self._echoed

    async def poll(self) -> float:
        """Connect where there is no connection, then check the others' locks; seconds until the next check."""
        if self._is_closed():
            await self._connect()
        if not self._locked:
            self._locked = await replicas.lock(self._connection, self._replica)
            if not self._locked:  # the server has not noticed yet that the connection before is gone
                return AGAIN
        now = time.monotonic()
        if not self._echoed:
            if now - self._asked >= ECHO_WITHIN:
                self._asked = now
                await replicas.call(self._db, self._replica)
            return CHECK
        if now - self._since >= TRUSTED_AFTER:
            self._on_locks(await replicas.unlocked(self._connection))
        return CHECK

    async def _connect(self) -> None:
        await self.close()
        self._connection = await self._db.acquire()
        try:
            self._connection.add_termination_listener(self._terminated)
            await self._connection.add_listener(mailings.CHANNEL, self._heard)
        except BaseException:  # one that does not listen is of no use
            await self.close()
            raise
        self._since = time.monotonic()
        self._on_news()  # what was announced before is found by checking

    def _heard(self, _connection: object, _pid: int, _channel: str, word: object) -> None:
        if word == str(self._replica):
            self._echoed = True
            self._on_held()
        elif not word:  # else it is the number of another replica
            self._on_news()

    def _terminated(self, _connection: object) -> None:
        self._forget()
        self._on_lost()

    def _forget(self) -> None:
        self._locked = self._echoed = False
        self._asked = 0.0
        self._on_locks(None)

    def _is_closed(self) -> bool:
        try:
            return self._connection is None or self._connection.is_closed()
        except asyncpg.InterfaceError:  # the pool has taken a broken connection back by itself
            return True

    async def close(self) -> None:
        """Close the connection, so that its advisory lock and LISTEN do not return to the pool."""
        if self._connection is None:
            return
        connection, self._connection = self._connection, None
        self._forget()
        with suppress(*AWAY):
            closed = connection.is_closed()  # raises for one that the pool has taken back
            connection.remove_termination_listener(self._terminated)
            if closed:
                connection.terminate()  # broken just now, it may still have our listener; the pool would warn of it
            else:
                await connection.close()
            await self._db.release(connection)
