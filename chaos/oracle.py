"""The oracle: after a run it holds the simulated gateway's ledger against the database and says what is broken.

The gateway wrote its ledger in a process of its own before each answer, so it knows what was really asked, whatever
the service believes. `gather` reads both into `Facts`; `check` is pure and has a function for each rule, so that every
rule can be shown facts that break it. What only the runner knows (edits, pauses, kills) it hands in as a `Run`.

A million messages take half a minute and a gigabyte.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo

from notifier import windows
from notifier.delivery.feeder import AHEAD
from notifier.errors import NotFound
from notifier.models import (
    IN_DOUBT,
    OPEN_STATES,
    REQUESTS,
    MailingStatus,
    MessageState,
    Outcome,
    Reason,
    Status,
    Window,
    status_of,
)
from notifier.simulator import Entry
from notifier.storage import queue, statistics
from notifier.storage.database import Connection, Pool, unlimited

SHOWN = 10
"""Ids a breach names; its count says how many there are."""

TAKES_EFFECT = timedelta(seconds=1)
"""Edits, pause and cancel hold for new requests after this (promise 9)."""

COPIES = 3
"""Requests of one message that the gateway may accept at most (promise 5)."""

P99 = 0.3
"""Seconds in which 99 of 100 answers of the API must have come, whatever the gateway does."""

ENDED = timedelta(seconds=1)
"""An end is noticed by one reading of the clock and stamped by an earlier one, the transaction's."""

NOT_FINAL = frozenset({Status.WAITING, Status.SENDING, Status.RETRYING})
SENT = frozenset({Status.SENT, Status.DELIVERED, Status.UNDELIVERED})
# Rows whose `started_at` is the start of a request; that of `interrupted` is when the take-over found it.
STARTED = REQUESTS - {Outcome.INTERRUPTED}
EVER = datetime.max.replace(tzinfo=UTC) - timedelta(days=2)
NEVER = datetime.min.replace(tzinfo=UTC) + timedelta(days=2)


# ---- what is known ---------------------------------------------------------------------------------------------------


class Version(NamedTuple):
    """What a mailing said from some edit on.

    It was committed between ``asked`` and ``answered``; None when no answer came: it may be in force, or not.
    """

    asked: datetime
    answered: datetime | None
    starts_at: datetime
    ends_at: datetime
    window: Window | None
    text: str


class Stop(NamedTuple):
    """A pause or a cancel that was ``answered``; ``until`` is when its resume was asked for, None: it stayed so."""

    mailing_id: int
    answered: datetime
    until: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What the runner did and saw; times are aware, durations in seconds.

    ``alive``: numbers of the replicas that run still. ``versions``: by mailing, in the order of their commits; without
    them a mailing was not edited except for its text. ``audiences``: by mailing, the clients who should get it.
    ``purged``: the texts of mailings that were deleted and purged, which alone tell whose their requests were.
    ``again``: ids of such messages that an operator may have had sent again; of the others the books say it.
    ``rates``: the rate from each moment on, messages a second, 0 = without limit; an edit of it is judged after a
    second. ``kills``: how many messages each kill -9 left in doubt. ``audit``: what `storage.audit` found broken.
    ``latencies``: of the API's answers.

    ``transit``: how long a request may be on its way to the gateway's ledger. ``rate_slack``: by how much the way may
    differ between two requests. ``skew``: by how much the clocks of gateway, database and runner may differ.
    """

    alive: Collection[int]
    versions: Mapping[int, Sequence[Version]] = field(default_factory=dict)
    stops: Sequence[Stop] = ()
    audiences: Mapping[int, Collection[int]] = field(default_factory=dict)
    purged: Collection[str] = ()
    again: Sequence[int] = ()
    rates: Sequence[tuple[datetime, float]] = ()
    concurrency: int = 0
    kills: Sequence[int] = ()
    audit: Sequence[str] = ()
    latencies: Sequence[float] = ()
    transit: float = 2.0
    rate_slack: float = 0.2
    skew: float = 0.0


class Attempt(NamedTuple):
    """A row of the service's own ledger."""

    outcome: Outcome
    state: MessageState
    started_at: datetime
    reason: str | None = None
    phone: int | None = None
    text_version: int | None = None


