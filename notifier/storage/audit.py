"""The audit: the checks of `audit_checks.py` in one snapshot, and what each found."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass

from notifier.storage.audit_checks import CHECKS, Check
from notifier.storage.database import Connection, Db, transaction, unlimited

SHOWN = 10
"""Ids that a finding names at most."""
PATIENCE = 86_400.0
"""Seconds that one check may take: a day, since there is no "for ever" in asyncpg."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: ``count`` things looked at, or where ``ids`` names some (at most `SHOWN`), ids in breach."""

    name: str
    count: int
    ids: list[int]

    @property
    def breach(self) -> bool:
        """Whether the rule is broken."""
        return bool(self.ids)

    def __str__(self) -> str:
        """The line of `server.py audit`."""
        if not self.breach:
            return f"ok {self.name} {self.count}"
        more = ["…"] if self.count > len(self.ids) else []
        return " ".join(["BREACH", self.name, str(self.count), *map(str, self.ids), *more])


async def run(db: Db) -> AsyncGenerator[Finding, None]:
    """Make all `CHECKS` in their order, in one snapshot; each finding comes as soon as it is made.

    The server does the counting, so memory here does not grow with the database. Nothing is locked; while it runs the
    snapshot keeps VACUUM from what has died since. ``db`` must not be in a transaction; who may stop before the last
    finding closes the generator (``contextlib.aclosing``).
    """
    async with transaction(db, snapshot=True) as connection:
        await connection.execute(unlimited())
        # Sorts and hash tables of millions of rows; and one core, the others are for those who send.
        await connection.execute("SET LOCAL work_mem = '32MB'")
        await connection.execute("SET LOCAL max_parallel_workers_per_gather = 0")
        for check in CHECKS:
            yield await _finding(connection, check)


async def _finding(connection: Connection, check: Check) -> Finding:
    row = await connection.fetchrow(
        f"""
        SELECT count(*) AS looked_at, count(DISTINCT id) FILTER (WHERE broken IS NOT FALSE) AS breaches
        FROM ({check.sql}) looked_at
        """,
        timeout=PATIENCE,
    )
    assert row is not None
    if not row["breaches"]:
        return Finding(check.name, row["looked_at"], [])
    ids = await connection.fetch(
        f"SELECT DISTINCT id FROM ({check.sql}) looked_at WHERE broken IS NOT FALSE ORDER BY id LIMIT {SHOWN}",
        timeout=PATIENCE,
    )
    return Finding(check.name, row["breaches"], [row["id"] for row in ids])
