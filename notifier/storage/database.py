"""The pool, the migrations, and what the database must be like before anything relies on it."""

from __future__ import annotations

import asyncio
import glob
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlencode

import asyncpg
import orjson
import psycopg
import yoyo
from asyncpg.pool import PoolConnectionProxy
from psycopg.conninfo import conninfo_to_dict

from notifier import install
from notifier.errors import NotifierError, Unavailable

T = TypeVar("T")

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]"
Db: TypeAlias = "Pool | Connection"
"""What a storage function takes first: a pool, or a connection in a transaction the caller owns."""

MIGRATIONS = install.assets("migrations")
MIGRATION_LOCK = 0x6E6F746966696572
"""The advisory lock of those who migrate: "notifier" in ASCII."""
OLDEST_SERVER = 15
AWAY: tuple[type[BaseException], ...] = (
    OSError,  # TimeoutError and gaierror are such
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,  # shutting down, starting up, terminated, cancelled by the timeout
    asyncpg.InsufficientResourcesError,  # disk full, too many connections
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.InterfaceError,  # the connection is closed; our own misuse of asyncpg looks the same
    asyncpg.InternalClientError,  # the connection is being closed; no host has the wanted attributes
)
"""What asyncpg raises while the database is away, full, read-only or too slow: the same call may do later."""
AWAY_AT_START: tuple[type[BaseException], ...] = (*AWAY, psycopg.OperationalError)
"""The same of asyncpg and of psycopg, which migrates."""


async def create_pool(
    dsn: str,
    *,
    size: int,
    application_name: str,
    statement_cache: int = 100,
    statement_timeout: float = 5.0,
) -> Pool:
    """Open a pool of at most ``size`` connections; jsonb goes in and comes out as Python values.

    ``statement_timeout`` is in seconds, held by the server. ``dsn`` may name several hosts and
    ``target_session_attrs``. Session state (SET, LISTEN, session locks) must not be left on a connection: the
    pool hands it on as it is, which saves a round trip per use. Connections are made when they are needed.
    """
    return await asyncpg.create_pool(
        dsn,
        min_size=0,  # while the server is away, asyncpg logs each vain try to keep a minimum
        max_size=size,
        statement_cache_size=statement_cache,
        timeout=10,
        command_timeout=statement_timeout * 2,  # the server is gone without a word
        init=_init,
        reset=_keep,
        server_settings={
            "application_name": application_name,
            "statement_timeout": f"{statement_timeout * 1000:.0f}",
            "timezone": "UTC",
            "jit": "off",
        },
    )


async def _init(connection: Any) -> None:
    await connection.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        format="binary",
        encoder=lambda value: b"\x01" + orjson.dumps(value),  # a version byte stands before the text
        decoder=lambda data: orjson.loads(data[1:]),
    )


async def _keep(connection: Any) -> None:
    """Leave the session as it is; asyncpg has rolled an open transaction back by now."""


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


def migrate(dsn: str, folder: Path = MIGRATIONS, *, only: Container[str] | None = None) -> list[str]:
    """Apply what is not applied yet and return the names; any number of replicas may do so at once.

    With ``only`` nothing else is applied. Raises ``psycopg.Error`` when a migration fails; what stood before it stays
    applied. Raises ``NotifierError`` for a role that may not create tables.
    """
    with psycopg.connect(dsn) as connection:
        # In a transaction held open, so that it holds behind a pooler too.
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.execute("SET LOCAL statement_timeout = 0")
        # Without a parameter: one would keep a snapshot, for which CREATE INDEX CONCURRENTLY waits for ever.
        connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        # Before yoyo, which hides that it could not make its tables.
        rights = connection.execute(
            """
            SELECT coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
                   format('the role %s may not create tables in the database %s: make it the owner,'
                          ' with ALTER DATABASE %2$I OWNER TO %1$I', current_user, current_database())
            """
        ).fetchone()
        assert rights is not None
        if not rights[0]:
            raise NotifierError(rights[1])
        with _backend(dsn) as backend:
            backend.break_lock()  # its holder is dead, or we would not hold ours
            with backend.lock():
                pending = backend.to_apply(yoyo.read_migrations(glob.escape(str(folder))))
                pending = [each for each in pending if only is None or each.id in only]
                for migration in pending:
                    _apply(backend, migration)
    return [migration.id for migration in pending]