class Message(NamedTuple):
    """A row of `messages` with its attempts in order; ``phone`` and ``zone`` are None when the client is gone."""

    mailing_id: int
    client_id: int
    phone: int | None
    zone: ZoneInfo | None
    status: Status
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class Mailing:
    """A row of `mailings`; ``texts`` in order, each with its beginning; ``shown`` are the statistics, without zeros."""

    status: MailingStatus
    starts_at: datetime
    ends_at: datetime
    window: Window | None
    over_at: datetime | None
    planned: bool
    audience: int
    deleted: bool
    texts: tuple[tuple[datetime, str], ...]
    shown: Mapping[Status, int]


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the oracle looks at.

    ``owned`` is the number of owned batches by replica; ``orphans`` are messages whose mailing is gone.
    """

    run: Run
    mailings: Mapping[int, Mailing]
    messages: Mapping[int, Message]
    entries: Sequence[Entry]
    owned: Mapping[int, int]
    orphans: Sequence[int] = ()


async def gather(db: Pool, entries: Sequence[Entry], run: Run, default_zone: ZoneInfo) -> Facts:
    """Read the database in one snapshot; the ledger must be complete by then."""
    async with db.acquire() as conn, conn.transaction(isolation="repeatable_read", readonly=True):
        await conn.execute(unlimited())
        mailings = await _mailings(conn)
        owned = Counter(batch.replica for batch in await queue.owned(conn))
        messages = await _messages(conn, mailings, default_zone)
        orphans = await conn.fetch("SELECT id FROM messages WHERE mailing_id NOT IN (SELECT id FROM mailings)")
    return Facts(run, mailings, messages, entries, owned, [row["id"] for row in orphans])


async def _mailings(conn: Connection) -> dict[int, Mailing]:
    texts: dict[int, list[tuple[datetime, str]]] = defaultdict(list)
    for row in await conn.fetch("SELECT * FROM mailing_texts ORDER BY mailing_id, version"):
        texts[row["mailing_id"]].append((row["created_at"], row["text"]))
    mailings = {}
    for row in await conn.fetch("SELECT * FROM mailings ORDER BY id"):
        try:
            shown = (await statistics.of_mailing(conn, row["id"])).messages
        except NotFound:  # deleted
            shown = {}
        mailings[row["id"]] = Mailing(
            status=MailingStatus(row["status"]),
            starts_at=row["starts_at"],
            ends_at=row["ends_at"],
            window=Window(row["window_from"], row["window_to"]) if row["window_from"] is not None else None,
            over_at=row["over_at"],
            planned=row["planned"],
            audience=row["audience"],
            deleted=row["deleted_at"] is not None,
            texts=tuple(texts[row["id"]]),
            shown={status: n for status, n in shown.items() if n},
        )
    return mailings


async def _messages(conn: Connection, mailings: Mapping[int, Mailing], default_zone: ZoneInfo) -> dict[int, Message]:
    attempts: dict[int, tuple[Attempt, ...]] = {}
    async for row in conn.cursor(
        "SELECT message_id, outcome::text, state::text, started_at, reason, phone, text_version FROM attempts "
        "ORDER BY message_id, seq",
        prefetch=10_000,
    ):
        message_id, outcome, state, *rest = row
        attempt = Attempt(Outcome(outcome), MessageState(state), *rest)
        attempts[message_id] = (*attempts.get(message_id, ()), attempt)
    sending = {
        (row["id"], row["seq"])
        for row in await conn.fetch(
            """
            SELECT e.id, b.seq
            FROM batches b
            CROSS JOIN LATERAL unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
                WITH ORDINALITY e (id, position)
            WHERE b.owner IS NOT NULL AND e.position <= b.watermark
            """
        )
    }
    messages = {}
    async for row in conn.cursor(
        "SELECT g.id, g.mailing_id, g.client_id, c.phone, c.timezone "
        "FROM messages g JOIN mailings m ON m.id = g.mailing_id LEFT JOIN clients c ON c.id = g.client_id",
        prefetch=10_000,
    ):
        message_id, mailing_id, client_id, phone, timezone = row
        mine = attempts.get(message_id, ())
        state = mine[-1].state if mine else MessageState.WAITING
        marked = state in OPEN_STATES and (message_id, len(mine) + 1) in sending
        messages[message_id] = Message(
            mailing_id,
            client_id,
            phone,
            windows.zone(timezone, default_zone) if phone is not None else None,
            status_of(state, mailings[mailing_id].status, sending=marked),
            mine,
        )
    return messages


# ---- what is broken --------------------------------------------------------------------------------------------------


class Rule(StrEnum):
    """What may be broken, the most serious first."""

    LOST = "lost"
    DOUBLED = "doubled"
    STRAY = "stray"
    TEXT = "wrong text"
    UNTIMELY = "early, late or outside hours"
    STOPPED = "after pause or cancel"
    RATE = "rate"
    IN_DOUBT = "in doubt"
    OWN_ENTRIES = "books"
    OWNERS = "dead owners"
    API = "api"


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken rule; ``ids`` are the first few of the ``count`` things that ``detail`` names."""

    rule: Rule
    detail: str
    count: int
    ids: tuple[int, ...] = ()

    def __str__(self) -> str:
        ids = f": {', '.join(map(str, self.ids))}{' …' if self.count > len(self.ids) else ''}" if self.ids else ""
        return f"{self.rule}: {self.count} × {self.detail}{ids}"


