"""The database's clock as a process may rely on it between two answers."""

from __future__ import annotations

import time
from datetime import UTC, datetime


class Clock:
    """Never behind the database's clock, and ahead of it by no more than one round trip.

    The database's time in an answer was read after the question left, so counting from that moment errs on the late
    side: what must not start after an end, or after a local window closed, does not.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def set(self, now: datetime, asked: float) -> None:
        """The database said ``now`` to a question that left at ``asked`` (``time.monotonic``)."""
        self._offset = now.timestamp() - asked

    def at(self, monotonic: float) -> float:
        """The database's time at ``time.monotonic() == monotonic``, in seconds since the epoch."""
        return monotonic + self._offset

    def now(self) -> datetime:
        """The database's time now, in UTC."""
        return datetime.fromtimestamp(time.monotonic() + self._offset, UTC)
