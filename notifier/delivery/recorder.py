"""Results → one statement: what happened and the leave to go on are committed together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

import asyncpg
import structlog

from notifier import telemetry
from notifier.delivery.clock import Clock
from notifier.delivery.sender import FULL, Sender, Work
from notifier.models import Outcome, Reason, Standing
from notifier.storage import ledger, queue
from notifier.storage.database import Db
from notifier.storage.queue import Recorded, Report, Result

log = structlog.get_logger(__name__)

# A record waits this long for more results (seconds), unless there are FULL of them or a mark is asked for.
PATIENCE = 0.05
# Without news a record is made all the same: pause, end and take-over are learnt with it, and freshness comes of it.
HEARTBEAT = 0.25
# Rows of our own books: that something was not started is no news once a take-over has written its row.
BOOKS = frozenset({Outcome.NOT_STARTED, Outcome.SUPPRESSED})
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
    """Commits what `sender` has to say, and tells it what came of it."""

    def __init__(self, db: Db, replica: int, sender: Sender, clock: Clock) -> None:
        self._db = db
        self._replica = replica
        self._sender = sender
        self._clock = clock
        self._kept: list[tuple[Work, Result]] = []  # taken from the sender, not committed yet
        self._late: list[tuple[int, Result]] = []  # (seq, result): their batch was lost
        self._last = 0.0
        self._given_up = 0

    def idle(self) -> bool:
        """Whether everything that the sender handed over is committed."""
        return not (self._kept or self._late)

    async def poll(self) -> float:
        """Make one record when there is reason to; seconds until the next look."""
        sender = self._sender
        if self._late:
            await self._append_late()
        if not sender.works and not sender.results and not self._kept:
            return 1.0
        age = time.monotonic() - self._last
        waiting = len(sender.results) + len(self._kept)
        asks = sender.is_urged() or (sender.runs_dry() and any(w.loaded > w.mark for w in sender.works.values()))
        asks |= any(work.releasing > work.released for work in sender.works.values())
        if not (asks or waiting >= FULL or (waiting and age >= PATIENCE) or age >= HEARTBEAT):
            return (PATIENCE if waiting else HEARTBEAT) - age
        await self._record()
        return 0.0 if sender.results else PATIENCE

    async def _record(self) -> None:
        sender = self._sender
        self._kept += sender.results
        sender.results = []
        reports = sender.reports()
        held = [(work, result) for work, result in self._kept if work.batch.id in sender.works]
        self._late += [(work.batch.seq, r) for work, r in self._kept if work.batch.id not in sender.works]
        self._kept = held
        if not reports:
            return
        asked = time.monotonic()
        recorded = await store(self._db, self._replica, reports, [result for _, result in held])
        self._last = time.monotonic()
        self._measure(self._last - asked, [result for _, result in held])
        self._kept = []
        if recorded:
            self._clock.set(recorded[0].now, asked)
        self._look_for_lost(held, recorded)
        await sender.settle(recorded, asked)

    def _measure(self, seconds: float, results: list[Result]) -> None:
        telemetry.RECORD_SECONDS.observe(seconds)
        telemetry.READY.set(self._sender.ready)
        telemetry.INFLIGHT.set(self._sender.inflight)
        telemetry.RECORDER_PENDING.set(len(self._sender.results) + len(self._late))
        for outcome, count in Counter(result.outcome for result in results).items():
            telemetry.ATTEMPTS.labels(outcome.value).inc(count)
        for result in results:
            if result.duration_ms is not None:
                telemetry.ATTEMPT_SECONDS.observe(result.duration_ms / 1000)

    def _look_for_lost(self, held: list[tuple[Work, Result]], recorded: list[Recorded]) -> None:
        """Results that were not written: ours from a commit whose acknowledgement was lost, or late."""
        given: dict[int, list[tuple[int, Result]]] = {}
        for work, result in held:
            given.setdefault(result.batch_id, []).append((work.batch.seq, result))
        for row in recorded:
            results = given.get(row.batch_id, [])
            if len(results) != (row.written or 0):
                self._late += results

    async def _append_late(self) -> None:
        keys = [(result.message_id, seq, result.started_at) for seq, result in self._late]
        mine = await ledger.mine(self._db, self._replica, keys)
        self._late = [
            late for late, key in zip(self._late, keys, strict=True) if key not in mine and late[1].outcome not in BOOKS
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
        """Write at least that there was a result; where not even that is possible its message stays under its mark."""
        log.exception("a result cannot be recorded", message_id=result.message_id)
        try:
            return await ledger.append_late(self._db, self._replica, _unrecordable(result, error))
        except REFUSED:
            if self._given_up >= GIVEN_UP:
                raise
            self._given_up += 1
            log.error("nothing can be recorded of a message", message_id=result.message_id, outcome=result.outcome)
            return True


async def store(db: Db, replica: int, reports: Sequence[Report], results: Sequence[Result]) -> list[Recorded]:
    """`storage.queue.record`, whatever PostgreSQL thinks of single values.

    A row that came in between makes the statement run again with a younger snapshot. A row that is refused bisects
    the flush, so that the rest is recorded; the culprit is recorded as unknown, or not at all where that is refused.
    """
    try:
        return await queue.record(db, replica, reports, results)
    except asyncpg.UniqueViolationError:
        return await queue.record(db, replica, reports, results)
    except REFUSED as error:
        if not results:
            raise
        if len(results) == 1:
            log.exception("a result cannot be recorded", message_id=results[0].message_id)
            with suppress(*REFUSED):
                return await queue.record(db, replica, reports, [_unrecordable(results[0], error)])
            return await queue.record(db, replica, reports, [])
        half = len(results) // 2
        first = await store(db, replica, reports, results[:half])
        second = await store(db, replica, reports, results[half:])
        return _merge(first, second)


def _unrecordable(result: Result, error: BaseException) -> Result:
    return result._replace(
        standing=Standing.UNKNOWN,
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
