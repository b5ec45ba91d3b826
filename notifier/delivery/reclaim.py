"""Reclaims batches of dead replicas and stuck batches, and writes what can be known of their messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog

from notifier import policy, telemetry
from notifier.delivery.recorder import REFUSED, store
from notifier.models import OnUnknown, Outcome, Reason
from notifier.storage import mailings, queue, recording
from notifier.storage.database import Db, Pool, transaction
from notifier.storage.queue import Claimed, Owned
from notifier.storage.recording import BatchReport, Result

log = structlog.get_logger(__name__)


async def reclaim(db: Pool, replica: int, left_behind: Sequence[Owned], on_unknown: OnUnknown, wait: float) -> None:
    """Reclaim and settle in one transaction: where nothing can be written the owners stay who they are.

    ``wait`` is the gateway's timeout in seconds.
    """
    try:
        async with transaction(db) as conn:
            reclaimed = await queue.reclaim(conn, replica, left_behind)
            await settle(conn, replica, reclaimed, on_unknown, wait)
    except REFUSED:  # a single row; `store` splits it off, outside a transaction, which an error would end
        reclaimed = await queue.reclaim(db, replica, left_behind)
        for batch in reclaimed:
            await settle(db, replica, [batch], on_unknown, wait, write=store)
    for batch in reclaimed:
        log.warning("reclaimed a batch", batch=batch.id, mailing_id=batch.mailing_id)
        telemetry.TAKEOVERS.inc()


async def settle(
    db: Db,
    replica: int,
    batches: Sequence[Claimed],
    on_unknown: OnUnknown,
    wait: float,
    *,
    write: Callable[[Db, int, Sequence[BatchReport], Sequence[Result]], Awaitable[object]] = recording.record,
) -> None:
    """Settle batches that were just reclaimed: in doubt are their ids under the watermark without a ledger row.

    They get an `interrupted` row and, where the policy allows another try, a batch due after ``wait`` seconds (the
    gateway's timeout), so that a late acceptance of the old owner still cancels it; what lies beyond the watermark was
    not started and goes back into the queue.
    """
    if not batches:
        return
    now = await mailings.clock(db)
    reports: list[BatchReport] = []
    results: list[Result] = []
    marked = [(batch, message_id) for batch in batches for message_id in batch.ids[: batch.watermark]]
    loaded = await queue.load(db, [message_id for _, message_id in marked], [batch.seq for batch, _ in marked])
    recorded = Counter(batch.id for (batch, _), message in zip(marked, loaded, strict=True) if message.recorded)
    for batch in batches:
        unknown_to_it = recorded[batch.id] - batch.done
        reports.append(
            BatchReport(
                batch.id, batch.owner, batch.watermark, batch.watermark, unknown_to_it, batch.foreign_rows, release=True
            )
        )
    for (batch, _), message in zip(marked, loaded, strict=True):
        if message.recorded:
            continue
        history = policy.History(message.counted, message.declined, message.in_doubt)
        next_ = policy.after(Outcome.INTERRUPTED, Reason.INTERRUPTED, history, on_unknown, wait=wait)
        results.append(
            Result(
                batch_id=batch.id,
                message_id=message.id,
                outcome=Outcome.INTERRUPTED,
                state=next_.state,
                started_at=now,
                duration_ms=None,
                phone=message.phone,
                text_version=None,
                status_code=None,
                reason=next_.reason,
                detail=None,
                due_at=None if next_.wait is None else policy.due_at(now, next_.wait),
            )
        )
    await write(db, replica, reports, results)