def _backend(dsn: str) -> Any:
    # Everything in the query: yoyo's own reading of an address knows one host only.
    return yoyo.get_backend(f"postgresql+psycopg://?{urlencode(conninfo_to_dict(dsn))}")


def _apply(backend: Any, migration: Any) -> None:
    """Apply and mark in one transaction: in yoyo's two, a crash between them would have it applied twice."""
    migration.load()
    with backend.transaction() if migration.use_transactions else nullcontext():
        migration.process_steps(backend, "apply")
        backend.mark_one(migration, log=False)  # its log wants a user's name, which a container may not have


def migration_status(dsn: str, folder: Path = MIGRATIONS) -> list[tuple[str, bool]]:
    """Return every migration in order, and whether it is applied; changes nothing."""
    with psycopg.connect(dsn) as connection:
        known = connection.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL").fetchone()
        rows = connection.execute("SELECT migration_id FROM _yoyo_migration").fetchall() if known == (True,) else []
    applied = {row[0] for row in rows}
    return [(name, name in applied) for name in _names(folder)]


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.sql") if not path.name.endswith(".rollback.sql"))


async def patiently(step: Callable[[], Awaitable[T]], *, seconds: float = 60.0, say: Callable[[str], None]) -> T:
    """The result of ``step``, tried again while the database is away; until then ``say`` so at once and every 5 s.

    Raises ``Unavailable`` after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    next_word = 0.0
    while True:
        try:
            return await step()
        except AWAY_AT_START as error:
            left = deadline - time.monotonic()
            why = str(error) or type(error).__name__
            if left <= 0:
                raise Unavailable(f"the database did not come up within {seconds:.0f} s: {why}") from error
            if time.monotonic() >= next_word:
                say(f"the database is away, waiting up to {left:.0f} s more: {why}")
                next_word = time.monotonic() + 5
            await asyncio.sleep(min(0.5, left))


async def wait_until_up(dsn: str, *, seconds: float = 60.0, say: Callable[[str], None]) -> None:
    """Return when the database takes connections; see `patiently`.

    Raises ``NotifierError`` at once when it refuses us for good.
    """

    async def connect() -> None:
        try:
            connection = await asyncpg.connect(dsn, timeout=5)
        except asyncpg.ClientConfigurationError as error:
            raise NotifierError(f"the address of the database is wrong: {error}") from error
        await connection.close()

    try:
        await patiently(connect, seconds=seconds, say=say)
    except asyncpg.PostgresError as error:
        raise NotifierError(f"the database refuses the connection: {error}") from error


async def check(db: Db, *, durable: bool = True) -> None:
    """Raise ``NotifierError`` unless the database can keep the promises: its version, durability and schema.

    ``durable=False`` is for a database of tests, where a commit need not survive a crash, and for who only reads.
    """
    row = await db.fetchrow(
        """
        SELECT current_setting('server_version_num')::int / 10000 AS version,
               current_setting('synchronous_commit') AS synchronous_commit,
               current_setting('fsync') AS fsync
        """
    )
    assert row is not None
    if row["version"] < OLDEST_SERVER:
        raise NotifierError(f"PostgreSQL {OLDEST_SERVER} or newer is needed; this is {row['version']}")
    for setting in ("synchronous_commit", "fsync"):
        if durable and row[setting] == "off":
            raise NotifierError(f"{setting} is off: what was answered would be lost in a crash; turn it on")
    if not await ready(db):
        raise NotifierError(f"the schema is older than this program; apply {NEWEST} with: {install.program()} migrate")


NEWEST = _names(MIGRATIONS)[-1]


async def ready(db: Db) -> bool:
    """Whether the schema is at least as new as this program; raises one of ``AWAY`` if nobody answers."""
    try:
        return bool(await db.fetchval("SELECT EXISTS (SELECT FROM _yoyo_migration WHERE migration_id = $1)", NEWEST))
    except asyncpg.UndefinedTableError:
        return False