class Requests(NamedTuple):
    """The gateway's ledger by message id."""

    made: Counter[int | None]
    accepted: Counter[int | None]


def check(facts: Facts) -> list[Breach]:
    """Everything that is broken, the most serious first; nothing is what there should be."""
    requests = Requests(
        Counter(entry.id for entry in facts.entries),
        Counter(entry.id for entry in facts.entries if entry.accepted),
    )
    found = [breach for rule in RULES for breach in rule(facts, requests)]
    order = list(Rule)
    return sorted(found, key=lambda breach: (order.index(breach.rule), -breach.count))


class Summary(NamedTuple):
    """The numbers of a run; ``in_doubt`` are attempts, each of them one possible copy."""

    messages: int
    sent: int
    lost: int
    doubled: int
    in_doubt: int


def summary(facts: Facts, breaches: Iterable[Breach]) -> Summary:
    """What the runner prints of a run, and of what `check` said of it."""
    by_rule: Counter[Rule] = Counter()
    for breach in breaches:
        by_rule[breach.rule] += breach.count
    return Summary(
        messages=len(facts.messages),
        sent=sum(message.status in SENT for message in facts.messages.values()),
        lost=by_rule[Rule.LOST],
        doubled=by_rule[Rule.DOUBLED],
        in_doubt=sum(_doubts(message) for message in facts.messages.values()),
    )


def _breach(rule: Rule, detail: str, ids: Iterable[int]) -> list[Breach]:
    """Nothing without ids."""
    listed = sorted(set(ids))
    return [Breach(rule, detail, len(listed), tuple(listed[:SHOWN]))] if listed else []


def _doubts(message: Message) -> int:
    return sum(attempt.outcome in IN_DOUBT for attempt in message.attempts)


def _sent_again(message: Message) -> int:
    """How often an operator had it sent again."""
    return sum(a.outcome is Outcome.RESOLVED and a.state is MessageState.DOUBTFUL for a in message.attempts)


# ---- lost, doubled, stray


def _unfinished(facts: Facts, _: Requests) -> list[Breach]:
    """Every message has a final status, and none is final only because its mailing was closed too early."""
    open_, too_early = [], []
    for message_id, message in facts.messages.items():
        if message.status in NOT_FINAL:
            open_.append(message_id)
        elif not _rightly_over(message, facts.mailings[message.mailing_id]):
            too_early.append(message_id)
    return [
        *_breach(Rule.LOST, "messages without a final status", open_),
        *_breach(Rule.LOST, "messages left over by a mailing that finished before its end", too_early),
    ]


