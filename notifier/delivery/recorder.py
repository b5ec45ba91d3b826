"""Commits results and watermarks together, in one statement, and acts on what it returns."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress

import asyncpg
import structlog

from notifier import telemetry
from notifier.cluster.loops import Signal
from notifier.delivery.clock import Clock
from notifier.delivery.concurrency import Concurrency
from notifier.delivery.held import HeldBatch, HeldBatches, PendingSend
from notifier.delivery.limits import Limits
from notifier.delivery.line import Line
from notifier.delivery.outbox import FULL, Outbox
from notifier.models import MailingStatus, MessageState, Outcome, Reason
from notifier.storage import ledger, recording
from notifier.storage.database import Db
from notifier.storage.recording import BatchReport, Recorded, Result

log = structlog.get_logger(__name__)

# A record waits this long for more results (seconds), unless there are FULL of them or a watermark is asked for.
GATHER = 0.05
# Record at least this often (seconds) even without results: the statement also returns pause, end and loss of
# ownership, and renews this process's permission to start requests.
HEARTBEAT = 0.25
# Why a batch is given back, by the status of its mailing; of every other status the end has come.
STOPPED_BY = {MailingStatus.PAUSED: Reason.PAUSED, MailingStatus.CANCELLED: Reason.CANCELLED}
# Seconds that a marked message may wait for its start.
LINED_UP = 10.0
# Seconds until the next check while nothing is in hand.
IDLE = 1.0
# Entries without a request. They are not appended late: whoever reclaimed the batch has settled these messages.
OWN_ENTRIES = frozenset({Outcome.NOT_STARTED, Outcome.SUPPRESSED})
# What PostgreSQL, or the driver on its behalf, refuses for good because of a single row: its values, a trigger of the
# owner's, a limit, a damaged index. Everything else is about the whole database, and the same flush may do later.
REFUSED = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.InternalServerError,
    ValueError,
    TypeError,
    OverflowError,
)
# So many results are given up of which nothing at all can be written; more are no bad rows but a database that is
# broken, and then nothing new may start.
GIVEN_UP = 10


class Recorder:
    """Commits the results of all batches in hand with their watermarks, and acts on what the database says of each.

    ``start`` is set when messages were lined up, ``feed`` after each record, ``finished`` when no batch of some mailing
    is left in hand.
    """

    def __init__(
        self,
        db: Db,
        replica: int,
        held: HeldBatches,
        line: Line,
        outbox: Outbox,
        limits: Limits,
        concurrency: Concurrency,
        clock: Clock,
        *,
        record: Signal,
        start: Signal,
        feed: Signal,
        finished: Signal,
    ) -> None:
        self._db = db
        self._replica = replica
        self._held = held
        self._line = line
        self._outbox = outbox
        self._limits = limits
        self._concurrency = concurrency
        self._clock = clock
        self._signal = record
        self._start = start
        self._feed = feed
        self._finished = finished
        self._kept: list[tuple[HeldBatch, Result]] = []  # taken from the outbox, not committed yet
        self._late: list[tuple[int, Result]] = []  # (seq, result): their batch was lost
        self._last = 0.0
        self._given_up = 0
        self._is_stopping = False

    def stop(self) -> None:
        """Give back with the next records what is not started."""
        self._is_stopping = True

    def is_idle(self) -> bool:
        """Whether no batch is in hand and everything is committed."""
        return not (self._held or self._outbox or self._kept or self._late)

    async def poll(self) -> float:
        """Make one record when there is reason to; seconds until the next check."""
        if self._late:
            await self._append_late()
        waiting = len(self._outbox) + len(self._kept)
        if not self._held and not waiting:
            return IDLE
        age = time.monotonic() - self._last
        if not (self._is_asked() or waiting >= FULL or (waiting and age >= GATHER) or age >= HEARTBEAT):
            return (GATHER if waiting else HEARTBEAT) - age
        await self._record()
        return 0.0 if self._outbox else GATHER

    def _is_asked(self) -> bool:
        """Whether a batch wants a watermark now, or to be given back."""
        if any(batch.wants_record for batch in self._held):
            return True
        staged = [batch for batch in self._held if batch.staged]
        if any(batch.mailing.priority > self._line.top_priority for batch in staged):
            return True
        return self._line.runs_dry(self._concurrency.rate) and any(
            batch.loaded > batch.watermark for batch in self._held
        )

    async def _record(self) -> None:
        self._kept += self._outbox.take()
        reports = [batch.ask() for batch in self._held]
        ours = [(batch, result) for batch, result in self._kept if batch.id in self._held]
        self._late += [(batch.claimed.seq, result) for batch, result in self._kept if batch.id not in self._held]
        self._kept = ours
        if not reports:
            return
        asked = time.monotonic()
        recorded = await store(self._db, self._replica, reports, [result for _, result in ours])
        self._last = time.monotonic()
        self._measure(self._last - asked, [result for _, result in ours])
        self._kept = []
        if recorded:
            self._clock.set(recorded[0].now, asked)
        self._find_late(ours, recorded)
        await self.settle(recorded, asked)

    async def settle(self, recorded: Iterable[Recorded], asked: float) -> None:
        """Act on what a committed record found; ``asked`` is when it was sent (``time.monotonic``)."""
        for row in recorded:
            batch = self._held.get(row.batch_id)
            if batch is None:
                continue
            if not row.owned or row.finished:
                self._held.drop(batch, lost=not row.owned)
                if not row.owned:  # nothing else would take them out, and they take the room of others
                    self._line.leave_with(batch)
                if not self._held.has_mailing(batch.mailing.id):
                    self._finished.set()
                continue
            if row.version != batch.mailing.version:
                await batch.mailing.refresh(self._db)
            self._line.append(batch.heard(row), time.monotonic())
            if row.status is not MailingStatus.RUNNING or row.now >= row.ends_at:
                self._release(batch, STOPPED_BY.get(row.status, Reason.ENDED))
            elif not self._limits.usable():
                self._release(batch, Reason.PAUSED)
            elif self._is_stopping:
                self._release(batch, Reason.RELEASED)
        # Not before: a mailing that was edited had to be read again, and nothing starts with an old text.
        self._line.renew(asked)
        self._give_back_the_old()
        self._start.set()
        self._feed.set()

    def _release(self, batch: HeldBatch, reason: Reason) -> None:
        """Give back what was not started: the marked with an entry that says so, the rest with the next record."""
        if batch.is_releasing:
            return
        batch.release()
        self._give_back(self._line.leave_with(batch), reason)
        self._signal.set()

    def _give_back_the_old(self) -> None:
        """Give back what waits long under its watermark (a low rate, a slow gateway): else it would count as stuck."""
        self._give_back(self._line.leave_older(time.monotonic() - LINED_UP), Reason.RELEASED)

    def _give_back(self, sends: Iterable[PendingSend], reason: Reason) -> None:
        at = self._clock.latest(time.monotonic())
        for send in sends:
            batch = send.batch
            entry = batch.not_started(send.message.id, Outcome.NOT_STARTED, reason, at, batch.claimed.due_at)
            self._outbox.add(batch, entry)

    def _measure(self, seconds: float, results: list[Result]) -> None:
        telemetry.RECORD_SECONDS.observe(seconds)
        telemetry.READY.set(len(self._line))
        telemetry.INFLIGHT.set(self._concurrency.inflight)
        telemetry.RECORDER_PENDING.set(len(self._outbox) + len(self._late))
        for outcome, count in Counter(result.outcome for result in results).items():
            telemetry.ATTEMPTS.labels(outcome.value).inc(count)
        for result in results:
            if result.duration_ms is not None:
                telemetry.ATTEMPT_SECONDS.observe(result.duration_ms / 1000)

    def _find_late(self, ours: list[tuple[HeldBatch, Result]], recorded: list[Recorded]) -> None:
        """Results that were not written: ours from a commit whose acknowledgement was lost, or late."""
        given: dict[int, list[tuple[int, Result]]] = {}
        for batch, result in ours:
            given.setdefault(result.batch_id, []).append((batch.claimed.seq, result))
        for row in recorded:
            results = given.get(row.batch_id, [])
            if len(results) != (row.written or 0):
                self._late += results

    async def _append_late(self) -> None:
        keys = [(result.message_id, seq, result.started_at) for seq, result in self._late]
        mine = await ledger.mine(self._db, self._replica, keys)
        self._late = [
            late
            for late, key in zip(self._late, keys, strict=True)
            if key not in mine and late[1].outcome not in OWN_ENTRIES
        ]
        while self._late:
            _, result = self._late[0]
            try:
                written = await ledger.append_late(self._db, self._replica, result)
            except REFUSED as error:
                written = await self._append_refused(result, error)
            else:
                self._given_up = 0
            if not written:
                log.warning("a result came after its mailing was purged", message_id=result.message_id)
            self._late.pop(0)

    async def _append_refused(self, result: Result, error: BaseException) -> bool:
        """Write at least that there was a result; where even that is refused its message stays under its watermark."""
        log.exception("a result cannot be recorded", message_id=result.message_id)
        try:
            return await ledger.append_late(self._db, self._replica, _unrecordable(result, error))
        except REFUSED:
            if self._given_up >= GIVEN_UP:
                raise
            self._given_up += 1
            log.error("nothing can be recorded of a message", message_id=result.message_id, outcome=result.outcome)
            return True


async def store(db: Db, replica: int, reports: Sequence[BatchReport], results: Sequence[Result]) -> list[Recorded]:
    """`storage.recording.record`, also where PostgreSQL refuses single values.

    A row that came in between makes the statement run again with a younger snapshot. For a row that is refused
    the flush is bisected, so that the rest is recorded; its message becomes unknown, or nothing is
    written of it where that is refused too.
    """
    try:
        return await recording.record(db, replica, reports, results)
    except asyncpg.UniqueViolationError:
        return await recording.record(db, replica, reports, results)
    except REFUSED as error:
        if not results:
            raise
        if len(results) == 1:
            log.exception("a result cannot be recorded", message_id=results[0].message_id)
            with suppress(*REFUSED):
                return await recording.record(db, replica, reports, [_unrecordable(results[0], error)])
            return await recording.record(db, replica, reports, [])
        half = len(results) // 2
        first = await store(db, replica, reports, results[:half])
        second = await store(db, replica, reports, results[half:])
        return _merge(first, second)


def _unrecordable(result: Result, error: BaseException) -> Result:
    return result._replace(
        state=MessageState.UNKNOWN,
        duration_ms=None,
        phone=None,
        status_code=None,
        reason=Reason.UNRECORDABLE,
        detail=type(error).__name__,
        due_at=None,
    )


def _merge(first: list[Recorded], second: list[Recorded]) -> list[Recorded]:
    """Two records of the same reports as one: a batch that the first finished is not found by the second."""
    before = {row.batch_id: row for row in first}
    merged = []
    for row in second:
        old = before[row.batch_id]
        if old.finished:
            merged.append(old)
        else:
            merged.append(row._replace(written=(row.written or 0) + (old.written or 0)))
    return merged
