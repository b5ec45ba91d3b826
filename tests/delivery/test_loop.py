"""A loop around `poll`: woken, stopped, and both at once."""

from __future__ import annotations

import asyncio

from notifier.delivery.scheduler import Loop
from tests.conftest import poll_until


async def test_a_loop_that_is_woken_and_stopped_at_once_stops() -> None:
    # `asyncio.wait_for` of Python 3.11 swallows a cancellation that comes in the turn in which what it waits for ends
    polls = 0

    async def poll() -> float:
        nonlocal polls
        polls += 1
        return 60.0

    loop = Loop("test", poll)
    loop.start()
    await poll_until(lambda: polls == 1)
    await asyncio.sleep(0)  # it waits to be woken now
    loop.wake()
    await loop.stop()
    assert loop.task is not None
    assert loop.task.cancelled()
    assert polls == 1