def _rightly_over(message: Message, mailing: Mailing) -> bool:
    last = message.attempts[-1] if message.attempts else None
    if last is not None and (last.state not in OPEN_STATES or last.reason == Reason.LATE):
        return True  # a late row may open a message again whose mailing is over
    if mailing.status is MailingStatus.CANCELLED:
        return True
    return mailing.over_at is not None and mailing.over_at >= mailing.ends_at - ENDED


def _sent_without_trace(facts: Facts, requests: Requests) -> list[Breach]:
    """What counts as sent the gateway has accepted, unless an operator said so."""
    missing = [
        message_id
        for message_id, message in facts.messages.items()
        if not requests.accepted[message_id] and _claims_acceptance(message)
    ]
    return _breach(Rule.LOST, "sent messages that the gateway never accepted", missing)


def _claims_acceptance(message: Message) -> bool:
    outcomes = {attempt.outcome for attempt in message.attempts}
    return Outcome.ACCEPTED in outcomes or (message.status in SENT and Outcome.RESOLVED not in outcomes)


def _accepted_not_sent(facts: Facts, requests: Requests) -> list[Breach]:
    """What the gateway accepted counts as sent, or an attempt in doubt explains why not, or a row that was refused."""
    unexplained = [
        message_id
        for message_id in requests.accepted
        if message_id is not None
        and (message := facts.messages.get(message_id)) is not None
        and message.status not in SENT
        and not _doubts(message)
        and not any(attempt.reason == Reason.UNRECORDABLE for attempt in message.attempts)
    ]
    return _breach(Rule.LOST, "accepted messages that do not count as sent", unexplained)


def _audience(facts: Facts, _: Requests) -> list[Breach]:
    """Every mailing has as many messages as it says, all of its audience is chosen, and they go to whom they should."""
    rows = Counter(message.mailing_id for message in facts.messages.values())
    kept = {mailing_id: mailing for mailing_id, mailing in facts.mailings.items() if not mailing.deleted}
    unequal = [mailing_id for mailing_id, mailing in kept.items() if mailing.audience != rows[mailing_id]]
    unplanned = [mailing_id for mailing_id, m in kept.items() if m.status is MailingStatus.RUNNING and not m.planned]
    reached: dict[int, set[int]] = {mailing_id: set() for mailing_id in facts.run.audiences}
    for message in facts.messages.values():
        if message.mailing_id in reached:
            reached[message.mailing_id].add(message.client_id)
    breaches = [
        *_breach(Rule.LOST, "mailings with another number of messages than their audience", unequal),
        *_breach(Rule.LOST, "running mailings whose audience is not complete", unplanned),
    ]
    for mailing_id, expected in facts.run.audiences.items():
        if mailing_id not in facts.mailings or not facts.mailings[mailing_id].deleted:
            wanted = set(expected)
            without = wanted - reached[mailing_id]
            beyond = reached[mailing_id] - wanted
            breaches += _breach(Rule.LOST, f"clients without the message of mailing {mailing_id}", without)
            breaches += _breach(Rule.STRAY, f"clients who are not of mailing {mailing_id}'s audience", beyond)
    return breaches


def _copies(facts: Facts, requests: Requests) -> list[Breach]:
    """Accepted once, and once more for each attempt in doubt, three times at most; no request without a row.

    Whenever an operator has a message sent again, that is one time more.
    """
    again = Counter(facts.run.again)
    accepted, unbooked = [], []
    for message_id, made in requests.made.items():
        if message_id is None:
            continue
        message = facts.messages.get(message_id)
        allowed = min(COPIES, 1 + _doubts(message)) + _sent_again(message) if message else COPIES + again[message_id]
        if requests.accepted[message_id] > allowed:
            accepted.append(message_id)
        if message and made > sum(attempt.outcome in REQUESTS for attempt in message.attempts):
            unbooked.append(message_id)
    return [
        *_breach(Rule.DOUBLED, "messages accepted more often than attempts in doubt explain", accepted),
        *_breach(Rule.DOUBLED, "messages asked for more often than the books say", unbooked),
    ]


