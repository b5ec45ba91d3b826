"""Calls timed in turn, so that what disturbs the machine disturbs all of them alike."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

Call = Callable[[], Awaitable[Any]]
WARM = 10  # calls that are not counted: from the sixth on the server may choose another plan


async def in_turn(rounds: int, *calls: Call) -> list[list[float]]:
    """Seconds of each call, sorted, of so many ``rounds``."""
    for call in calls:
        for _ in range(WARM):
            await call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, own in zip(calls, times, strict=True):
            started = time.perf_counter()
            await call()
            own.append(time.perf_counter() - started)
    return [sorted(own) for own in times]


def p50(times: list[float]) -> float:
    return times[len(times) // 2]


def p99(times: list[float]) -> float:
    return times[int(len(times) * 0.99)]
