"""How far a mailing has come, in numbers and as the bar shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from notifier.models import Mailing, Status
from notifier.storage import statistics
from notifier.storage.database import Db

# From what is done to what is still to do, as the bar shows it; waiting is its bare ground.
BAR = (
    Status.DELIVERED,
    Status.SENT,
    Status.UNDELIVERED,
    Status.FAILED,
    Status.UNKNOWN,
    Status.SUPPRESSED,
    Status.EXPIRED,
    Status.CANCELLED,
    Status.RETRYING,
    Status.SENDING,
)
OPEN = (Status.WAITING, Status.SENDING, Status.RETRYING)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar: where it begins and how long it is, in thousandths."""

    status: Status
    start: float
    length: float


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a mailing, or all of them, have come."""

    audience: int
    messages: Mapping[Status, int]

    @property
    def open(self) -> int:
        """Messages that are not done with."""
        return sum(self.messages[status] for status in OPEN)

    @property
    def sent(self) -> int:
        """Messages that the gateway has."""
        return sum(self.messages[status] for status in (Status.SENT, Status.DELIVERED, Status.UNDELIVERED))

    @property
    def not_sent(self) -> dict[Status, int]:
        """Messages that are done with and were never sent, by status, without the zeros."""
        kinds = (Status.EXPIRED, Status.CANCELLED, Status.SUPPRESSED)
        return {status: self.messages[status] for status in kinds if self.messages[status]}

    @property
    def percent(self) -> int:
        """How much is done with; 100 only when all is."""
        return (self.audience - self.open) * 100 // self.audience if self.audience else 0

    @property
    def segments(self) -> list[Segment]:
        """The bar."""
        found, start = [], 0.0
        for status in BAR:
            if self.messages[status] > 0 and self.audience:
                length = self.messages[status] * 1000 / self.audience
                found.append(Segment(status, round(start, 2), round(length, 2)))
                start += length
        return found


async def progress_of(db: Db, found: Sequence[Mailing]) -> dict[int, Progress]:
    """How far each of these mailings has come; those deleted meanwhile are left out."""
    lines = await statistics.of_mailings(db, None, len(found), ids=[mailing.id for mailing in found])
    return {line.id: Progress(line.audience, line.messages) for line in lines}
