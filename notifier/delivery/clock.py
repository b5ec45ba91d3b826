"""The database's clock as a process may rely on it between two answers."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """The database's time lies between two bounds: it was read after the question left and before the answer came.

    What must not happen after an end goes by `latest`, what must not happen before an opening by `earliest`.
    """

    def __init__(self) -> None:
        self._ahead = self._behind = time.time() - time.monotonic()

    def set(self, now: datetime, asked: float) -> None:
        """The database said ``now`` to a question that left at ``asked`` (``time.monotonic``)."""
        self._ahead = now.timestamp() - asked
        self._behind = now.timestamp() - time.monotonic()

    def latest(self, monotonic: float) -> float:
        """The database's time at ``time.monotonic() == monotonic`` is not after this (seconds since the epoch)."""
        return monotonic + self._ahead

    def earliest(self, monotonic: float) -> float:
        """The database's time at ``time.monotonic() == monotonic`` is not before this (seconds since the epoch)."""
        return monotonic + self._behind

    def now(self) -> datetime:
        """The database's time now, in UTC, as `latest` has it."""
        return datetime.fromtimestamp(time.monotonic() + self._ahead, UTC)
