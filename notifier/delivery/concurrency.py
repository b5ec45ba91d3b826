"""How many requests may be under way at once: the gateway's limit, less while the event loop lags."""

from __future__ import annotations

import time

from notifier.delivery.limits import Limits

# The lag that is allowed on the average: LAGGING seconds or, if that is more, LAGGING_PART of the time that the gateway
# takes, at most LAGGING_MOST seconds. With a gateway that answers at once all requests wait in the loop, and more of
# them only make the API slow; a slow one needs many requests, and its answers come in bursts (decision 0005).
LAGGING, LAGGING_PART, LAGGING_MOST = 0.005, 0.3, 0.030
# Part of the difference between allowed and measured by which each measurement changes the limit.
GAIN = 0.1
FEWEST = 8
# Seconds over which starts are counted for the rate.
RATE_EVERY = 0.2


class Concurrency:
    """Requests of one gateway under way, and their number's limit; the limit falls with the lag of the event loop.

    ``lag`` and durations are in seconds; ``rate`` is starts a second, smoothed.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.inflight = 0
        self.starting = 0  # tasks that were made and did not run yet
        self.rate = 0.0
        self._ceiling = float(limits.concurrency)
        self._lag = 0.0  # smoothed
        self._duration = 0.0  # of a request, smoothed
        self._started = 0
        self._rated_at = time.monotonic()

    def free(self) -> int:
        """Return how many more may be under way."""
        return int(min(self._limits.concurrency, self._ceiling)) - self.inflight

    def expect(self) -> None:
        """A task was made that will begin a request."""
        self.starting += 1

    def arrived(self) -> None:
        """Such a task runs."""
        self.starting -= 1

    def begin(self) -> None:
        """A request starts."""
        self.inflight += 1
        self._started += 1

    def end(self, duration: float) -> None:
        """A request has ended after so many seconds."""
        self.inflight -= 1
        self._duration += 0.01 * (duration - self._duration)

    def measure_rate(self, now: float) -> None:
        """Bring the rate up to date."""
        if now - self._rated_at > RATE_EVERY:
            self.rate += 0.5 * (self._started / (now - self._rated_at) - self.rate)
            self._started, self._rated_at = 0, now

    def adjust(self, lag: float) -> None:
        """Adjust the limit from a measured lag of the event loop.

        By Little's law lag × start rate requests are waiting for the loop. Only those are removed: requests that wait
        for the gateway do not make the loop late, however many they are.
        """
        self._lag += GAIN * (lag - self._lag)
        most = self._limits.concurrency
        gateway = self._duration - 2 * self._lag  # a request waits for the loop when it is sent and when it is answered
        allowed = min(LAGGING_MOST, max(LAGGING, LAGGING_PART * gateway))
        change = GAIN * (allowed - self._lag) * self.rate
        if change < 0:  # from what is in flight, but not because little is for a moment
            change += max(min(self._ceiling, self.inflight), (1 - GAIN) * self._ceiling) - self._ceiling
        else:
            change += most / 500
        self._ceiling = max(min(FEWEST, most), min(most, self._ceiling + change))

    def reset(self) -> None:
        """Nothing is being sent: what is sent next begins with the gateway's own limit."""
        self._lag, self._ceiling = 0.0, float(self._limits.concurrency)
