"""What limits a gateway's use: concurrency, rate, breaker and pauses, as one replica sees them.

The gateway's row is what all replicas agree on; the hot path asks only `may_start`, which touches no database.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import structlog

from notifier import telemetry
from notifier.delivery.clock import Clock
from notifier.delivery.gateway import Answer
from notifier.models import BreakerState, GatewayState, Outcome, Reason
from notifier.storage import gateways, queue
from notifier.storage.database import Db

log = structlog.get_logger(__name__)

# Failures in a row that open the breaker: ten do not happen by chance to a gateway that works.
TRIP_AFTER = 10
# Messages rejected in a row, over different recipients and without a success between: it is not the recipients.
REJECTED_IN_A_ROW = 20
# The row is read this often while there is work (seconds); a NOTIFY wakes earlier.
REFRESH = 0.25
# A pause longer than this gives claimed batches back (seconds).
PATIENCE = 1.0
# Seconds the winner of a probe has to start it; after that and the timeout another replica may.
PROBE_START = 5.0

UNLIMITED = 1_000_000
_TRANSIENT = frozenset({Outcome.UNAVAILABLE, Outcome.UNKNOWN})


# A taken token is good for so many seconds after the answer that brought it.
GOOD_FOR = 0.08
# Under this rate there is no room for a token used late, so its lateness is charged to the bucket.
SLOW = 10.0


def bucket(rate: float) -> float:
    """The size of the bucket in messages.

    In any t seconds at most rate × t + max(1, rate × 0.2) requests start: half of the allowance is the bucket, the
    other half is rate × (GOOD_FOR + 0.02): tokens used late, and 20 ms for the database's answer.
    """
    return max(1.0, rate * 0.1)


class Limits:
    """The limits of one gateway; ``concurrency`` and ``rate`` are the settings' until the row says otherwise.

    ``on_change`` is called whenever something may start that could not before.
    """

    def __init__(self, db: Db, name: str, clock: Clock, *, concurrency: int, rate: float, timeout: float) -> None:
        self._db = db
        self.name = name
        self._clock = clock
        self._settings = (concurrency, rate)
        self._timeout = timeout
        self.concurrency = concurrency
        self.rate = rate
        self.on_change: Callable[[], None] = lambda: None
        self.wake: Callable[[], None] = lambda: None
        self._state = GatewayState.PAUSED  # until the row was read
        self.breaker = BreakerState.CLOSED
        self._paused_until = 0.0  # database time, seconds
        self._retry_at = 0.0
        self._probe_until = 0.0  # monotonic; 0 without a permit
        self.probing = False
        self._tokens = 0
        self._taken = 0.0  # monotonic; not after the tokens were taken from the bucket
        self._tokens_until = 0.0
        self._next_token = 0.0  # monotonic; when the bucket has one again, as of the last look into it
        self._last_gates: tuple[object, ...] = ()
        self._hungry = False  # a start was refused for want of a token
        self._failures = 0
        self._rejected = 0
        self._throttled = False
        self._writes: list[Callable[[], Awaitable[Any]]] = []
        self._errors: list[dict[str, Any]] = []

    def usable(self) -> bool:
        """Whether work may be claimed: not stopped, or only for a moment."""
        now = time.monotonic()
        if self._state is not GatewayState.RUNNING or self._clock.latest(now) + PATIENCE < self._paused_until:
            return False
        return self.breaker is BreakerState.CLOSED or self.probing or now < self._probe_until

    def room(self, horizon: float) -> int:
        """How many messages may be lined up for the next ``horizon`` seconds, as far as rate and breaker go."""
        if self.breaker is not BreakerState.CLOSED:
            return 0 if self.probing else 1
        if not self.rate:
            return UNLIMITED
        soon = self._tokens > 0 or time.monotonic() + horizon >= self._next_token
        return max(int(soon), int(self.rate * horizon))

    def allowance(self, now: float) -> int:
        """How many requests may start at ``time.monotonic() == now``; asking without a token in hand orders some."""
        if self._state is not GatewayState.RUNNING or self._clock.latest(now) < self._paused_until:
            return 0
        if self.breaker is not BreakerState.CLOSED:
            return int(now < self._probe_until)
        if not self.rate:
            return UNLIMITED
        if self._tokens and now < self._tokens_until:
            return self._tokens
        if not self._hungry:
            self._hungry = True
            self.wake()
        return 0

    def may_start(self, now: float) -> bool:
        """Leave for one request at ``time.monotonic() == now``; a token or the probe is used up by asking."""
        if not self.allowance(now):
            return False
        if self.breaker is not BreakerState.CLOSED:
            self._probe_until, self.probing = 0.0, True
        elif self.rate:
            self._tokens -= 1
            if self.rate < SLOW:
                late = (now - self._taken) * self.rate
                self._tell(lambda: gateways.charge(self._db, self.name, late))
        return True

    def note(self, answer: Answer, started: datetime, *, probe: bool = False) -> Answer:
        """Learn from an answer, at once for this replica, with the next `poll` for all.

        ``probe``: it is the answer to the one request that an open breaker let through; no other closes it. Gives the
        answer back, marked as part of an outage where the breaker is open: that costs the message no attempt.
        """
        outcome = answer.outcome
        if outcome is Outcome.ACCEPTED:
            self._failures = self._rejected = 0
            if self._throttled:
                self._throttled = False
                self._tell(lambda: gateways.unthrottled(self._db, self.name))
        else:
            self._note_error(answer, started)
        if outcome in _TRANSIENT:
            return self._note_failure(answer, probe)
        self._failures = 0
        if probe:
            log.info("the gateway answers again", gateway=self.name)
            self.probing = False
            self.breaker = BreakerState.CLOSED
            self._tell(lambda: gateways.close_breaker(self._db, self.name))
            self.on_change()
        return answer

    def _note_failure(self, answer: Answer, probe: bool) -> Answer:
        outage = self.breaker is not BreakerState.CLOSED
        self._failures = 0 if outage else self._failures + 1
        if probe or self._failures >= TRIP_AFTER:
            if not outage:
                log.warning("the gateway is out of order; one request tries it now and then", gateway=self.name)
            self.probing, self._failures = False, 0
            self.breaker, self._retry_at = BreakerState.OPEN, float("inf")  # until the row says when
            self._tell(lambda: gateways.open_breaker(self._db, self.name))
        if outage and answer.outcome is Outcome.UNAVAILABLE:
            return answer._replace(reason=Reason.OUTAGE, detail=f"{answer.reason}: {answer.detail or ''}".rstrip(": "))
        return answer

    def _note_error(self, answer: Answer, started: datetime) -> None:
        reason = answer.reason
        self._errors.append(
            {
                "at": started.isoformat(timespec="microseconds").replace("+00:00", "Z"),
                "outcome": answer.outcome,
                "status_code": answer.status_code,
                "reason": reason,
            }
        )
        del self._errors[: -gateways.LAST_ERRORS]
        if answer.outcome is Outcome.THROTTLED:
            seconds = answer.retry_after
            if not self._throttled:
                log.warning("the gateway is throttling", gateway=self.name, retry_after=seconds)
            self._throttled = True
            self._paused_until = max(self._paused_until, self._clock.latest(time.monotonic()) + (seconds or 1))
            self._tell(lambda: gateways.throttle(self._db, self.name, seconds, started))
        elif answer.outcome is Outcome.REJECTED:
            self._rejected += 1
            if self._rejected >= REJECTED_IN_A_ROW:
                self._rejected = 0
                self._misconfigured(Reason.REJECTED)
        elif answer.outcome is Outcome.MISCONFIGURED:
            self._misconfigured(reason or Reason.UNAUTHORIZED)

    def _misconfigured(self, reason: Reason) -> None:
        if self._state is GatewayState.RUNNING:
            log.error("the gateway refuses us; nothing is sent until it is resumed", gateway=self.name, reason=reason)
            self._state = GatewayState.MISCONFIGURED
            self._tell(lambda: gateways.misconfigured(self._db, self.name, reason))

    def _tell(self, write: Callable[[], Awaitable[Any]]) -> None:
        self._writes.append(write)
        self.wake()

    async def poll(self) -> float:
        """Tell the row what was learnt, read what others learnt, take tokens, try a probe; seconds until the next."""
        while self._writes:
            await self._writes[0]()
            self._writes.pop(0)
        if self._errors:
            errors, self._errors = self._errors, []
            await gateways.note_errors(self._db, self.name, errors)
        await self._read()
        left = self._paused_until - self._clock.latest(time.monotonic())
        wait = min(REFRESH, left + 0.001) if left > 0 else REFRESH
        if self.breaker is not BreakerState.CLOSED and not self.probing:
            wait = min(wait, await self._probe())
        if self._hungry:
            wait = min(wait, await self._lease())
        return wait

    async def _read(self) -> None:
        asked = time.monotonic()
        row = await gateways.get(self._db, self.name)
        self._clock.set(row.now, asked)
        if self._writes:  # what was learnt meanwhile is newer than the row
            return
        self._state = row.state
        self.concurrency = self._settings[0] if row.concurrency is None else row.concurrency
        self.rate = self._settings[1] if row.rate is None else row.rate
        self._paused_until = row.paused_until.timestamp() if row.paused_until else 0.0
        self._retry_at = row.retry_at.timestamp() if row.retry_at else 0.0
        self.breaker = row.breaker
        if self.breaker is BreakerState.CLOSED:
            self.probing, self._probe_until = False, 0.0
        telemetry.BREAKER_OPEN.labels(self.name).set(self.breaker is not BreakerState.CLOSED)
        gates = self._gates()
        if gates != self._last_gates:
            self._last_gates = gates
            self.on_change()

    def _gates(self) -> tuple[object, ...]:
        paused = self._clock.latest(time.monotonic()) < self._paused_until
        return self._state, paused, self.breaker, self.concurrency, self.rate

    async def _probe(self) -> float:
        """Win the one probe of the cluster when its time has come; seconds until it has."""
        asked = time.monotonic()
        wait = self._retry_at - self._clock.latest(asked)
        if wait > 0:
            return max(0.01, wait)
        if await queue.seconds_to_next(self._db) != 0:
            return REFRESH  # there is nothing to probe with
        if await gateways.try_probe(self._db, self.name, PROBE_START + self._timeout):
            self.breaker = BreakerState.HALF_OPEN
            self._retry_at = float("inf")
            self._probe_until = asked + PROBE_START
            self.on_change()
        return REFRESH

    async def _lease(self) -> float:
        """Take tokens for the next tenth of a second; seconds until there may be more."""
        self._hungry = False
        if not self.rate:
            return REFRESH
        asked = time.monotonic()
        wanted = max(1, int(self.rate * 0.1))
        taken, wait = await gateways.take_tokens(self._db, self.name, self.rate, bucket(self.rate), wanted)
        self._next_token = asked + wait
        if taken:
            self._tokens, self._taken, self._tokens_until = taken, asked, time.monotonic() + GOOD_FOR
            self.on_change()
        else:
            self._hungry = True
        return max(0.002, wait)