def _one_each(facts: Facts, _: Requests) -> list[Breach]:
    """One id per phone and mailing, and one message per client and mailing."""
    by_phone: dict[int, dict[int, int]] = defaultdict(dict)
    doubled = set()
    for entry in facts.entries:
        message = facts.messages.get(entry.id) if entry.id is not None else None
        if message is not None and entry.id is not None and entry.phone is not None:
            first = by_phone[message.mailing_id].setdefault(entry.phone, entry.id)
            if first != entry.id:
                doubled |= {first, entry.id}
    by_client: dict[int, dict[int, int]] = defaultdict(dict)
    for message_id, message in facts.messages.items():
        first = by_client[message.mailing_id].setdefault(message.client_id, message_id)
        if first != message_id:
            doubled |= {first, message_id}
    return _breach(Rule.DOUBLED, "messages that share their mailing and their recipient with another", doubled)


def _stray(facts: Facts, _: Requests) -> list[Breach]:
    """Every request is that of a message, to its client's phone."""
    forgiven = set(facts.run.purged)
    forgiven.update(text for m in facts.mailings.values() if m.deleted for _, text in m.texts)
    nobodys, wrong, unreadable = [], [], 0
    for entry in facts.entries:
        if entry.id is None:
            unreadable += 1
        elif (message := facts.messages.get(entry.id)) is None:
            if entry.text not in forgiven:
                nobodys.append(entry.id)
        elif entry.phone != message.phone and not _may_have_had(message, entry.phone):
            wrong.append(entry.id)
    breaches = [
        *_breach(Rule.STRAY, "requests for ids that are no message", nobodys),
        *_breach(Rule.STRAY, "messages sent to another phone than their client's", wrong),
    ]
    if unreadable:
        breaches.append(Breach(Rule.STRAY, "requests without a readable id", unreadable))
    return breaches


def _may_have_had(message: Message, phone: int | None) -> bool:
    """Whether the client had that phone when it was asked for; a client who is gone leaves no phone to compare."""
    return phone is None or message.phone is None or any(attempt.phone == phone for attempt in message.attempts)


# ---- text and time


class Span(NamedTuple):
    """What a mailing allowed while some version of it was in force, both ends included."""

    first: datetime
    last: datetime
    window: Window | None
    since: datetime
    until: datetime
    text: str

    def allows(self, zone: ZoneInfo | None, earliest: datetime, latest: datetime) -> bool:
        """Whether a request may have started somewhere from ``earliest`` to ``latest``, which are closer than a window.

        Without a zone the local hours are not known any more.
        """
        low, high = max(earliest, self.first), min(latest, self.last)
        if low > high:
            return False
        if self.window is None or zone is None:
            return True
        return windows.is_open(high, self.window, zone) or windows.is_open(low, self.window, zone)


def _spans(facts: Facts) -> dict[int, list[Span]]:
    """By mailing, what its versions allowed; one is in force until the next is answered, and a second more."""
    skew = timedelta(seconds=facts.run.skew)
    spans: dict[int, list[Span]] = {}
    for mailing_id, mailing in facts.mailings.items():
        versions = facts.run.versions.get(mailing_id) or [
            Version(created_at, created_at, mailing.starts_at, mailing.ends_at, mailing.window, text)
            for created_at, text in mailing.texts
        ]
        spans[mailing_id] = []
        for position, version in enumerate(versions):
            since = version.asked - skew if position else NEVER
            replaced = (later.answered for later in versions[position + 1 :] if later.answered is not None)
            until = next((at + TAKES_EFFECT + skew for at in replaced), EVER)
            spans[mailing_id].append(
                Span(
                    first=max(since, version.starts_at),
                    last=min(until, version.ends_at - timedelta.resolution),
                    window=version.window,
                    since=since,
                    until=until,
                    text=version.text,
                )
            )
    return spans


