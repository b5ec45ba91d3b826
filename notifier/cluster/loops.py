"""Supervised loops, and the signals that wake them.

A loop calls a ``poll()`` that does one batch of work and returns the seconds to sleep; its signal cuts the sleep short.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress

import structlog

from notifier import telemetry
from notifier.storage.database import AWAY, DISTURBED

log = structlog.get_logger(__name__)

AFTER_ERROR = (0.25, 2.0)
"""Seconds a loop waits after an error: twice as long each time in a row, from the first figure to the second."""
CUT_OFF = 2.0
"""Seconds that a step of stopping waits for the database."""


class Signal:
    """Wakes one loop, and sets ``others`` as well. Set while nobody waits, it stays set."""

    def __init__(self, *others: Signal) -> None:
        self._event = asyncio.Event()
        self._others = others

    def set(self) -> None:
        """Wake whoever waits."""
        self._event.set()
        for other in self._others:
            other.set()

    def take(self) -> bool:
        """Whether it was set since it was taken last; it is not any more."""
        was_set = self._event.is_set()
        self._event.clear()
        return was_set

    async def wait(self, seconds: float) -> None:
        """Return when it is set, after ``seconds`` at the latest."""
        # Not wait_for: in Python 3.11 it may swallow the cancellation of a task that was just woken.
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()


class Loop:
    """A supervised loop around ``poll``; it ends only by `stop`."""

    def __init__(self, name: str, poll: Callable[[], Awaitable[float]], signal: Signal | None = None) -> None:
        self.name = name
        self._poll = poll
        self._signal = signal or Signal()
        self._task: asyncio.Task[None] | None = None
        self._is_stopping = False
        self.failing_since: float | None = None  # on the monotonic clock; None after a poll that went well

    def start(self) -> None:
        """Run until stopped; should the task end in any other way, another takes its place."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name=f"notifier-{self.name}")
        self._task.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Task[None]) -> None:
        if not self._is_stopping:
            log.error("background task exited unexpectedly, restarting", loop=self.name)
            telemetry.LOOP_ERRORS.labels(self.name).inc()
            self.start()

    async def stop(self) -> None:
        """Cut the loop off; what it was doing is left to the database's rules."""
        self._is_stopping = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=CUT_OFF)  # a database that hangs must not hold up the stop

    async def _run(self) -> None:
        errors = 0
        while True:
            self._signal.take()
            try:
                delay = await self._poll()
                errors, self.failing_since = 0, None
            except Exception as error:
                telemetry.LOOP_ERRORS.labels(self.name).inc()
                self.failing_since = self.failing_since or time.monotonic()
                if isinstance(error, AWAY):
                    log.warning("the database is unavailable", loop=self.name, error=str(error) or type(error).__name__)
                elif isinstance(error, DISTURBED):
                    log.warning("another transaction was in the way", loop=self.name, error=str(error))
                else:
                    log.exception("background task failed, it goes on", loop=self.name)
                await asyncio.sleep(min(AFTER_ERROR[1], AFTER_ERROR[0] * 2**errors))
                errors = min(errors + 1, 10)
                continue
            if delay > 0:
                await self._signal.wait(delay)
            else:
                await asyncio.sleep(0)


class Loops:
    """The loops of a replica, started and stopped together."""

    def __init__(self) -> None:
        self._loops: list[Loop] = []

    def start(self, loops: Iterable[Loop]) -> None:
        """Start loops; more may be started later."""
        for loop in loops:
            self._loops.append(loop)
            loop.start()

    def failing(self, seconds: float, without: Collection[str] = ()) -> list[str]:
        """Return the names of the loops that have done nothing but fail for so many seconds."""
        before = time.monotonic() - seconds
        return [
            loop.name
            for loop in self._loops
            if loop.name not in without and loop.failing_since is not None and loop.failing_since <= before
        ]

    async def stop(self) -> None:
        """Stop all."""
        await asyncio.gather(*(loop.stop() for loop in self._loops))
