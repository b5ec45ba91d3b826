"""How often an address may do something."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

MINUTE = 60.0
ADDRESSES_MAX = 10_000
"""Addresses that are remembered: about 2 MB."""


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
