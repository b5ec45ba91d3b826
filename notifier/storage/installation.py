"""Which installation a database belongs to, so that a restored or cloned copy sends nothing by itself.

The database keeps where it was when it was last released: the system identifier of its PostgreSQL cluster, its own
oid, and the setting ``INSTANCE``. A dump that was restored elsewhere, or into another database of the same server,
carries the row along and finds itself in another place.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import asyncpg

from notifier.models import Status
from notifier.storage import statistics
from notifier.storage.database import Db, Pool
from notifier.storage.mailings import CHANNEL


@dataclass(frozen=True, slots=True)
class Place:
    """Where a database is: its cluster (None where that may not be read), its oid, and the installation's name."""

    system_identifier: int | None
    database_oid: int
    instance: str | None


@dataclass(frozen=True, slots=True)
class Installation:
    """Where a database was released last, and when; where it is now."""

    kept: Place
    noted_at: datetime
    now: Place

    @property
    def difference(self) -> str | None:
        """Why this looks like a copy, in a sentence; None where it does not.

        A name that was never given says nothing. One that is missing now does: whoever restores a backup on a laptop
        has none.
        """
        if self.kept.instance is not None and self.kept.instance != self.now.instance:
            name = "not set" if self.now.instance is None else f"{self.now.instance!r}"
            return f"it was last used by the installation {self.kept.instance!r}, and INSTANCE is {name}"
        if None not in (self.kept.system_identifier, self.now.system_identifier) and (
            self.kept.system_identifier != self.now.system_identifier
        ):
            return "it was last used in another PostgreSQL cluster (the system identifier differs)"
        if self.kept.database_oid != self.now.database_oid:
            return "it was last used under another database of this server (the oid differs)"
        return None


async def read(db: Db, instance: str | None) -> Installation | None:
    """Return where the database was and is; None before the first `note`."""
    kept = await db.fetchrow("SELECT system_identifier, database_oid, instance, noted_at FROM installation")
    if kept is None:
        return None
    place = Place(kept["system_identifier"], kept["database_oid"], kept["instance"])
    return Installation(place, kept["noted_at"], await _present(db, instance))


async def note(db: Db, instance: str | None) -> Installation:
    """Keep where the database is where nothing was kept yet, and the first name given there; return what is kept.

    Any number of replicas may do so at once.
    """
    now = await _present(db, instance)
    await db.execute(
        """
        INSERT INTO installation AS kept (system_identifier, database_oid, instance) VALUES ($1, $2, $3)
        ON CONFLICT (only_row) DO UPDATE SET instance = excluded.instance
        WHERE kept.instance IS NULL AND excluded.instance IS NOT NULL
          AND kept.system_identifier IS NOT DISTINCT FROM excluded.system_identifier
          AND kept.database_oid = excluded.database_oid
        """,
        now.system_identifier,
        now.database_oid,
        now.instance,
    )
    found = await read(db, instance)
    assert found is not None
    return found


async def release(db: Db, instance: str | None) -> None:
    """Keep where the database is now, so that its replicas send; those that are running learn it at once."""
    now = await _present(db, instance)
    await db.execute(
        """
        WITH kept AS (
            INSERT INTO installation (system_identifier, database_oid, instance) VALUES ($1, $2, $3)
            ON CONFLICT (only_row) DO UPDATE SET
                system_identifier = excluded.system_identifier,
                database_oid = excluded.database_oid,
                instance = excluded.instance,
                noted_at = now()
            RETURNING only_row
        )
        SELECT pg_notify($4, '') FROM kept
        """,
        now.system_identifier,
        now.database_oid,
        now.instance,
        CHANNEL,
    )


async def would_send(db: Db) -> tuple[int, int]:
    """Return what goes on when the database is released: mailings scheduled or running, and messages still open.

    Mailings that were not planned yet have no messages.
    """
    mailings: int = await db.fetchval(
        "SELECT count(*) FROM mailings WHERE status IN ('scheduled', 'running') AND deleted_at IS NULL"
    )
    messages = (await statistics.totals(db)).messages
    return mailings, sum(messages[status] for status in (Status.WAITING, Status.SENDING, Status.RETRYING))


async def _present(db: Db, instance: str | None) -> Place:
    oid = await db.fetchval("SELECT oid::bigint FROM pg_database WHERE datname = current_database()")
    try:
        system: int | None = await db.fetchval("SELECT system_identifier FROM pg_control_system()")
    except (asyncpg.InsufficientPrivilegeError, asyncpg.UndefinedFunctionError):  # a hosted server may not tell
        system = None
    return Place(system, oid, instance)


class Hold:
    """Whether this replica has to hold back, since its database looks like a copy; ends when somebody releases it."""

    def __init__(self, db: Pool, instance: str | None) -> None:
        self._db = db
        self._instance = instance
        self._is_held = False

    async def begin(self) -> str | None:
        """Note where the database is, at the start; return why nothing is sent, in a sentence, or None."""
        why = (await note(self._db, self._instance)).difference
        self._is_held = why is not None
        return why

    async def reason(self) -> str | None:
        """Return why nothing is sent, in a sentence, or None. Asks the database only while held."""
        if not self._is_held:
            return None
        found = await read(self._db, self._instance)
        why = None if found is None else found.difference
        self._is_held = why is not None
        return why

    async def found(self) -> Installation | None:
        """Return where the database was and is, while held."""
        return await read(self._db, self._instance) if self._is_held else None

    async def release(self) -> None:
        """Send from now on; the other replicas learn it within a second."""
        await release(self._db, self._instance)
        self._is_held = False
