"""The pool, the migrations, and what the database must be like before anything relies on it."""

from __future__ import annotations

import asyncio
import glob
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Container
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar
from urllib.parse import urlencode

import asyncpg
import orjson
import psycopg
import structlog
import yoyo
from asyncpg.pool import PoolConnectionProxy

from notifier import address, install
from notifier.errors import NotifierError, SettingsError, Unavailable

log = structlog.get_logger(__name__)
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
AWAY_AT_START: tuple[type[BaseException], ...] = (*AWAY, psycopg.OperationalError)
"""The same of asyncpg and of psycopg, which migrates."""


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


def migrate(dsn: str, folder: Path = MIGRATIONS, *, only: Container[str] | None = None) -> list[str]:
    """Apply what is not applied yet and return the names; any number of replicas may do so at once.

    With ``only`` nothing else is applied. Raises ``psycopg.Error`` when a migration fails; what stood before it stays
    applied. Raises ``NotifierError`` for a role that may not create tables, and while replicas run that a migration
    would break.
    """
    with psycopg.connect(address.parse(dsn).conninfo()) as connection:
        # In a transaction held open, so that it holds behind a pooler too.
        connection.execute(unlimited())
        # Without a parameter: one would keep a snapshot, for which CREATE INDEX CONCURRENTLY waits for ever.
        connection.execute(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        # Before yoyo, which hides that it could not make its tables.
        rights = connection.execute(
            """
            SELECT current_schema() IS NOT NULL, coalesce(has_schema_privilege(current_schema(), 'CREATE'), false),
                   format('no schema of the search_path (%s) is there for the role %s in the database %s',
                          current_setting('search_path'), current_user, current_database()),
                   format('the role %s may not create tables in the database %s: make it the owner,'
                          ' with ALTER DATABASE %2$I OWNER TO %1$I', current_user, current_database())
            """
        ).fetchone()
        assert rights is not None
        there, allowed, no_schema, no_right = rights
        if not there:
            raise NotifierError(f"{no_schema}: create it, or set another search_path")
        if not allowed:
            raise NotifierError(no_right)
        with _backend(dsn) as backend:
            backend.break_lock()  # its holder is dead, or we would not hold ours
            with backend.lock():
                pending = backend.to_apply(yoyo.read_migrations(glob.escape(str(folder))))
                pending = [each for each in pending if only is None or each.id in only]
                try:
                    for migration in pending:
                        _apply(backend, migration)
                except psycopg.errors.ObjectInUse as error:
                    why = str(error).splitlines()[0]
                    raise NotifierError(f"{why}; stop them, then start this version again") from None
    return [migration.id for migration in pending]


LIMITS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "transaction_timeout",
)
"""What a role or a database may limit, of all versions of PostgreSQL."""
LOCK_WITHIN = "2s"
"""A migration waits so long for a table: whoever comes later waits behind it, so that it is better tried again."""


def unlimited(*, local: bool = True) -> str:
    """The statement that lifts every limit this version of PostgreSQL knows, for the transaction or the session."""
    names = ", ".join(f"'{name}'" for name in LIMITS)
    return f"SELECT set_config(name, '0', {str(local).lower()}) FROM pg_settings WHERE name IN ({names})"


def _backend(dsn: str) -> Any:
    # Everything in the query: yoyo's own reading of an address knows one host only.
    return yoyo.get_backend(f"postgresql+psycopg://?{urlencode(address.parse(dsn).words)}")


def _apply(backend: Any, migration: Any) -> None:
    """Apply and mark in one transaction: in yoyo's two, a crash between them would have it applied twice.

    What cannot run in a transaction (CREATE INDEX CONCURRENTLY) waits as long as it must, and keeps nobody waiting.
    """
    migration.load()
    in_one = bool(migration.use_transactions)
    with backend.transaction() if in_one else nullcontext():
        backend.execute(unlimited(local=in_one))
        if in_one:
            backend.execute(f"SET LOCAL lock_timeout = '{LOCK_WITHIN}'")
        migration.process_steps(backend, "apply")
        backend.mark_one(migration, log=False)  # its log wants a user's name, which a container may not have


def migration_status(dsn: str, folder: Path = MIGRATIONS) -> list[tuple[str, bool]]:
    """Return every migration in order, and whether it is applied; changes nothing."""
    with psycopg.connect(address.parse(dsn).conninfo()) as connection:
        done = applied(connection)
    return [(name, name in done) for name in _names(folder)]


