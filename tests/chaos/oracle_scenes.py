"""Facts for the oracle of the chaos runs: one mailing, its messages, and what the gateway was asked."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from chaos.oracle import Attempt, Facts, Mailing, Message, Rule, Run, check
from notifier.models import MailingStatus, MessageState, Outcome, status_of
from notifier.simulator import Entry

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
END = datetime(2026, 3, 2, 18, tzinfo=UTC)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
MAILING = 7
PHONE = 79_000_000_000
ZONE = ZoneInfo("UTC")

Row = tuple[Outcome, MessageState]
ACCEPTED = (Outcome.ACCEPTED, MessageState.SENT)
REJECTED = (Outcome.REJECTED, MessageState.FAILED)
UNKNOWN = (Outcome.UNKNOWN, MessageState.DOUBTFUL)
HELD = (Outcome.UNKNOWN, MessageState.UNKNOWN)
INTERRUPTED = (Outcome.INTERRUPTED, MessageState.DOUBTFUL)
NOT_STARTED = (Outcome.NOT_STARTED, MessageState.WAITING)
SAID_TO_BE_SENT = (Outcome.RESOLVED, MessageState.SENT)
SENT_AGAIN = (Outcome.RESOLVED, MessageState.DOUBTFUL)


class Scene:
    """One mailing from 9 to 18 o'clock that has ended, and the run it was in; audience and statistics are counted."""

    def __init__(self, run: Run | None = None, **mailing: Any) -> None:
        self.run = run or Run(alive={1})
        self.messages: dict[int, Message] = {}
        self.entries: list[Entry] = []
        self.given = mailing
        values: dict[str, Any] = {
            "status": MailingStatus.FINISHED,
            "starts_at": START,
            "ends_at": END,
            "window": None,
            "over_at": END,
            "planned": True,
            "deleted": False,
            "texts": ((START, "Hi"),),
            "audience": 0,
            "shown": {},
        }
        self.mailing = Mailing(**(values | mailing))

    def message(self, message_id: int, *rows: Row, at: datetime = NOON, zone: ZoneInfo = ZONE, **last: Any) -> Scene:
        """A message to client and phone of its number; ``last`` changes its last row."""
        phone = PHONE + message_id
        attempts = [Attempt(outcome, state, at, phone=phone, text_version=1) for outcome, state in rows]
        if last:
            attempts[-1] = attempts[-1]._replace(**last)
        status = status_of(rows[-1][1] if rows else MessageState.WAITING, self.mailing.status)
        self.messages[message_id] = Message(MAILING, message_id, PHONE + message_id, zone, status, tuple(attempts))
        return self

    def asked(self, message_id: int, at: datetime = NOON, **answer: Any) -> Scene:
        """A request in the gateway's ledger, accepted unless ``answer`` says otherwise."""
        entry = Entry(at, message_id, PHONE + message_id, "Hi", True, False, 200, 0)
        self.entries.append(entry._replace(**answer))
        return self

    def sent(self, message_id: int, at: datetime = NOON) -> Scene:
        return self.message(message_id, ACCEPTED, at=at).asked(message_id, at)

    def facts(self, **changes: Any) -> Facts:
        shown = Counter(message.status for message in self.messages.values())
        counted: dict[str, Any] = {"audience": len(self.messages), "shown": dict(shown)}
        mailing = replace(self.mailing, **(counted | self.given))
        return replace(Facts(self.run, {MAILING: mailing}, self.messages, self.entries, {1: 1}), **changes)

    def broken(self, **changes: Any) -> list[tuple[Rule, int]]:
        """The rules that are broken, each with its count."""
        return [(breach.rule, breach.count) for breach in check(self.facts(**changes))]


def moments(count: int, apart: float, since: datetime = NOON) -> list[datetime]:
    return [since + n * timedelta(seconds=apart) for n in range(count)]
