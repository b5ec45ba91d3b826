"""A mailing as sending needs it: its text, its end, and whom it may text at a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import orjson

from notifier import windows
from notifier.storage import queue
from notifier.storage.database import Db
from notifier.storage.queue import SendSettings


class MailingSnapshot:
    """A mailing of one version; `update` takes over an edit. All batches of a mailing in hand share one.

    Times are seconds since the epoch, by the database's clock.
    """

    def __init__(self, mailing_id: int, settings: SendSettings, default_zone: ZoneInfo) -> None:
        self.id = mailing_id
        self._default_zone = default_zone
        self._open: dict[str | None, tuple[float, float]] = {}  # zone → a span in which the window is open
        self.update(settings)

    def update(self, settings: SendSettings) -> None:
        """Take over an edit."""
        self.version = settings.version
        self.priority = settings.priority
        self.window = settings.window
        self.text = orjson.dumps(settings.text)
        self.text_version = settings.text_version
        self.ends_at = settings.ends_at.timestamp()
        self._open.clear()

    async def refresh(self, db: Db) -> None:
        """Read the mailing again: it was edited or deleted. No version is that of a deleted one."""
        settings = await queue.send_settings(db, self.id)
        if settings is None:
            self.version = -1
        else:
            self.update(settings)

    def may_text(self, zone: str | None, at: float) -> bool:
        """Whether a client of that zone may be texted at ``at``."""
        if at >= self.ends_at:
            return False
        if self.window is None:
            return True
        opened, closes = self._open.get(zone, (0.0, 0.0))
        if not opened <= at < closes:
            now = datetime.fromtimestamp(at, UTC)
            closes = windows.closes_at(now, self.window, windows.zone(zone, self._default_zone)).timestamp()
            if closes <= at + 0.000_001:  # closed: rounded to microseconds, ``now`` may lie after ``at``
                return False
            self._open[zone] = at, closes
        return True

    def opens_at(self, zone: str | None, now: float) -> datetime:
        """Return when a client of that zone may be texted next."""
        at = datetime.fromtimestamp(now, UTC)
        return windows.opens_at(at, self.window, windows.zone(zone, self._default_zone)) if self.window else at
