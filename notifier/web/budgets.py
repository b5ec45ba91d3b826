"""What bounds callers: failures by address, log lines of calls without a token, large bodies parsed at once."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import structlog

from notifier.errors import NotifierError

MINUTE = 60.0
FAILURES_MAX = 60
"""Wrong tokens a minute and address, of calls and log-ins together; beyond they get 429. A right one always enters."""
ADDRESSES_MAX = 10_000
"""Addresses that are remembered: about 2 MB."""
TURN_WAIT, TURN_BYTES = 10.0, 64 * 1024 * 1024
"""Seconds and bytes that large bodies may wait for each other: eight of the largest."""

log = structlog.get_logger("notifier.web")


class Busy(NotifierError):
    """Too many large bodies have come at once: try again in a moment."""


class Budget:
    """So many a minute for each address, counted in this process.

    An address's minute begins with the first that is counted. Of more than `ADDRESSES_MAX` addresses those whose minute
    began first are forgotten.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.most = most
        self._clock = clock
        self._spent: dict[str, tuple[float, int]] = {}

    def spend(self, address: str) -> int:
        """Count one, and return how many there were this minute beyond what may be."""
        now = self._clock()
        ends, spent = self._spent.get(address, (0.0, 0))
        if ends <= now:
            self._spent.pop(address, None)
            if len(self._spent) >= ADDRESSES_MAX:
                del self._spent[next(iter(self._spent))]
            ends, spent = now + MINUTE, 0
        self._spent[address] = ends, spent + 1
        return max(0, spent + 1 - self.most)

    def wait(self, address: str) -> int:
        """Return the whole seconds until the address's next minute, 1 at least."""
        ends, _ = self._spent.get(address, (0.0, 0))
        return max(1, math.ceil(ends - self._clock()))


class LogLimit:
    """Lines that anybody can cause, token or not: ``burst`` at once and ``rate`` a second; the others are counted."""

    def __init__(self, rate: float = 10.0, burst: int = 300, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._burst, self._clock = rate, float(burst), clock
        self._left, self._at, self._left_out = float(burst), clock(), 0

    def allows(self) -> bool:
        """Whether one more is to be written; before it a line tells how many were not."""
        now = self._clock()
        self._left = min(self._burst, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1:
            self._left_out += 1
            return False
        self._left -= 1
        if self._left_out:
            log.warning("requests without a token not logged", count=self._left_out)
            self._left_out = 0
        return True


class LargeBodies:
    """They are parsed one at a time, since each takes a core for up to 0.3 s and ten times its size in memory.

    Who waits for longer than `TURN_WAIT`, or would wait behind more than `TURN_BYTES`, is told to come again.
    """

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._bytes = 0

    @asynccontextmanager
    async def turn(self, size: int) -> AsyncIterator[None]:
        """Wait for the turn of a body of ``size`` bytes; it lasts as long as the block. Raises `Busy`."""
        if self._bytes + size > TURN_BYTES:
            raise Busy
        self._bytes += size
        try:
            try:
                async with asyncio.timeout(TURN_WAIT):
                    await self._lock.acquire()
            except TimeoutError:
                raise Busy from None
            try:
                yield
            finally:
                self._lock.release()
        finally:
            self._bytes -= size