def _when(facts: Facts, entry: Entry) -> tuple[datetime, datetime]:
    """Between which moments of the database's clock a request in the gateway's ledger was started."""
    skew = timedelta(seconds=facts.run.skew)
    return entry.at - timedelta(seconds=facts.run.transit) - skew, entry.at + skew


def _untimely(facts: Facts, _: Requests) -> list[Breach]:
    """Requests start from the start on, before the end and within local hours: by the books and by the gateway."""
    spans = _spans(facts)
    booked, arrived = [], []
    for message_id, message in facts.messages.items():
        for attempt in message.attempts:
            at = attempt.started_at
            if attempt.outcome in STARTED and not any(
                span.allows(message.zone, at, at) for span in spans[message.mailing_id]
            ):
                booked.append(message_id)
    for entry in facts.entries:
        known = facts.messages.get(entry.id) if entry.id is not None else None
        if known is not None and entry.id is not None:
            earliest, latest = _when(facts, entry)
            if not any(span.allows(known.zone, earliest, latest) for span in spans[known.mailing_id]):
                arrived.append(entry.id)
    return [
        *_breach(Rule.UNTIMELY, "messages started when they should not be, by the books", booked),
        *_breach(Rule.UNTIMELY, "messages that reached the gateway when they should not", arrived),
    ]


def _texts(facts: Facts, _: Requests) -> list[Breach]:
    """The gateway was asked to send a text in force, and the one that the books name."""
    spans = _spans(facts)
    foreign, misbooked = [], []
    for entry in facts.entries:
        message = facts.messages.get(entry.id) if entry.id is not None else None
        if message is None or entry.id is None:
            continue
        mine = spans[message.mailing_id]
        if len(mine) > 1 or entry.text != mine[0].text:
            earliest, latest = _when(facts, entry)
            if not any(s.text == entry.text and s.since <= latest and s.until >= earliest for s in mine):
                foreign.append(entry.id)
        texts = facts.mailings[message.mailing_id].texts
        booked = [a.text_version for a in message.attempts if a.outcome in REQUESTS]
        # Whoever was interrupted left no note of it.
        if booked and None not in booked and entry.text not in {texts[v - 1][1] for v in booked if v is not None}:
            misbooked.append(entry.id)
    return [
        *_breach(Rule.TEXT, "messages with a text that was not in force", foreign),
        *_breach(Rule.TEXT, "messages with another text than the books name", misbooked),
    ]


def _stopped(facts: Facts, _: Requests) -> list[Breach]:
    """Nothing starts later than a second after the answer of pause or cancel, until the resume."""
    skew = timedelta(seconds=facts.run.skew)
    stops: dict[int, list[tuple[datetime, datetime]]] = defaultdict(list)
    for stop in facts.run.stops:
        stops[stop.mailing_id].append((stop.answered + TAKES_EFFECT + skew, (stop.until or EVER) - skew))
    booked, arrived = [], []
    for message_id, message in facts.messages.items():
        mine = stops.get(message.mailing_id, ())
        for attempt in message.attempts if mine else ():
            at = attempt.started_at
            if attempt.outcome in STARTED and any(after < at < until for after, until in mine):
                booked.append(message_id)
    for entry in facts.entries if stops else ():
        known = facts.messages.get(entry.id) if entry.id is not None else None
        if known is not None and entry.id is not None and known.mailing_id in stops:
            earliest, latest = _when(facts, entry)
            if any(after < earliest and latest < until for after, until in stops[known.mailing_id]):
                arrived.append(entry.id)
    return [
        *_breach(Rule.STOPPED, "messages started while their mailing was paused or cancelled, by the books", booked),
        *_breach(Rule.STOPPED, "messages that reached the gateway then", arrived),
    ]


# ---- rate, books and the rest


