"""Marked messages that wait for their start, by priority."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from notifier.delivery.held import HeldBatch, PendingSend

# Every so many starts the lowest priority has its turn: a marked message must not wait until its batch counts as stuck.
LOWEST_TURN = 10
# A process whose last committed record is older (seconds) starts nothing: it may have been stopped, and its batches
# reclaimed.
FRESH = 1.0
# Seconds that a record may take on a busy loop: starts for so long must be in line when a watermark is asked for.
RECORD = 0.04


class Line:
    """Messages whose watermark is committed; highest priority first, each tenth time the lowest.

    It is open for `FRESH` seconds after each committed record, since it shows whether the batches are still ours.
    Times are of the monotonic clock.
    """

    def __init__(self) -> None:
        self._by_priority: dict[int, deque[PendingSend]] = {}
        self._length = 0
        self._started = 0
        self.renewed_at = 0.0

    def __len__(self) -> int:
        return self._length

    def renew(self, at: float) -> None:
        """A record that was sent at ``at`` is committed: starting is allowed for another `FRESH` seconds."""
        self.renewed_at = at

    def is_open(self, now: float) -> bool:
        """Whether something may be started now."""
        return self._length > 0 and now - self.renewed_at <= FRESH

    def runs_dry(self, rate: float) -> bool:
        """Whether it will be empty before a record asked for now is committed; ``rate`` is starts a second."""
        return self._length <= rate * RECORD

    @property
    def top_priority(self) -> int:
        """The highest priority of what waits; 0 where nothing does."""
        return max(self._by_priority, default=0)

    def append(self, sends: Sequence[PendingSend], now: float) -> None:
        """Line up messages of one batch whose watermark was committed just now."""
        if not sends:
            return
        priority = sends[0].batch.mailing.priority
        for send in sends:
            send.marked_at, send.priority = now, priority
        self._by_priority.setdefault(priority, deque()).extend(sends)
        self._length += len(sends)

    def first(self) -> PendingSend:
        """Return whose turn it is; it stays in the line."""
        turn = min if self._started % LOWEST_TURN == 0 else max
        return self._by_priority[turn(self._by_priority)][0]

    def leave(self, send: PendingSend, *, started: bool) -> bool:
        """Take the `first` out; True when it was the last of its priority."""
        sends = self._by_priority[send.priority]
        sends.popleft()
        self._length -= 1
        self._started += started
        if sends:
            return False
        del self._by_priority[send.priority]
        return True

    def leave_with(self, batch: HeldBatch) -> list[PendingSend]:
        """Take all messages of a batch out, and return them."""
        return self._leave(lambda send: send.batch is batch)

    def leave_older(self, since: float) -> list[PendingSend]:
        """Take all out that were marked before ``since``, and return them."""
        if all(sends[0].marked_at >= since for sends in self._by_priority.values()):
            return []
        return self._leave(lambda send: send.marked_at < since)

    def _leave(self, leaves: Callable[[PendingSend], bool]) -> list[PendingSend]:
        left = [send for sends in self._by_priority.values() for send in sends if leaves(send)]
        kept = {p: deque(send for send in sends if not leaves(send)) for p, sends in self._by_priority.items()}
        self._by_priority = {priority: sends for priority, sends in kept.items() if sends}
        self._length -= len(left)
        return left
