"""What the state machine knows: what each replica has in its hands, and the tables as they were after the last step."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from notifier.models import (
    MAILING_TRANSITIONS,
    MAX_IN_DOUBT,
    MailingStatus,
    MessageState,
    OnUnknown,
    Outcome,
    Reason,
    Status,
)
from notifier.storage import queue
from notifier.storage.database import Db
from notifier.storage.queue import Claimed, Loaded
from notifier.storage.recording import BatchReport, Result

REPLICAS = (1, 2, 3)
HEIR = 9
"""Who takes everything over in the end."""
WAIT = 600.0
"""Seconds added to every wait: what is not due becomes so only by `time_passes`, however slow the machine is."""
ZONES = ("Etc/UTC", "Etc/GMT-12")
"""While the window is open in one it is closed in the other."""
GIVES_UP = {OnUnknown.RETRY: MAX_IN_DOUBT, OnUnknown.HOLD: 1}
"""Copies of a message that nobody asked for again."""

UNDER_WAY = (Status.WAITING, Status.SENDING, Status.RETRYING)
ANSWERS: dict[str, tuple[Outcome, Reason | None]] = {
    "accepted": (Outcome.ACCEPTED, None),
    "rejected": (Outcome.REJECTED, Reason.REJECTED),
    "declined": (Outcome.DECLINED, Reason.DECLINED),
    "throttled": (Outcome.THROTTLED, Reason.THROTTLED),
    "refused": (Outcome.UNAVAILABLE, Reason.REFUSED),
    "outage": (Outcome.UNAVAILABLE, Reason.OUTAGE),
    "unauthorized": (Outcome.MISCONFIGURED, Reason.UNAUTHORIZED),
    "timeout": (Outcome.UNKNOWN, Reason.TIMEOUT),
}
MAYBE_SENT = frozenset({Outcome.ACCEPTED, Outcome.UNKNOWN})
# What a mailing may become in one step; finished → running when a late result or an operator's word reopens it.
STEPS = {(source, target) for sources, target in MAILING_TRANSITIONS.values() for source in sources} | {
    (MailingStatus.PAUSED, MailingStatus.SCHEDULED),
    (MailingStatus.FINISHED, MailingStatus.RUNNING),
}


@dataclass(eq=False)
class Request:
    """A request that was started, and whether the gateway may have taken it."""

    message_id: int
    seq: int
    history: Loaded
    started_at: datetime
    maybe_sent: bool = True


@dataclass(eq=False)
class Hand:
    """A batch in a replica's hands, as much as it has heard; positions as in `delivery.held.HeldBatch`."""

    replica: int
    batch: Claimed
    watermark: int
    loaded: int
    foreign_rows: int
    staged: list[tuple[int, Loaded]] = field(default_factory=list)
    skipped: list[int] = field(default_factory=list)
    ready: list[Loaded] = field(default_factory=list)
    under_way: list[Request] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    releasing: bool = False

    def unstage(self) -> None:
        self.loaded, self.staged, self.skipped = self.watermark, [], []

    def report(self) -> BatchReport:
        return BatchReport(
            batch_id=self.batch.id,
            owner=self.batch.owner,
            old_watermark=self.watermark,
            new_watermark=self.loaded,
            skipped=len(self.skipped),
            foreign_rows=self.foreign_rows,
            release=self.releasing,
        )


@dataclass
class Seen:
    """The tables after a step."""

    mailings: dict[int, Any]
    messages: dict[int, tuple[int, list[tuple[Outcome, MessageState]]]]  # → mailing, its ledger
    marked: set[tuple[int, int]]  # (message, seq) under a watermark
    owned: set[tuple[int, int]]  # (batch, owner)

    def state(self, message_id: int) -> MessageState:
        _, rows = self.messages[message_id]
        return rows[-1][1] if rows else MessageState.WAITING

    def status(self, mailing_id: int) -> MailingStatus:
        return MailingStatus(self.mailings[mailing_id]["status"])

    def shown(self) -> list[int]:
        return [id_ for id_, mailing in self.mailings.items() if not mailing["deleted"]]


async def look(db: Db) -> Seen:
    found = await db.fetch(
        """
        SELECT id, status, status_reason, version, audience, planned, horizon IS NOT NULL AS begun,
               starts_at <= now() AS started, ends_at <= now() AS ended, deleted_at IS NOT NULL AS deleted,
               (deleted_at <= now() - interval '30 days') IS TRUE AS expired, archived_at IS NOT NULL AS archived,
               (SELECT count(*) FROM batches WHERE mailing_id = m.id) AS batches,
               EXISTS (SELECT FROM batches WHERE mailing_id = m.id AND owner IS NULL AND due_at <= now()) AS due
        FROM mailings m ORDER BY id
        """
    )
    messages = await db.fetch(
        """
        SELECT id, mailing_id, ARRAY(
            SELECT row(outcome::text, state::text) FROM attempts WHERE message_id = g.id ORDER BY seq
        ) AS ledger
        FROM messages g ORDER BY id
        """
    )
    marked = await db.fetch(
        """
        SELECT e.id, b.seq
        FROM batches b
        CROSS JOIN LATERAL unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
            WITH ORDINALITY e (id, position)
        WHERE position <= watermark
        """
    )
    return Seen(
        {row["id"]: row for row in found},
        {row["id"]: (row["mailing_id"], [(Outcome(o), MessageState(s)) for o, s in row["ledger"]]) for row in messages},
        {(row["id"], row["seq"]) for row in marked},
        {(batch.id, batch.owner) for batch in await queue.owned(db)},
    )


async def rows_written(db: Db) -> int:
    """Rows that this connection has inserted, updated or deleted, as far as it has not told the collector yet."""
    n: int = await db.fetchval("SELECT sum(n_tup_ins + n_tup_upd + n_tup_del)::int FROM pg_stat_xact_user_tables")
    return n
