"""Whether the database is up and as it must be, and what is said when it is not."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeVar

import asyncpg
import psycopg

from notifier import address, install
from notifier.errors import NotifierError, SettingsError, Unavailable
from notifier.storage.database import AWAY, POOLERS_PASS_ON, SESSION, Connection, Db, Pool
from notifier.storage.migrations import NEWEST

T = TypeVar("T")
OLDEST_SERVER = 15
AWAY_AT_START: tuple[type[BaseException], ...] = (*AWAY, psycopg.OperationalError)
"""`AWAY`, and what psycopg raises then, which migrates."""


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
