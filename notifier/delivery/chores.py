"""What is done beside sending: the leader purges old rows, and every replica names the zones that it does not know."""

from __future__ import annotations

from collections.abc import Callable
from zoneinfo import ZoneInfo

import structlog

from notifier import windows
from notifier.cluster import detector
from notifier.storage import clients, idempotency, mailing_lifecycle, sessions
from notifier.storage.database import Pool

log = structlog.get_logger(__name__)

PURGE_EVERY = 30.0
PURGE_REST = 0.5  # seconds between two pieces of a purge, each some 50 ms of the database: sending comes first
ZONES_EVERY = 600.0
LEADER_CHECK = 1.0  # seconds between two checks of a replica that does not lead


class Chores:
    """Polls of loops; sending goes on without them. ``is_leader`` says whether this replica is the one that purges."""

    def __init__(self, db: Pool, default_zone: ZoneInfo, is_leader: Callable[[], bool]) -> None:
        self._db = db
        self._default_zone = default_zone
        self._is_leader = is_leader
        self._unknown_zones: set[str] = set()  # named in the log

    async def purge(self) -> float:
        """Delete what is not needed any more, in pieces: deleted mailings, phones of the erased, what is too old.

        Each is done though another fails; the first error is raised when all had their turn.
        """
        if not self._is_leader():
            return LEADER_CHECK
        errors: list[Exception] = []
        more = False
        for chore in (self._purge_mailings, self._purge_erased, self._purge_keys, self._purge_sessions):
            try:
                more |= await chore()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return PURGE_REST if more else PURGE_EVERY

    async def _purge_mailings(self) -> bool:
        return await mailing_lifecycle.purge(self._db)

    async def _purge_erased(self) -> bool:
        return await clients.erase_again(self._db, detector.SETTLED_AFTER) == clients.PIECE

    async def _purge_keys(self) -> bool:
        return await idempotency.purge(self._db) == idempotency.PIECE

    async def _purge_sessions(self) -> bool:
        await sessions.purge(self._db)
        return False

    async def name_unknown_zones(self) -> float:
        """Name the zones of clients that the zone data here do not know, each once: those are in the default zone."""
        for name in await clients.zones(self._db, 1000):
            if name not in self._unknown_zones and not windows.is_known(name):
                count = await clients.count_in(self._db, name)
                self._unknown_zones.add(name)
                log.warning(
                    "clients have a time zone that is not known here; DEFAULT_TIMEZONE is used for them",
                    timezone=name,
                    clients=count,
                    default=self._default_zone.key,
                )
        return ZONES_EVERY
