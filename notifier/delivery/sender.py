"""Starts marked messages, and turns what the gateway answers into ledger entries.

`Sender._check` and `Sender._deliver` are its part of a message's way. No database connection is held while a request is
under way.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from enum import Enum

import structlog

from notifier import policy
from notifier.cluster.loops import Signal
from notifier.delivery.answers import Answer, has_it_already
from notifier.delivery.clock import Clock
from notifier.delivery.concurrency import Concurrency
from notifier.delivery.gateway import Gateway
from notifier.delivery.held import PendingSend
from notifier.delivery.limits import Limits, Permit
from notifier.delivery.line import Line
from notifier.delivery.outbox import Outbox
from notifier.models import MessageState, OnUnknown, Outcome, Reason
from notifier.storage.queue import Loaded
from notifier.storage.recording import Result

log = structlog.get_logger(__name__)

# Seconds until a message is tried again that an error of our own kept from starting.
AFTER_BUG = 60.0
# Seconds between two calls of `start` that nobody asked for.
IDLE = 1.0


class StartDecision(Enum):
    """What the last check of a marked message says."""

    START = 1
    WAIT = 2


class Sender:
    """Sends the messages of the line, through one gateway.

    ``more`` is set when the line runs dry: more must be loaded and marked. ``urgent`` is set when the line has nothing
    left of a priority: what waits for its watermark may be more urgent than the rest.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: Limits,
        concurrency: Concurrency,
        line: Line,
        outbox: Outbox,
        clock: Clock,
        *,
        on_unknown: OnUnknown,
        more: Signal,
        urgent: Signal,
    ) -> None:
        self._gateway = gateway
        self._limits = limits
        self._concurrency = concurrency
        self._line = line
        self._outbox = outbox
        self._clock = clock
        self._on_unknown = on_unknown
        self._more = more
        self._urgent = urgent
        self._tasks: set[asyncio.Task[None]] = set()
        self._ran_dry_at = 0.0  # the line's renewal, when it was last said that it runs dry

    async def start(self) -> float:
        """Start as many tasks as messages may be started now; each checks for itself when it really runs."""
        now = time.monotonic()
        if not self._line.is_open(now):
            return IDLE
        starting = self._concurrency.starting
        free = min(len(self._line), self._concurrency.free()) - starting
        if free > 0:
            allowed = self._limits.allowance(now)
            if not allowed:
                self._limits.ask_for_tokens(now)
            for _ in range(min(free, allowed - starting)):
                self._concurrency.expect()
                task = asyncio.get_running_loop().create_task(self._run())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        return IDLE

    async def _run(self) -> None:
        """Send one message after the other, as long as there is one that may start."""
        self._concurrency.arrived()
        while send := self._next(checked_at := time.monotonic()):
            try:
                await self._deliver(send, checked_at)
            finally:
                self._concurrency.end(time.monotonic() - checked_at)
            if self._ran_dry_at != self._line.renewed_at and self._line.runs_dry(self._concurrency.rate):
                self._ran_dry_at = self._line.renewed_at
                self._more.set()

    async def _deliver(self, send: PendingSend, started: float) -> None:
        """Send one message: request, answer, what the answer teaches, the message's next state, its ledger entry.

        ``started`` is when it was checked last, so that the ledger says what was judged.
        """
        started_at = datetime.fromtimestamp(self._clock.latest(started), UTC)
        text_version = send.batch.mailing.text_version
        doubts = _doubts(send)
        is_noted = False
        try:
            assert send.message.phone is not None
            identity = self._gateway.identity
            answer = await self._gateway.send(send.message.id, send.message.phone, send.batch.mailing.text)
            if doubts and has_it_already(answer):
                answer = answer._replace(outcome=Outcome.ACCEPTED, reason=Reason.ALREADY_ACCEPTED)
            answer = self._limits.note(
                answer, send.message.id, started_at, identity, probe=send.is_probe, in_doubt=doubts > 0
            )
            is_noted = True
        except Exception as error:  # an error with one message must not stop the others
            log.exception("sending failed", message_id=send.message.id, mailing_id=send.batch.mailing.id)
            answer = Answer(Outcome.UNKNOWN, Reason.INTERNAL_ERROR, None, type(error).__name__)
        finally:
            if send.is_probe and not is_noted:
                self._limits.forget_probe()
        next_ = self._after(answer, send.message, doubts)
        duration_ms = int((time.monotonic() - started) * 1000)
        self._outbox.add(send.batch, self._entry(send, answer, next_, started_at, duration_ms, text_version))

    def _after(self, answer: Answer, message: Loaded, doubts: int) -> policy.Next:
        if answer.outcome is Outcome.ACCEPTED and answer.reason is None:
            return _SENT
        history = policy.History(message.counted, message.declined, doubts)
        return policy.after(answer.outcome, answer.reason, history, self._on_unknown, wait=answer.retry_after)

    def _entry(
        self,
        send: PendingSend,
        answer: Answer,
        next_: policy.Next,
        started_at: datetime,
        duration_ms: int,
        text_version: int,
    ) -> Result:
        return Result(
            batch_id=send.batch.claimed.id,
            message_id=send.message.id,
            outcome=answer.outcome,
            state=next_.state,
            started_at=started_at,
            duration_ms=duration_ms,
            phone=send.message.phone,
            text_version=text_version,
            status_code=answer.status_code,
            reason=next_.reason,
            detail=answer.detail,
            due_at=None if next_.wait is None else policy.due_at(self._clock.now(), next_.wait),
        )

    def _next(self, now: float) -> PendingSend | None:
        """Take the next message out of the line whose request may start now; it counts as under way from here on."""
        while self._line.is_open(now) and self._concurrency.free() > 0:
            send = self._line.first()
            try:
                decision = self._check(send, now)
            except Exception:  # an error with one message must not stop the others
                log.exception("cannot be started", message_id=send.message.id, mailing_id=send.batch.mailing.id)
                at = self._clock.latest(now)
                due_at = policy.due_at(self._clock.now(), AFTER_BUG)
                decision = send.batch.not_started(
                    send.message.id, Outcome.NOT_STARTED, Reason.INTERNAL_ERROR, at, due_at
                )
            if decision is StartDecision.WAIT:
                return None
            if self._line.leave(send, started=decision is StartDecision.START):
                self._urgent.set()
            if decision is StartDecision.START:
                self._concurrency.begin()
                return send
            if isinstance(decision, Result):
                self._outbox.add(send.batch, decision)
        return None

    def _check(self, send: PendingSend, now: float) -> StartDecision | Result:
        """Check everything that could forbid a marked message's start; a `Result` says why it does not start."""
        batch, message = send.batch, send.message
        at = self._clock.latest(now)
        if message.phone is None:
            return batch.not_started(message.id, Outcome.SUPPRESSED, Reason.CLIENT_DELETED, at)
        held = self._on_unknown is OnUnknown.HOLD and batch.claimed.state is MessageState.DOUBTFUL
        if held and not message.let_go:  # it was queued before hold was set
            return batch.not_started(message.id, Outcome.NOT_STARTED, Reason.HELD, at)
        due_at = batch.claimed.due_at
        if at >= batch.mailing.ends_at:
            return batch.not_started(message.id, Outcome.NOT_STARTED, Reason.ENDED, at, due_at)
        if not batch.mailing.may_text(message.timezone, at):
            # Due at once: the feeder reschedules it, under the mailing's lock, so that no edit of the window is missed.
            return batch.not_started(message.id, Outcome.NOT_STARTED, Reason.WINDOW, at, due_at)
        # Open by the latest time that the database's clock may show, but not by the earliest: in a moment it is open.
        if not batch.mailing.may_text(message.timezone, self._clock.earliest(now)):
            return StartDecision.WAIT
        permit = self._limits.take(now)
        send.is_probe = permit is Permit.PROBE
        return StartDecision.START if permit else StartDecision.WAIT


_SENT = policy.Next(MessageState.SENT, None, None)


def _doubts(send: PendingSend) -> int:
    """Return how many earlier requests of the message may have been taken.

    The batch knows of a doubt that no outcome shows: an acceptance that could not be recorded.
    """
    return max(send.message.in_doubt, int(send.batch.claimed.state is MessageState.DOUBTFUL))
