"""The migrations: which there are, which are applied, and applying them."""

from __future__ import annotations

import glob
from collections.abc import Container
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psycopg
import yoyo

from notifier import address, install
from notifier.errors import NotifierError
from notifier.storage.database import unlimited

MIGRATIONS = install.assets("migrations")
MIGRATION_LOCK = 0x6E6F746966696572
"""The advisory lock of those who migrate: "notifier" in ASCII."""


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


LOCK_WITHIN = "2s"
"""A migration waits so long for a table: whoever comes later waits behind it, so that it is better tried again."""


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
        if in_one:  # whatever the role has: a migration may look twice at what others change
            backend.execute("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
        backend.execute(unlimited(local=in_one))
        if in_one:
            backend.execute(f"SET LOCAL lock_timeout = '{LOCK_WITHIN}'")
        migration.process_steps(backend, "apply")
        backend.mark_one(migration, log=False)  # its log wants a user's name, which a container may not have


def status(dsn: str, folder: Path = MIGRATIONS) -> list[tuple[str, bool]]:
    """Return every migration in order, and whether it is applied; changes nothing."""
    with psycopg.connect(address.parse(dsn).conninfo()) as connection:
        done = applied(connection)
    return [(name, name in done) for name in names(folder)]


def applied(connection: psycopg.Connection[tuple[Any, ...]]) -> list[str]:
    """Return the names of the applied migrations in order; none where the schema is not ours."""
    if connection.execute("SELECT to_regclass('_yoyo_migration') IS NOT NULL").fetchone() != (True,):
        return []
    return [row[0] for row in connection.execute("SELECT migration_id FROM _yoyo_migration ORDER BY migration_id")]


def names(folder: Path) -> list[str]:
    """Return the names of all migrations in order, without `.sql`."""
    return sorted(path.stem for path in folder.glob("*.sql") if not path.name.endswith(".rollback.sql"))


NEWEST = names(MIGRATIONS)[-1]
"""The migration that this program needs."""
