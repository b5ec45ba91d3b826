"""A loop around `poll`: woken, stopped, and both at once."""

from __future__ import annotations

import asyncio

from notifier.cluster.loops import Loop, Signal
from tests.conftest import poll_until


async def test_a_loop_that_is_woken_and_stopped_at_once_stops() -> None:
    # `asyncio.wait_for` of Python 3.11 swallows a cancellation that comes in the turn in which what it waits for ends
    polls = 0

    async def poll() -> float:
        nonlocal polls
        polls += 1
        return 60.0

    signal = Signal()
    loop = Loop("test", poll, signal)
    loop.start()
    await poll_until(lambda: polls == 1)
    await asyncio.sleep(0)  # it waits to be woken now
    signal.set()
    await loop.stop()
    assert polls == 1


async def test_a_loop_whose_poll_was_cancelled_from_within_is_started_again() -> None:
    """What a poll waits for may be cancelled by somebody else: that ends the task, and must not end the loop."""
    polls = 0

    async def poll() -> float:
        nonlocal polls
        polls += 1
        if polls == 1:
            broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            broken.cancel()
            await broken
        return 60.0

    loop = Loop("test", poll)
    loop.start()
    await poll_until(lambda: polls == 2)
    await loop.stop()


def test_a_signal_sets_others_and_stays_set_until_it_is_taken() -> None:
    other = Signal()
    signal = Signal(other)
    signal.set()
    assert [signal.take(), signal.take(), other.take(), other.take()] == [True, False, True, False]
