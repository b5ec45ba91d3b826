"""Batches in hand: how far each is loaded, and how far it may be started.

Positions of a batch count from 0, from the front: watermark ≤ asked for ≤ loaded ≤ size. What lies below the committed
watermark may be started; what is loaded beyond it is staged, and waits for its watermark.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple
from zoneinfo import ZoneInfo

from notifier.delivery.snapshot import MailingSnapshot
from notifier.models import MessageState, Outcome, Reason
from notifier.storage.queue import Claimed, Loaded
from notifier.storage.recording import BatchReport, Recorded, Result

# Ids loaded for one mailing before the next one's turn, or more if there is room for more than that of each.
CHUNK = 100


class HeldBatch:
    """A claimed batch: loaded by the feeder, marked by the recorder, started by the sender."""

    __slots__ = (
        "_asked",
        "_recorded",
        "_release_reported",
        "_staged",
        "claimed",
        "foreign_rows",
        "is_lost",
        "is_releasing",
        "loaded",
        "mailing",
        "watermark",
    )

    def __init__(self, claimed: Claimed, mailing: MailingSnapshot) -> None:
        self.claimed = claimed
        self.mailing = mailing
        self.watermark = self._asked = self.loaded = claimed.watermark
        self.foreign_rows = claimed.foreign_rows
        self._staged: list[PendingSend] = []
        self._recorded: list[int] = []  # positions beyond the watermark whose ledger row is there already
        self.is_releasing = self._release_reported = False
        self.is_lost = False

    @property
    def id(self) -> int:
        """The batch's number."""
        return self.claimed.id

    @property
    def unloaded(self) -> int:
        """How many ids are not loaded yet; none of a batch that is given back."""
        return 0 if self.is_releasing else len(self.claimed.ids) - self.loaded

    @property
    def staged(self) -> int:
        """How many messages are loaded and wait for their watermark."""
        return len(self._staged)

    @property
    def wants_record(self) -> bool:
        """Whether it is to be given back, and no record has reported that yet."""
        return self.is_releasing and not self._release_reported

    # the feeder's

    def takes(self, chunk: Chunk) -> bool:
        """Whether what was loaded of a chunk may be staged.

        While it was loaded the batch may have been lost, released or unstaged, or somebody may have written a row for
        one of its messages.
        """
        return not (
            self.is_lost or self.is_releasing or self.loaded != chunk.start or self.foreign_rows != chunk.foreign_rows
        )

    def stage(self, messages: Sequence[Loaded]) -> None:
        """Line up what was loaded next for its watermark."""
        for position, message in enumerate(messages, self.loaded):
            if message.recorded:
                self._recorded.append(position)
            else:
                self._staged.append(PendingSend(self, message, position))
        self.loaded += len(messages)

    def keep(self, ids: Sequence[int]) -> None:
        """Some ids beyond what is loaded were moved into other batches: these are left."""
        self.claimed = replace(self.claimed, ids=ids)

    # the recorder's

    def ask(self) -> BatchReport:
        """Ask for a watermark up to what is loaded, or say that the rest is given back: for the next record."""
        self._asked, self._release_reported = self.loaded, self.is_releasing
        return BatchReport(
            batch_id=self.claimed.id,
            owner=self.claimed.owner,
            old_watermark=self.watermark,
            new_watermark=self._asked,
            skipped=len(self._recorded),
            foreign_rows=self.foreign_rows,
            release=self.is_releasing,
        )

    def heard(self, row: Recorded) -> list[PendingSend]:
        """Take in what a committed record found; return what may be started now."""
        sends: list[PendingSend] = []
        if row.watermark > self.watermark:
            sends = [send for send in self._staged if send.position < row.watermark]
            self._staged = self._staged[len(sends) :]
            self._recorded = [position for position in self._recorded if position >= row.watermark]
            self.watermark = row.watermark
        elif self._asked > self.watermark:
            self._unstage()  # refused: paused, over, or somebody wrote a row for one of them; it is loaded again
        self.foreign_rows = row.foreign_rows
        return sends

    def release(self) -> None:
        """Give back what lies beyond the watermark, with the next record."""
        self.is_releasing = True
        self._unstage()

    def _unstage(self) -> None:
        self._asked = self.loaded = self.watermark
        self._recorded, self._staged = [], []

    def end(self, *, lost: bool) -> None:
        """It is finished or, when ``lost``, owned by another replica: what is under way will be recorded late."""
        self.is_lost, self.is_releasing = lost, True

    # ledger entries

    def not_started(
        self, message_id: int, outcome: Outcome, reason: Reason, at: float, due_at: datetime | None = None
    ) -> Result:
        """Return the ledger entry of a marked message whose request was not started, at ``at`` (epoch seconds).

        With ``due_at`` it goes back into the queue; without it ends here.
        """
        state = self.claimed.state
        if due_at is None:
            state = MessageState.UNKNOWN if state is MessageState.DOUBTFUL else MessageState.SUPPRESSED
        return Result(
            batch_id=self.claimed.id,
            message_id=message_id,
            outcome=outcome,
            state=state,
            started_at=datetime.fromtimestamp(at, UTC),
            duration_ms=None,
            phone=None,
            text_version=None,
            status_code=None,
            reason=reason,
            detail=None,
            due_at=due_at,
        )