def _rate(facts: Facts, _: Requests) -> list[Breach]:
    """In any t seconds at most rate × (t + slack) + max(1, rate × 0.2) requests arrive."""
    breaches: list[Breach] = []
    arrivals = sorted(entry.at for entry in facts.entries)
    for position, (since, rate) in enumerate(facts.run.rates):
        begin = since + TAKES_EFFECT if position else NEVER
        end = facts.run.rates[position + 1][0] if position + 1 < len(facts.run.rates) else EVER
        span = arrivals[bisect_left(arrivals, begin) : bisect_left(arrivals, end)]
        burst = rate * facts.run.rate_slack + max(1.0, rate * 0.2)
        first, last, beyond = _worst_window(span, rate) if rate and span else (0, 0, 0.0)
        if beyond > burst + 1e-6:
            seconds = (span[last] - span[first]).total_seconds()
            detail = (
                f"requests too many: {last - first + 1} within {seconds:.3f} s from {span[first].isoformat()} "
                f"at a rate of {rate:g}"
            )
            breaches.append(Breach(Rule.RATE, detail, math.ceil(beyond - burst - 1e-6)))
    return breaches


def _worst_window(arrivals: Sequence[datetime], rate: float) -> tuple[int, int, float]:
    """First and last position of the window with the most arrivals beyond rate × its length, and how many.

    One pass: the level of a bucket that leaks at the rate is the largest such number of all windows that end here, and
    the window begins where the bucket was empty last.
    """
    first, level, before = 0, 0.0, arrivals[0]
    worst = (0, 0, 0.0)
    for position, at in enumerate(arrivals):
        level -= rate * (at - before).total_seconds()
        if level <= 0:
            first, level = position, 0.0
        level, before = level + 1, at
        if level > worst[2]:
            worst = (first, position, level)
    return worst


def _kills(facts: Facts, _: Requests) -> list[Breach]:
    """A kill -9 leaves at most concurrency + 400 in doubt."""
    bound = facts.run.concurrency + AHEAD
    worst = max(facts.run.kills, default=0)
    if worst <= bound:
        return []
    return [
        Breach(
            Rule.IN_DOUBT,
            f"kills that left more than {bound} in doubt, {worst} at worst",
            sum(left > bound for left in facts.run.kills),
        )
    ]


def _books(facts: Facts, _: Requests) -> list[Breach]:
    """The audit found nothing, the numbers shown equal the rows, and a purge leaves nothing behind."""
    counted: dict[int, Counter[Status]] = defaultdict(Counter)
    for message in facts.messages.values():
        counted[message.mailing_id][message.status] += 1
    unequal = [
        mailing_id
        for mailing_id, mailing in facts.mailings.items()
        if not mailing.deleted and dict(mailing.shown) != dict(counted[mailing_id])
    ]
    return [
        *(Breach(Rule.OWN_ENTRIES, name, 1) for name in facts.run.audit),
        *_breach(Rule.OWN_ENTRIES, "mailings whose statistics are not the rows counted", unequal),
        *_breach(Rule.OWN_ENTRIES, "messages whose mailing is gone", facts.orphans),
    ]


def _owners(facts: Facts, _: Requests) -> list[Breach]:
    """No batch is owned by a replica that does not run any more."""
    dead = [replica for replica, batches in facts.owned.items() if batches and replica not in facts.run.alive]
    return _breach(Rule.OWNERS, "replicas that own batches and do not run", dead)


def _api(facts: Facts, _: Requests) -> list[Breach]:
    """99 of 100 answers of the API came in time; of fewer than a hundred the 99th is only the slowest."""
    latencies = sorted(facts.run.latencies)
    if len(latencies) < 100 or (p99 := latencies[math.ceil(len(latencies) * 0.99) - 1]) < P99:
        return []
    slow = len(latencies) - bisect_left(latencies, P99)
    return [Breach(Rule.API, f"answers of {len(latencies)} that took {P99} s or more; p99 is {p99:.3f} s", slow)]


RULES: tuple[Callable[[Facts, Requests], list[Breach]], ...] = (
    _unfinished,
    _sent_without_trace,
    _accepted_not_sent,
    _audience,
    _copies,
    _one_each,
    _stray,
    _texts,
    _untimely,
    _stopped,
    _rate,
    _kills,
    _books,
    _owners,
    _api,
)