def applied(connection: psycopg.Connection[tuple[Any, ...]]) -> list[str]:
    """Return the names of the applied migrations in order; none where the schema is not ours."""
    if connection.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL").fetchone() != (True,):
        return []
    return [row[0] for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")]


def _names(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.sql") if not path.name.endswith(".rollback.sql"))


async def patiently(
    step: Callable[[], Awaitable[T]],
    *,
    seconds: float = 60.0,
    say: Callable[[str], None],
    where: str = "",
) -> T:
    """Return the result of ``step``, tried again while the database is unavailable; ``say`` so at once and every 5 s.

    ``where`` it is is said as well. Raises ``Unavailable`` after ``seconds``.
    """
    deadline = time.monotonic() + seconds
    next_word = 0.0
    while True:
        try:
            return await step()
        except AWAY_AT_START as error:
            left = deadline - time.monotonic()
            why = f"{where}: " * bool(where) + (str(error) or type(error).__name__)
            if left <= 0:
                raise Unavailable(f"the database did not come up within {seconds:.0f} s: {why}") from error
            if time.monotonic() >= next_word:
                say(f"the database is unavailable, waiting up to {left:.0f} s more: {why}")
                next_word = time.monotonic() + 5
            await asyncio.sleep(min(0.5, left))


async def wait_until_up(dsn: str, *, seconds: float = 60.0, say: Callable[[str], None], writable: bool = False) -> None:
    """Return when the database takes connections, and writes where it must be ``writable``; see `patiently`.

    Raises at once what waiting cannot mend: ``SettingsError`` for an address that is wrong, ``NotifierError`` when the
    server refuses us for good.
    """
    try:
        place = address.parse(dsn)
    except ValueError as error:
        raise SettingsError([f"the address of the database {error}"]) from error

    async def connect() -> None:
        try:
            connection = await asyncpg.connect(**place.asyncpg(timeout=5), statement_cache_size=0, command_timeout=5)
        except asyncpg.ClientConfigurationError as error:
            raise SettingsError([f"the address of the database is wrong: {error}"]) from error
        except ssl.SSLError as error:
            raise SettingsError([f"no TLS connection to the database at {place}: {error}"]) from error
        except ConnectionError as error:
            if "rejected SSL upgrade" not in str(error):
                raise
            raise SettingsError(
                [f"the database at {place} takes no TLS, and sslmode={place.words.get('sslmode')} asks for it"]
            ) from error
        except asyncpg.ProtocolViolationError as error:
            if "startup parameter" not in str(error):
                raise
            raise SettingsError([f"the pooler at {place} refuses the address of the database: {error}"]) from error
        try:
            if writable:
                await _check_writable(connection)
        finally:
            with suppress(*AWAY):
                await connection.close(timeout=2)

    try:
        await patiently(connect, seconds=seconds, say=say, where=str(place))
    except asyncpg.PostgresError as error:
        raise NotifierError(f"the database at {place} refuses the connection: {error}") from error


async def _check_writable(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    row = await connection.fetchrow(
        """
        SELECT pg_is_in_recovery() AS standby, current_setting('default_transaction_read_only') = 'on' AS read_only,
               current_user AS role, current_database() AS name
        """
    )
    assert row is not None
    if row["standby"]:  # one that may be promoted yet, or stand before the primary for a moment
        raise asyncpg.ReadOnlySQLTransactionError("it is a standby, which takes no writes")
    if row["read_only"]:
        raise NotifierError(
            f"the role {row['role']} or the database {row['name']} is read-only (default_transaction_read_only is on):"
            " turn it off with ALTER ROLE or ALTER DATABASE … RESET default_transaction_read_only"
        )


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
    if not await _is_migrated(db):
        raise NotifierError(f"the schema is older than this program; apply {NEWEST} with: {install.program()} migrate")


async def advice(db: Pool, *, connections: int) -> list[str]:
    """What a DBA should set differently, a sentence each: nothing is wrong yet, but will be under load.

    ``connections`` are those that a replica opens at most.
    """
    async with db.acquire() as connection:
        own = await connection.fetchval("SELECT pg_backend_pid()") == connection.get_server_pid()
        if not own:
            return await _session_advice(connection)
        row = await connection.fetchrow(
            """
            SELECT least(
                       nullif(current_setting('max_connections')::int, -1)
                           - current_setting('superuser_reserved_connections')::int,
                       CASE WHEN NOT r.rolsuper THEN nullif(r.rolconnlimit, -1) END,
                       CASE WHEN NOT r.rolsuper THEN nullif(d.datconnlimit, -1) END
                   ) AS allowed, (SELECT count(*) FROM replicas) + 1 AS replicas, r.rolname AS role
            FROM pg_roles r, pg_database d WHERE r.rolname = current_user AND d.datname = current_database()
            """
        )
        assert row is not None
        needed = connections * row["replicas"]
        if row["allowed"] >= needed:
            return []
        replicas = f"{row['replicas']} replica{'s' * (row['replicas'] > 1)}"
        return [
            f"the role {row['role']} can have {row['allowed']} connections here, and {replicas} may need {needed}; when"
            " none is left calls are answered 503: raise CONNECTION LIMIT or max_connections"
        ]


async def _session_advice(connection: Connection) -> list[str]:
    wanted = {name: value for name, value in SESSION.items() if name not in POOLERS_PASS_ON}
    wanted["statement_timeout"] = "5000"
    rows = await connection.fetch("SELECT name, setting FROM pg_settings WHERE name = ANY ($1)", list(wanted))
    given = {row["name"]: row["setting"] for row in rows}
    other = [name for name in sorted(wanted) if given[name] != wanted[name]]
    if not other:
        return []
    query = "; ".join(f"SET {name} = ''{wanted[name]}''" for name in other)
    return [f"sessions behind the pooler are not set up as they should be: give PgBouncer connect_query='{query}'"]


NEWEST = _names(MIGRATIONS)[-1]


async def why_not_ready(db: Db) -> str | None:
    """Why requests cannot be served: the schema is too old, nothing can be written. None when all is well.

    Raises one of ``AWAY`` if nobody answers.
    """
    if await db.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
        return "the database is read-only, or only a standby answers"
    return None if await _is_migrated(db) else "the schema is older than this program"


async def _is_migrated(db: Db) -> bool:
    try:
        return bool(await db.fetchval("SELECT EXISTS (SELECT FROM _yoyo_migration WHERE migration_id = $1)", NEWEST))
    except asyncpg.UndefinedTableError:
        return False