@dataclass(slots=True, eq=False)
class PendingSend:
    """One loaded message of a batch, which may be started once its watermark is committed."""

    batch: HeldBatch
    message: Loaded
    position: int
    marked_at: float = 0.0  # monotonic; when its watermark was committed
    priority: int = 0  # its mailing's, as of when it was lined up
    is_probe: bool = False  # the one request that an open breaker let through


class Chunk(NamedTuple):
    """Positions ``start`` to ``end`` (exclusive) of a batch, loaded together; ``foreign_rows`` as of when."""

    batch: HeldBatch
    start: int
    end: int
    foreign_rows: int


class HeldBatches:
    """All batches that this replica has in hand."""

    def __init__(self, default_zone: ZoneInfo) -> None:
        self._default_zone = default_zone
        self._batches: dict[int, HeldBatch] = {}
        self._turns: dict[int, int] = {}  # mailing → when it was loaded from last; the least recently served is next
        self._turn = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[HeldBatch]:
        return iter(self._batches.values())

    def __contains__(self, batch_id: object) -> bool:
        return batch_id in self._batches

    def get(self, batch_id: int) -> HeldBatch | None:
        """Return the batch of that number, if it is in hand."""
        return self._batches.get(batch_id)

    def add(self, claimed: Claimed) -> HeldBatch:
        """Take a batch that was just claimed."""
        assert claimed.send_settings is not None
        mailing = next((batch.mailing for batch in self if batch.mailing.id == claimed.mailing_id), None)
        if mailing is None:
            mailing = MailingSnapshot(claimed.mailing_id, claimed.send_settings, self._default_zone)
        batch = self._batches[claimed.id] = HeldBatch(claimed, mailing)
        return batch

    def drop(self, batch: HeldBatch, *, lost: bool = False) -> None:
        """Take a batch out that is finished or, when ``lost``, owned by another replica."""
        self._batches.pop(batch.id, None)
        batch.end(lost=lost)
        if not any(other.mailing is batch.mailing for other in self):
            self._turns.pop(batch.mailing.id, None)

    def has_mailing(self, mailing_id: int) -> bool:
        """Whether a batch of that mailing is in hand."""
        return any(batch.mailing.id == mailing_id for batch in self)

    def next_chunks(self, room: int) -> list[Chunk]:
        """Choose what is loaded next: higher priority first, mailings in turn, of each its retries, then by claim.

        One batch after the other, so that the ledger's keys are written in their order: pages of its index are split
        once then, and not again and again (12 bytes of WAL a message).
        """
        waiting: dict[MailingSnapshot, list[HeldBatch]] = {}
        for batch in sorted(self, key=lambda batch: batch.claimed.seq == 1):
            if batch.unloaded:
                waiting.setdefault(batch.mailing, []).append(batch)
        if not waiting:
            return []
        top = max(mailing.priority for mailing in waiting)
        mailings = sorted(
            (mailing for mailing in waiting if mailing.priority == top),
            key=lambda mailing: self._turns.get(mailing.id, 0),
        )
        share = max(CHUNK, room // len(mailings))
        chunks: list[Chunk] = []
        for mailing in mailings:
            if not room:
                break
            left = min(share, room)
            room -= left
            for batch in waiting[mailing]:
                if count := min(left, batch.unloaded):
                    chunks.append(Chunk(batch, batch.loaded, batch.loaded + count, batch.foreign_rows))
                    left -= count
            room += left
            self._turn += 1
            self._turns[mailing.id] = self._turn
        return chunks
