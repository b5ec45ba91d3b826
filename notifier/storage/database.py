"""The pool and its connections, transactions, and what asyncpg raises while the database is away."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

import asyncpg
import orjson
import structlog
from asyncpg.pool import PoolConnectionProxy

from notifier import address

log = structlog.get_logger(__name__)

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Db: TypeAlias = "Pool | Connection"
"""What a storage function takes first: a pool, or a connection in a transaction the caller owns."""
AWAY: tuple[type[BaseException], ...] = (
    OSError,  # TimeoutError and gaierror are such
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, terminated, cancelled by the timeout
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.IdleInTransactionSessionTimeoutError,  # this process stood still, and the server went on without it
    asyncpg.TransactionTimeoutError,
    asyncpg.InterfaceError,  # the connection is closed; our own misuse of asyncpg looks the same
    asyncpg.InternalClientError,  # the connection is being closed; no host has the wanted attributes
)
"""What asyncpg raises while the database is unavailable, full, read-only or too slow: the same call may do later."""
DISTURBED: tuple[type[BaseException], ...] = (
    asyncpg.TransactionRollbackError,  # deadlock, serialization failure
    asyncpg.LockNotAvailableError,  # a lock_timeout
)
"""What the same call may do a moment later, since another one was in its way."""


SESSION = {
    "timezone": "UTC",
    "jit": "off",
    # A role or a database may have other values of these. Ours are stricter in their own way: each statement has its
    # own limit, and who stands still inside a transaction keeps everybody from the rows it has locked.
    "lock_timeout": "0",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "3000",
    "default_transaction_isolation": "read committed",
}
"""The settings of each session, as the server shows them, beside ``statement_timeout`` (all times in milliseconds)."""
POOLERS_PASS_ON = ("timezone", "application_name", "options")
"""All that a session is told behind a pooler: PgBouncer refuses a client that asks for more (``options`` stand only
where the address has them)."""


async def create_pool(
    dsn: str,
    *,
    size: int,
    application_name: str,
    statement_cache: int = 100,
    statement_timeout: float = 5.0,
    silence: float = 10.0,
) -> Pool:
    """Open a pool of at most ``size`` connections; jsonb goes in and comes out as Python values.

    ``statement_timeout`` is in seconds, held by the server; after ``silence`` seconds, and a fifth more than that, a
    server that says nothing counts as away. A call may wait twice as long: asyncpg also asks it to cancel. ``dsn`` may
    name several hosts and ``target_session_attrs``; ValueError when `address.parse` refuses it. Session state (SET,
    LISTEN, session locks) must not be left on a connection: the pool hands it on as it is, which saves a round trip per
    use. Connections are made when they are needed. The first one of a process looks whether a pooler is in between, see
    `Way`.
    """
    place = address.parse(dsn)
    given = place.asyncpg(timeout=silence)
    settings = {
        "application_name": application_name,
        **SESSION,
        "statement_timeout": f"{statement_timeout * 1000:.0f}",
        **given.pop("server_settings"),
    }

    looking = asyncio.Lock()

    async def connect(*args: Any, **kwargs: Any) -> Any:
        async with looking:
            if (dsn, statement_cache) not in _WAYS:
                _WAYS[dsn, statement_cache] = await _look(place, statement_cache)
        way = _WAYS[dsn, statement_cache]
        if way.pooled:
            kwargs["server_settings"] = {name: settings[name] for name in POOLERS_PASS_ON if name in settings}
        return await asyncpg.connect(*args, **kwargs | {"statement_cache_size": way.statement_cache})

    async def keep(connection: Any) -> None:
        """Leave the session as it is (asyncpg has rolled an open transaction back by now), unless it cannot write.

        The server has told so by itself. What a pooler tells is what once was, and of another session.
        """
        told = connection.get_settings()
        read_only = "on" in (
            getattr(told, "in_hot_standby", None),
            getattr(told, "default_transaction_read_only", None),
        )
        if read_only and not _WAYS[dsn, statement_cache].pooled:
            await pool.expire_connections()  # the next use connects anew, perhaps to the primary

    pool = await asyncpg.create_pool(
        **given,
        min_size=0,  # while the server is away, asyncpg logs each vain try to keep a minimum
        max_size=size,
        command_timeout=max(silence, statement_timeout * 1.2),
        connect=connect,
        init=_init,
        reset=keep,
        server_settings=settings,
    )
    return pool


@dataclass(frozen=True, slots=True)
class Way:
    """How an address leads to its server: through a pooler or not, and how many prepared statements last on the way."""

    pooled: bool
    statement_cache: int


_WAYS: dict[tuple[str, int], Way] = {}
HEARD_WITHIN = 1.0
"""Seconds in which a notification comes back, where it can."""


async def _look(place: address.Address, statement_cache: int) -> Way:
    """Find out whether a pooler stands between, and whether a prepared statement is there in the next transaction.

    No pooler can tell a client at the log-in which process will serve it. One that keeps statements gives them names of
    its own; one in session mode lets a client hear what another one says. Behind any other a statement that was
    prepared may not be found again: those are not prepared.
    """
    connection = await asyncpg.connect(**place.asyncpg(timeout=10), statement_cache_size=0, command_timeout=10)
    try:
        if connection.get_server_pid() == await connection.fetchval("SELECT pg_backend_pid()"):
            return Way(pooled=False, statement_cache=statement_cache)
        if not statement_cache or await _keeps_statements(connection) or await _is_its_own(connection, place):
            return Way(pooled=True, statement_cache=statement_cache)
        log.warning(
            "a pooler stands before the database and does not keep prepared statements, so none are used; set"
            " DATABASE_STATEMENT_CACHE=0, or max_prepared_statements in PgBouncer 1.21 or newer"
        )
        return Way(pooled=True, statement_cache=0)
    finally:
        with suppress(*AWAY):
            await connection.close(timeout=2)


async def _keeps_statements(connection: asyncpg.Connection[asyncpg.Record]) -> bool:
    name, text = f"notifier_{secrets.token_hex(8)}", "SELECT 'notifier looks whether this is kept'"
    async with connection.transaction():
        statement = await connection.prepare(text, name=name)
        kept = await connection.fetch("SELECT name FROM pg_prepared_statements WHERE statement = $1", text)
        if named_by_us := name in {row["name"] for row in kept}:
            await connection.execute(f"DEALLOCATE {name}")
        del statement
    return not named_by_us


async def _is_its_own(connection: asyncpg.Connection[asyncpg.Record], place: address.Address) -> bool:
    """Whether the session lasts longer than a transaction."""
    channel, heard = f"notifier_{secrets.token_hex(8)}", asyncio.Event()

    def hear(*_: object) -> None:
        heard.set()

    try:
        await connection.add_listener(channel, hear)
        other = await asyncpg.connect(**place.asyncpg(timeout=2), statement_cache_size=0, command_timeout=2)
        try:
            await other.execute(f"NOTIFY {channel}")
            async with asyncio.timeout(HEARD_WITHIN):
                await heard.wait()
        finally:
            other.terminate()
        await connection.remove_listener(channel, hear)
    except TimeoutError:
        return False
    return True


async def _init(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: b"\x01" + orjson.dumps(value),  # a version byte stands before the text
        decoder=lambda data: orjson.loads(data[1:]),
    )


@asynccontextmanager
async def transaction(db: Db, *, snapshot: bool = False) -> AsyncIterator[Connection]:
    """Yield a connection in a transaction; a savepoint when ``db`` is in one already.

    With ``snapshot`` all its statements see the same moment, and none may write; ``db`` must not be in one then.
    """
    options: dict[str, Any] = {"isolation": "repeatable_read", "readonly": True} if snapshot else {}
    if isinstance(db, asyncpg.Pool):
        async with db.acquire() as connection, connection.transaction(**options):
            yield connection
    else:
        async with db.transaction(**options):
            yield db


LIMITS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)
"""What a role or a database may limit, of all versions of PostgreSQL."""


def unlimited(*, local: bool = True) -> str:
    """The statement that lifts every limit this version of PostgreSQL knows, for the transaction or the session."""
    names = ", ".join(f"'{name}'" for name in LIMITS)
    return f"SELECT set_config(name, '0', {str(local).lower()}) FROM pg_settings WHERE name IN ({names})"
