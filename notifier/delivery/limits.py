"""What limits a gateway's use: concurrency, rate, breaker and pauses, as one replica sees them.

The gateway's row is what all replicas agree on; the hot path asks only `take`, which touches no database.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from enum import Enum
from typing import Any

import structlog

from notifier import telemetry
from notifier.cluster.loops import Signal
from notifier.delivery.answers import Answer
from notifier.delivery.clock import Clock
from notifier.models import BreakerState, GatewayState, Outcome, Reason
from notifier.storage import gateways, queue
from notifier.storage.database import Db

log = structlog.get_logger(__name__)

# Failures in a row that open the breaker: ten do not happen by chance to a gateway that works.
TRIP_AFTER = 10
# Refusals in a row that are alike, without an acceptance between: it is not the recipients (`Limits._note_refusal`).
REFUSED_IN_A_ROW = 20
# The row is read this often while there is work (seconds); a NOTIFY wakes earlier.
REFRESH = 0.25
# A pause longer than this gives claimed batches back (seconds).
PATIENCE = 1.0
# Seconds the winner of a probe has to start it; after that and the timeout another replica may.
PROBE_START = 5.0

UNLIMITED = 1_000_000
_TRANSIENT = frozenset({Outcome.UNAVAILABLE, Outcome.UNKNOWN})


# Characters of a gateway's words in its last errors: the row is read four times a second.
ERROR_WORDS = 150
# What differs from one refusal to the next though they mean the same: ids, times, numbers.
_VARIES = re.compile(r"\w*\d\w*")


def _sentence(answer: Answer) -> str:
    """What the gateway did, for people."""
    if answer.status_code is None:
        return f"No answer: {answer.reason}{f' ({answer.detail})' if answer.detail else ''}."
    return f"The gateway answered {answer.status_code}{f': {answer.detail}' if answer.detail else ''}."


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


class Permit(Enum):
    """Leave to start one request; the probe is the one that an open breaker lets through."""

    ORDINARY = 1
    PROBE = 2


class Limits:
    """The limits of one gateway; ``concurrency`` and ``rate`` are the settings' until the row says otherwise.

    ``identity`` gives that of the address and token in use: a refusal stops the gateway for all replicas only when it
    was made with the newest one. ``tell`` is set when the gateway's row is to be written or read,
    ``changed`` when something may start that could not before.
    """

    def __init__(
        self,
        db: Db,
        name: str,
        clock: Clock,
        *,
        concurrency: int,
        rate: float,
        timeout: float,
        identity: Callable[[], str],
        tell: Signal,
        changed: Signal,
    ) -> None:
        self._db = db
        self.name = name
        self._clock = clock
        self._settings = (concurrency, rate)
        self._timeout = timeout
        self._identity = identity
        self._announced: str | None = None  # the identity that this replica has written to the row
        self._newest: str | None = None  # and the one that was written last, by whichever replica
        self._outdated = False  # ours was refused, and is not the newest
        self.concurrency = concurrency
        self.rate = rate
        self._news = tell
        self._changed = changed
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
        self._refusal: str | None = None  # what the last refusals have in common
        self._refused: set[object] = set()  # and which messages or requests they were about
        self._throttled = False
        self._writes: list[Callable[[], Awaitable[Any]]] = []
        self._errors: dict[tuple[object, ...], dict[str, Any]] = {}

    def usable(self) -> bool:
        """Whether work may be claimed: not stopped, or only for a moment."""
        now = time.monotonic()
        if self._stopped() or self._clock.latest(now) + PATIENCE < self._paused_until:
            return False
        return self.breaker is BreakerState.CLOSED or self.probing or now < self._probe_until

    def _stopped(self) -> bool:
        return self._state is not GatewayState.RUNNING or self._outdated

    def room(self, horizon: float) -> int:
        """How many messages may be lined up for the next ``horizon`` seconds, as far as rate and breaker go."""
        if self.breaker is not BreakerState.CLOSED:
            return 0 if self.probing else 1
        if not self.rate:
            return UNLIMITED
        soon = self._tokens > 0 or time.monotonic() + horizon >= self._next_token
        return max(int(soon), int(self.rate * horizon))

    def allowance(self, now: float) -> int:
        """Return how many requests may start at ``time.monotonic() == now``."""
        if self._is_blocked(now):
            return 0
        if self.breaker is not BreakerState.CLOSED:
            return int(now < self._probe_until)
        if not self.rate:
            return UNLIMITED
        return self._tokens if now < self._tokens_until else 0

    def _is_blocked(self, now: float) -> bool:
        return self._stopped() or self._clock.latest(now) < self._paused_until

    def ask_for_tokens(self, now: float) -> None:
        """Have the next `poll` take tokens, where only the want of one keeps a message from its start."""
        if self.rate and self.breaker is BreakerState.CLOSED and not self._hungry and not self._is_blocked(now):
            self._hungry = True
            self._news.set()

    def take(self, now: float) -> Permit | None:
        """Take a permit for one request at ``time.monotonic() == now``, and a token or the probe with it.

        None: nothing may start now.
        """
        if not self.allowance(now):
            self.ask_for_tokens(now)
            return None
        if self.breaker is not BreakerState.CLOSED:
            self._probe_until, self.probing = 0.0, True
            return Permit.PROBE
        if self.rate:
            self._tokens -= 1
            if self.rate < SLOW:
                late = (now - self._taken) * self.rate
                self._tell(lambda: gateways.charge(self._db, self.name, late))
        return Permit.ORDINARY

    def forget_probe(self) -> None:
        """The probe ended without an answer; another may be tried."""
        self.probing = False

    def note(
        self,
        answer: Answer,
        message_id: int,
        started: datetime,
        identity: str,
        *,
        probe: bool = False,
        in_doubt: bool = False,
    ) -> Answer:
        """Learn from an answer, at once for this replica, with the next `poll` for all.

        ``identity`` is the one that the request was made with. ``probe``: it is the answer to the one request that an
        open breaker let through; no other closes it. ``in_doubt``: an earlier request of the message may have been
        taken. Gives the answer back, marked as part of an outage where the breaker is open: that costs the message no
        attempt.
        """
        outcome = answer.outcome
        if outcome is Outcome.ACCEPTED:
            self._failures = 0
            if self._refused:
                self._refused = set()
            if self._throttled:
                self._throttled = False
                self._tell(lambda: gateways.unthrottled(self._db, self.name))
        else:
            self._note_error(answer, message_id, started)
        if outcome is Outcome.MISCONFIGURED:
            self._misconfigured(answer.reason or Reason.UNAUTHORIZED, _sentence(answer), identity)
        elif outcome in (Outcome.REJECTED, Outcome.DECLINED):
            self._note_refusal(answer, message_id, started, identity, in_doubt)
        if outcome in _TRANSIENT:
            return self._note_failure(answer, probe)
        self._failures = 0
        if probe:
            log.info("circuit breaker closed: the gateway answers again", gateway=self.name)
            self.probing = False
            self.breaker = BreakerState.CLOSED
            self._tell(lambda: gateways.close_breaker(self._db, self.name))
            self._changed.set()
        return answer

    def _note_failure(self, answer: Answer, probe: bool) -> Answer:
        outage = self.breaker is not BreakerState.CLOSED
        self._failures = 0 if outage else self._failures + 1
        if probe or self._failures >= TRIP_AFTER:
            why = _sentence(answer)
            if not outage:
                log.warning(
                    "circuit breaker opened: one request probes the gateway now and then", gateway=self.name, why=why
                )
            self.probing, self._failures = False, 0
            self.breaker, self._retry_at = BreakerState.OPEN, float("inf")  # until the row says when
            self._tell(lambda: gateways.open_breaker(self._db, self.name, why))
        if outage and answer.outcome is Outcome.UNAVAILABLE:
            return answer._replace(reason=Reason.OUTAGE, detail=f"{answer.reason}: {answer.detail or ''}".rstrip(": "))
        return answer

    def _note_error(self, answer: Answer, message_id: int, started: datetime) -> None:
        at = started.isoformat(timespec="microseconds").replace("+00:00", "Z")
        kind = (answer.outcome, answer.status_code, answer.reason)
        known = self._errors.get(kind)
        if known is None and len(self._errors) < gateways.LAST_ERRORS:
            known = self._errors[kind] = {
                "outcome": answer.outcome,
                "status_code": answer.status_code,
                "reason": answer.reason,
                "first_at": at,
                "at": "",
                "count": 0,
            }
        if known is not None:
            known["count"] += 1
            known["first_at"] = min(known["first_at"], at)
            if at > known["at"]:
                known |= {"at": at, "message_id": message_id, "detail": answer.detail and answer.detail[:ERROR_WORDS]}
        if answer.outcome is Outcome.THROTTLED:
            seconds = answer.retry_after
            if not self._throttled:
                log.warning("the gateway is throttling", gateway=self.name, retry_after=seconds)
            self._throttled = True
            self._paused_until = max(self._paused_until, self._clock.latest(time.monotonic()) + (seconds or 1))
            self._tell(lambda: gateways.throttle(self._db, self.name, seconds, started))

    def _note_refusal(self, answer: Answer, message_id: int, started: datetime, identity: str, in_doubt: bool) -> None:
        """Stop the gateway when REFUSED_IN_A_ROW refusals are alike, without an acceptance between.

        Alike are those whose words are about us, whatever else they say: each request counts. Of all others those of
        one status, code and words, numbers in them aside: each message counts once, since a few bad numbers that are
        tried again are no proof; and not what was refused after an attempt in doubt, which may be the reason.
        """
        who: object = message_id
        if answer.reason is Reason.ACCOUNT_REFUSED:
            refusal, who = str(answer.reason), (message_id, started)
        elif in_doubt:
            return
        else:
            code, colon, words = (answer.detail or "").partition(": ")
            refusal = f"{answer.status_code} {code if colon else ''} {_VARIES.sub('#', words if colon else code)}"
        if refusal != self._refusal:
            self._refusal, self._refused = refusal, set()
        self._refused.add(who)
        if len(self._refused) >= REFUSED_IN_A_ROW:
            self._refused = set()
            why = f"{REFUSED_IN_A_ROW} refusals in a row were alike. {_sentence(answer)}"
            self._misconfigured(answer.reason or Reason.REJECTED, why, identity)

    def _misconfigured(self, reason: Reason, why: str, identity: str) -> None:
        """The gateway refuses us. With an address or token that is not the newest this replica alone stops."""
        if self._newest not in (None, identity):
            if identity == self._identity() and not self._outdated:
                log.error(
                    "the gateway refuses an address or token that is not the newest; this replica sends nothing until "
                    "it has the newest",
                    gateway=self.name,
                    reason=reason,
                    why=why,
                )
                self._outdated = True
        elif self._state is GatewayState.RUNNING:
            log.error(
                "the gateway refuses us; nothing is sent until it is resumed", gateway=self.name, reason=reason, why=why
            )
            self._state = GatewayState.MISCONFIGURED
            self._tell(lambda: gateways.misconfigured(self._db, self.name, reason, why, identity))

    def _tell(self, write: Callable[[], Awaitable[Any]]) -> None:
        self._writes.append(write)
        self._news.set()

    async def poll(self) -> float:
        """Write what was learnt into the row, read it, take tokens, try a probe; seconds until the next."""
        if (identity := self._identity()) != self._announced:
            await gateways.identify(self._db, self.name, identity)
            self._announced, self._outdated = identity, False
        if self._errors:
            errors, self._errors = list(self._errors.values()), {}
            await gateways.note_errors(self._db, self.name, errors)
        await self._write()
        await self._read()
        left = self._paused_until - self._clock.latest(time.monotonic())
        wait = min(REFRESH, left + 0.001) if left > 0 else REFRESH
        if self.breaker is not BreakerState.CLOSED and not self.probing:
            wait = min(wait, await self._probe())
        if self._hungry:
            await self._write()  # a token that was used during the read is charged before the next is taken
            wait = min(wait, await self._lease())
        return wait

    async def _write(self) -> None:
        while self._writes:
            await self._writes[0]()
            self._writes.pop(0)

    async def _read(self) -> None:
        asked = time.monotonic()
        row = await gateways.get(self._db, self.name)
        self._clock.set(row.now, asked)
        if self._writes:  # what was learnt meanwhile is newer than the row
            return
        self._state, self._newest = row.state, row.identity
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
            self._changed.set()

    def _gates(self) -> tuple[object, ...]:
        paused = self._clock.latest(time.monotonic()) < self._paused_until
        return self._stopped(), paused, self.breaker, self.concurrency, self.rate

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
            self._changed.set()
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
            self._changed.set()
        else:
            self._hungry = True
        return max(0.002, wait)
