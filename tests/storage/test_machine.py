"""A state machine over the verbs of storage: whatever is done in whatever order, the books balance after every step.

Hypothesis draws the steps, against a real PostgreSQL. Three replicas work as the delivery engine does, but each step
of theirs is one verb, so that any other may come in between: they claim, load, ask for watermarks, start requests,
record, lose the answer to a record, are taken over, come late, and are killed. Meanwhile people create, edit, pause,
cancel, resolve and delete, and time passes by moving the times in the tables. What was put on the wire is kept here,
and is compared with the ledger.

`make test` runs a fixed set of examples. ``NOTIFIER_TEST_EXAMPLES=2000`` runs so many longer ones, other ones each
time; a failure is printed as the steps that lead to it, and is tried first with the next run.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from tornado.ioloop import IOLoop

from notifier import policy, windows
from notifier.delivery.reclaim import settle
from notifier.delivery.recorder import OWN_ENTRIES, store
from notifier.errors import Conflict, NotFound, Stale
from notifier.models import (
    IN_DOUBT,
    MAILING_TRANSITIONS,
    MAX_IN_DOUBT,
    OPEN_STATES,
    OVER,
    Filter,
    MailingStatus,
    MessageState,
    OnUnknown,
    Outcome,
    Reason,
    Status,
    Window,
)
from notifier.storage import audience, clients, ledger, mailings, queue, statistics
from notifier.storage.database import Db, Pool, transaction
from notifier.storage.queue import BatchReport, Claimed, Loaded, Result
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import waiting_for_a_lock
from tests.storage.scenes import AT, insert_clients, let_a_month_pass, plan_slice

EXAMPLES = int(os.environ.get("NOTIFIER_TEST_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 40,
    stateful_step_count=80 if EXAMPLES else 50,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
# A failure is made small before it is shown: up to five minutes of hypothesis's own. A pass takes some 20 s.
TIMEOUT = 600 + 5 * EXAMPLES

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

T = TypeVar("T")
ONE_AFTER_THE_OTHER = {"record", "append_late"}
"""What a replica never does at once."""
Effect = Callable[[], None]
"""What a replica learns from a verb once it is committed."""


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


TABLES = "clients, mailings, mailing_texts, messages, slices, batches, attempts, counters, failures, series, erasures"

PICK = st.integers(0, 63)
WHO = st.sampled_from(REPLICAS)
BOOL = st.booleans()
SELDOM = st.integers(0, 3).map(lambda n: n == 3)
WINDOW = st.sampled_from([None, None, "open", "closed"])
ANSWER = st.sampled_from(sorted(ANSWERS))

Do = TypeVar("Do", bound=Callable[..., Coroutine[Any, Any, Effect | None]])


class Verb(NamedTuple):
    """A coroutine (machine, db, **arguments) → its effect; drawn with this weight, so many times, when it can be."""

    do: Callable[..., Coroutine[Any, Any, Effect | None]]
    when: Callable[[Machine], bool]
    most: int
    weight: int
    beside: bool
    arguments: st.SearchStrategy[dict[str, Any]]


VERBS: dict[str, Verb] = {}


def verb(
    *,
    when: Callable[[Machine], bool] = lambda _: True,
    most: int = 99,
    weight: int = 1,
    beside: bool = False,
    **arguments: Any,
) -> Callable[[Do], Do]:
    """Enter a method into the table; ``beside``: also while another is not committed yet."""

    def enter(do: Do) -> Do:
        VERBS[do.__name__] = Verb(do, when, most, weight, beside, st.fixed_dictionaries(arguments))
        return do

    return enter


Call = tuple[str, dict[str, Any]]


@st.composite
def calls(draw: st.DrawFn) -> list[Call]:
    """A few verbs with their arguments, of which the first is done that can be."""
    weighted = st.sampled_from([name for name, verb in VERBS.items() for _ in range(verb.weight)])
    names = draw(st.lists(weighted, min_size=6, max_size=6))
    return [(name, draw(VERBS[name].arguments)) for name in names]


class Machine(RuleBasedStateMachine):
    db: Pool
    loop: IOLoop

    def __init__(self) -> None:
        super().__init__()
        self.hands: list[Hand] = []
        self.late: dict[int, list[tuple[int, Result]]] = {who: [] for who in (*REPLICAS, HEIR)}  # their batch was lost
        self.gone: list[tuple[Hand, Request]] = []  # under way, their batch is lost or finished
        self.requests: list[Request] = []
        self.granted: list[tuple[Hand, Loaded]] = []  # by the present step
        self.asked_again: Counter[int] = Counter()
        self.ticks = 0
        self.used: Counter[str] = Counter()
        self.sound = False
        self.steps = 1
        self.seen = Seen({}, {}, set(), set())

    def run(self, work: Awaitable[T]) -> T:
        found: T = self.loop.run_sync(lambda: work)
        return found

    async def alone(self, doing: Awaitable[Effect | None]) -> None:
        """One verb with nothing beside it; then a watermark is granted only to what nobody wrote a row for."""
        self.sound, self.steps = False, 1
        self.take(await doing)
        if self.granted:
            for hand, _ in self.granted:
                mailing = self.seen.mailings[hand.batch.mailing_id]
                assert mailing["status"] == "running", f"a watermark while the mailing is {mailing['status']}"
                assert not mailing["ended"], "a watermark after the end"
            ids = [message.id for _, message in self.granted]
            for message in await queue.load(self.db, ids, [hand.batch.seq for hand, _ in self.granted]):
                assert not message.recorded, f"a watermark over {message.id}, whose row is there already"
            self.granted = []

    def take(self, effect: Effect | None) -> None:
        if effect is not None:
            effect()

    # ---- a new world -------------------------------------------------------------------------------------------------

    @initialize(policy=st.sampled_from(OnUnknown), count=st.integers(1, 6), window=WINDOW, started=st.integers(0, 4))
    def begin_with_a_mailing(self, policy: OnUnknown, count: int, window: str | None, started: int) -> None:
        """Planned, and so many of its messages on the wire."""
        self.policy = policy
        self.run(self.reset(count, window, started))

    async def reset(self, count: int, window: str | None, started: int) -> None:
        # measured: 2 ms; TRUNCATE … RESTART IDENTITY takes 180 of that many tables and indexes
        await self.db.execute(";".join(f"DELETE FROM {table}" for table in TABLES.split(", ")))
        self.now: datetime = await mailings.clock(self.db)
        await insert_clients(self.db, count, tags=["a"], timezone=ZONES[0])
        await self.store_mailing(window=window)
        await audience.begin_due(self.db)
        while await audience.unplanned(self.db):
            await self.plan(self.db, 0, 3)
        self.seen = await look(self.db)
        if started:
            self.take(await self.claim(self.db, 1, retries=False, limit=1, loaded=4, lost=False))
            await self.alone(self.record(self.db, 0, lost=False, started=started))

    async def store_mailing(
        self, *, window: str | None = None, draft: bool = False, tagged: bool = False, later: bool = False, **given: Any
    ) -> None:
        values: dict[str, Any] = {"name": None, "text": "Hi", "priority": 0, "ends_at": self.now + timedelta(hours=48)}
        await mailings.create(
            self.db,
            filter=Filter(tags=["a"]) if tagged else Filter(),
            starts_at=self.now + timedelta(hours=1) if later else None,
            window=self.window(window),
            draft=draft,
            **values | given,
        )

    def window(self, name: str | None) -> Window | None:
        """Hours that are open or closed now, in the first zone."""
        if name is None:
            return None
        start, end = (-6, 6) if name == "open" else (6, 9)
        return Window(*((self.now + timedelta(hours=hours)).time() for hours in (start, end)))

    def some(self, **values: Any) -> bool:
        """Whether there is a mailing like that."""
        return any(all(m[key] == value for key, value in values.items()) for m in self.seen.mailings.values())

    def pick(self, items: list[T], number: int) -> T:
        return items[number % len(items)]

    def tick(self) -> datetime:
        """When a request is started: never the same twice."""
        self.ticks += 1
        return AT + timedelta(microseconds=self.ticks)

    # ---- people ------------------------------------------------------------------------------------------------------

    @verb(most=1, pick=PICK)
    async def delete_client(self, db: Db, pick: int) -> None:
        ids = [row["id"] for row in await db.fetch("SELECT id FROM clients ORDER BY id")]
        if ids:
            await clients.delete(db, self.pick(ids, pick))

    @verb(
        when=lambda self: sum(self.seen.status(id_) not in OVER for id_ in self.seen.mailings) < 3,
        weight=3,
        count=st.integers(0, 4),
        zone=st.sampled_from(ZONES),
        window=WINDOW,
        draft=SELDOM,
        tagged=BOOL,
        later=SELDOM,
        priority=st.sampled_from([0, 5]),
    )
    async def create(self, db: Db, count: int, zone: str, **given: Any) -> None:
        await insert_clients(db, count, timezone=zone)
        await self.store_mailing(**given)
        await audience.begin_due(db)

    @verb(
        most=8, beside=True, pick=PICK, name=st.sampled_from(["pause", "resume", "resume", "resume", "start", "cancel"])
    )
    async def act(self, db: Db, pick: int, name: str) -> None:
        if not (shown := self.seen.shown()):
            return
        mailing_id = self.pick(shown, pick)
        mailing, status = self.seen.mailings[mailing_id], self.seen.status(mailing_id)
        legal = status in MAILING_TRANSITIONS[name][0] and not (name in ("start", "resume") and mailing["ended"])

        async def counted() -> int:
            async with transaction(db) as conn:
                before = await rows_written(conn)
                await mailings.act(conn, mailing_id, name)
                return await rows_written(conn) - before

        wrote = await self.allowed(counted(), legal)
        assert wrote in (None, 1), f"{name} wrote {wrote} rows"

    async def allowed(self, doing: Awaitable[T], legal: bool) -> T | None:
        """What it returns, None when it is refused; which of the two is known unless something is done beside it."""
        try:
            found = await doing
        except (Conflict, NotFound):
            assert self.steps > 1 or not legal, "refused against the rules"
            return None
        assert self.steps > 1 or legal, "allowed against the rules"
        return found

    @verb(
        most=5,
        beside=True,
        pick=PICK,
        changes=st.sampled_from(["text", "open", "closed", "no window", "priority", "filter", "later", "end", "over"]),
    )
    async def edit(self, db: Db, pick: int, changes: str) -> None:
        if not (shown := self.seen.shown()):
            return
        mailing_id = self.pick(shown, pick)
        mailing = self.seen.mailings[mailing_id]
        if changes == "over":  # no editor may say so
            await db.execute(
                """
                UPDATE mailings SET starts_at = least(starts_at, now() - interval '1 hour'), ends_at = now()
                WHERE id = $1 AND ends_at > now()
                """,
                mailing_id,
            )
            return
        values: dict[str, Any] = {
            "text": {"text": f"Hi {pick}"},
            "open": {"window": self.window("open")},
            "closed": {"window": self.window("closed")},
            "no window": {"window": None},
            "priority": {"priority": pick % 3},
            "filter": {"filter": Filter(tags=["a"])},
            "later": {"starts_at": self.now + timedelta(hours=1), "ends_at": self.now + timedelta(days=1)},
            "end": {"ends_at": self.now + timedelta(days=3)},
        }
        fixed = mailing["begun"] and changes in ("filter", "later")
        legal = self.seen.status(mailing_id) not in OVER and not fixed
        await self.allowed(mailings.edit(db, mailing_id, values[changes]), legal)

    @verb(
        weight=6,
        when=lambda self: any(self.seen.state(id_) is MessageState.UNKNOWN for id_ in self.seen.messages),
        beside=True,
        pick=PICK,
        decision=st.sampled_from(["sent", "failed", "again", "again"]),
    )
    async def resolve(self, db: Db, pick: int, decision: ledger.Decision) -> Effect | None:
        shown = set(self.seen.shown())
        ids = [id_ for id_, (mailing_id, _) in self.seen.messages.items() if mailing_id in shown]
        unknown = [id_ for id_ in ids if self.seen.state(id_) is MessageState.UNKNOWN]
        if not ids:
            return None
        message_id = self.pick(unknown if unknown and pick % 4 else ids, pick)
        mailing_id, rows = self.seen.messages[message_id]
        mailing, status = self.seen.mailings[mailing_id], self.seen.status(mailing_id)
        legal = self.seen.state(message_id) is MessageState.UNKNOWN or (
            self.seen.state(message_id) is MessageState.DOUBTFUL
            and status in OVER
            and (message_id, len(rows) + 1) not in self.seen.marked
        )
        if decision == "again" and (status is MailingStatus.CANCELLED or mailing["ended"]):
            legal = False

        async def resolved() -> list[int]:
            await ledger.resolve(db, message_id, decision)
            return [message_id] if decision == "again" else []

        again = await self.allowed(resolved(), legal) or []
        return lambda: self.asked_again.update(again)

    @verb(most=3, beside=True, pick=PICK, archived=BOOL)
    async def archive(self, db: Db, pick: int, archived: bool) -> None:
        if shown := self.seen.shown():
            mailing_id = self.pick(shown, pick)
            legal = self.seen.status(mailing_id) in OVER
            await self.allowed(mailings.archive(db, mailing_id, archived), legal)

    @verb(when=lambda self: self.some(deleted=True), most=2, beside=True, pick=PICK)
    async def restore(self, db: Db, pick: int) -> None:
        deleted = [id_ for id_, mailing in self.seen.mailings.items() if mailing["deleted"]]
        if deleted:
            mailing_id = self.pick(deleted, pick)
            await self.allowed(mailings.restore(db, mailing_id), not self.seen.mailings[mailing_id]["expired"])

    @verb(when=lambda self: self.some(deleted=True), most=2)
    async def a_month_passes(self, db: Db) -> None:
        await let_a_month_pass(db)

    @verb(when=lambda self: len(self.seen.shown()) > 1, most=1, beside=True, pick=PICK)
    async def delete(self, db: Db, pick: int) -> None:
        if shown := self.seen.shown():
            await self.allowed(mailings.delete(db, self.pick(shown, pick)), legal=True)

    # ---- the scheduler -----------------------------------------------------------------------------------------------

    @verb(when=lambda self: self.some(status="scheduled", started=True), beside=True)
    async def begin(self, db: Db) -> None:
        await audience.begin_due(db)

    @verb(
        weight=6,
        when=lambda self: self.some(status="running", planned=False),
        beside=True,
        pick=PICK,
        size=st.integers(1, 3),
    )
    async def plan(self, db: Db, pick: int, size: int) -> None:
        if waiting := await audience.unplanned(db):
            first_id = await audience.take_ids(self.db, size)
            with suppress(*() if db is self.db else (Stale,)):  # what stands beside it may change the mailing
                await plan_slice(db, self.pick(waiting, pick), size, first_id, self.opens)

    @staticmethod
    def opens(now: datetime, window: Window, timezone: str | None) -> datetime:
        return windows.opens_at(now, window, windows.zone(timezone, ZoneInfo("Etc/UTC")))

    @verb(when=lambda self: any(self.some(status=status, ended=True) for status in ("running", "paused")), beside=True)
    async def finish_ended(self, db: Db) -> None:
        await mailings.finish_ended(db)

    @verb(weight=4, when=lambda self: self.some(status="running", batches=0, planned=True), beside=True)
    async def close(self, db: Db) -> None:
        for mailing_id in await mailings.worked_off(db):
            await mailings.close(db, mailing_id)

    @verb(when=lambda self: bool(self.seen.mailings), most=2, pick=PICK)
    async def close_any(self, db: Db, pick: int) -> None:
        mailing_id = self.pick(list(self.seen.mailings), pick)
        mailing = self.seen.mailings[mailing_id]
        done = mailing["status"] in ("running", "paused") and mailing["planned"] and not mailing["batches"]
        assert await mailings.close(db, mailing_id) == done

    @verb(when=lambda self: self.some(expired=True), beside=True)
    async def purge(self, db: Db) -> None:
        await mailings.purge(db)

    @verb(weight=3, hours=st.sampled_from([0.4, 0.4, 0.4, 7]))
    async def time_passes(self, db: Db, hours: float) -> None:
        passed = timedelta(hours=hours)
        await db.execute("UPDATE batches SET due_at = due_at - $1::interval", passed)
        await db.execute(
            "UPDATE mailings SET starts_at = starts_at - $1::interval, ends_at = ends_at - $1::interval", passed
        )

    # ---- the replicas ------------------------------------------------------------------------------------------------

    @verb(
        weight=8,
        when=lambda self: self.some(status="running", due=True),
        beside=True,
        who=WHO,
        retries=SELDOM,
        limit=st.integers(1, 3),
        loaded=st.integers(0, 4),
        lost=SELDOM,
    )
    async def claim(self, db: Db, who: int, retries: bool, limit: int, loaded: int, lost: bool) -> Effect:
        claimed = await queue.claim(db, who, after=0, retries=retries, limit=limit)
        for batch in claimed if self.steps == 1 else []:
            mailing = self.seen.mailings[batch.mailing_id]
            assert (mailing["status"], mailing["ended"]) == ("running", False), "claimed where nothing may be sent"
            assert batch.due_at < self.now + timedelta(seconds=WAIT), "claimed before it was due"
        mine = [] if lost else self.held(who, claimed)
        for hand in mine if loaded and self.steps == 1 else []:
            await self.stage(hand, loaded)
        return lambda: self.hands.extend(mine)

    def held(self, who: int, claimed: list[Claimed]) -> list[Hand]:
        self.seen.owned.update((batch.id, batch.owner) for batch in claimed)
        return [Hand(who, batch, batch.watermark, batch.watermark, batch.foreign_rows) for batch in claimed]

    def unloaded(self) -> list[Hand]:
        return [hand for hand in self.hands if not hand.releasing and hand.loaded < len(hand.batch.ids)]

    @verb(weight=4, when=lambda self: bool(self.unloaded()), pick=PICK, count=st.integers(1, 3))
    async def load(self, db: Db, pick: int, count: int) -> None:
        await self.stage(self.pick(self.unloaded(), pick), count)

    async def stage(self, hand: Hand, count: int) -> None:
        chunk = hand.batch.ids[hand.loaded : hand.loaded + count]
        for position, message in enumerate(
            await queue.load(self.db, chunk, [hand.batch.seq] * len(chunk)), hand.loaded
        ):
            if message.recorded:
                hand.skipped.append(position)
            else:
                hand.staged.append((position, message))
        hand.loaded += len(chunk)

    @verb(when=lambda self: bool(self.unloaded()), pick=PICK, which=PICK, lost=SELDOM)
    async def reschedule(self, db: Db, pick: int, which: int, lost: bool) -> None:
        """Some of what is not loaded yet goes back: its window is closed."""
        hand = self.pick(self.unloaded(), pick)
        ids = hand.batch.ids
        rest = await queue.load(db, ids[hand.loaded :], [hand.batch.seq] * (len(ids) - hand.loaded))
        hour = self.now + timedelta(hours=1)
        due = [hour if which % 3 else self.now, hour]
        moved = {m.id: due[n % 2] for n, m in enumerate(rest) if not m.recorded and which >> n & 1}
        if not moved:
            return
        keep = [id_ for id_ in ids if id_ not in moved]
        version = await db.fetchval("SELECT version FROM mailings WHERE id = $1", hand.batch.mailing_id)
        if not await queue.reschedule(db, hand.batch, keep, list(moved.items()), version=version):
            assert (hand.batch.id, hand.batch.owner) not in self.seen.owned, "the owner may sort again"
            self.drop(hand)
        elif lost or not keep:
            self.drop(hand)
        else:
            hand.batch = replace(hand.batch, ids=keep)

    def drop(self, hand: Hand) -> None:
        """Not its batch any more: what is known of it or will be is late."""
        self.hands.remove(hand)
        self.late[hand.replica] += [(hand.batch.seq, result) for result in hand.results]
        self.gone += [(hand, request) for request in hand.under_way]

    @verb(
        weight=10,
        when=lambda self: bool(self.hands),
        beside=True,
        pick=PICK,
        answers=st.lists(ANSWER, max_size=2),
        started=st.integers(0, 3),
        lost=SELDOM,
    )
    async def record(
        self, db: Db, pick: int, lost: bool, answers: Sequence[str] = (), started: int = 0
    ) -> Effect | None:
        """All that a replica has to say, after these ``answers``; then so many of the marked are ``started``.

        When ``lost`` it does not hear that this was committed, and says it again.
        """
        if not self.hands:
            return None
        who = self.pick(self.hands, pick).replica
        hands = [hand for hand in self.hands if hand.replica == who]
        under_way = [(hand, request) for hand in hands for request in hand.under_way]
        for (hand, request), answer in zip(under_way, answers, strict=False):
            hand.under_way.remove(request)
            hand.results.append(self.answered(hand, request, answer))
        results = [result for hand in hands for result in hand.results]
        recorded = await store(db, who, [hand.report() for hand in hands], results)
        for hand, row in zip(hands, recorded, strict=True) if self.steps == 1 else []:
            assert row.owned == ((hand.batch.id, hand.batch.owner) in self.seen.owned), "only the owner may record"

        def settle() -> None:
            for hand, row in zip(hands, recorded, strict=True):
                given, hand.results = hand.results, []
                if len(given) != (row.written or 0):
                    self.late[who] += [(hand.batch.seq, result) for result in given]
                if not row.owned or row.finished:
                    self.drop(hand)
                    continue
                if row.watermark > hand.watermark:
                    fresh = [message for position, message in hand.staged if position < row.watermark]
                    hand.staged = hand.staged[len(fresh) :]
                    hand.skipped = [position for position in hand.skipped if position >= row.watermark]
                    hand.watermark = row.watermark
                    hand.ready += fresh
                    # The others were granted by a record whose answer was lost.
                    marked = self.seen.marked
                    self.granted += [(hand, m) for m in fresh if (m.id, hand.batch.seq) not in marked]
                elif hand.loaded > hand.watermark:
                    hand.unstage()
                hand.foreign_rows = row.foreign_rows
                if row.status is not MailingStatus.RUNNING or row.now >= row.ends_at:
                    self.give_back(hand)
                for message in hand.ready[:started]:
                    self.start(hand, message, closed=False)
                hand.ready = hand.ready[started:]

        return None if lost else settle

    def give_back(self, hand: Hand) -> None:
        if hand.releasing:
            return
        hand.releasing = True
        hand.unstage()
        hand.results += [self.not_started(hand, message) for message in hand.ready]
        hand.ready = []

    def not_started(self, hand: Hand, message: Loaded, outcome: Outcome = Outcome.NOT_STARTED) -> Result:
        suppressed = outcome is Outcome.SUPPRESSED
        return Result(
            batch_id=hand.batch.id,
            message_id=message.id,
            outcome=outcome,
            state=MessageState.SUPPRESSED if suppressed else hand.batch.state,
            started_at=self.tick(),
            duration_ms=None,
            phone=None,
            text_version=None,
            status_code=None,
            reason=Reason.CLIENT_DELETED if suppressed else Reason.PAUSED,
            detail=None,
            due_at=None if suppressed else hand.batch.due_at,
        )

    @verb(when=lambda self: bool(self.hands), most=3, pick=PICK)
    async def release(self, db: Db, pick: int) -> None:
        """Told to stop; said with the next record."""
        self.give_back(self.pick(self.hands, pick))

    @verb(
        weight=4,
        when=lambda self: any(hand.ready for hand in self.hands),
        pick=PICK,
        count=st.integers(1, 3),
        closed=SELDOM,
    )
    async def send(self, db: Db, pick: int, count: int, closed: bool) -> None:
        hand = self.pick([hand for hand in self.hands if hand.ready], pick)
        for _ in range(min(count, len(hand.ready))):
            self.start(hand, hand.ready.pop(0), closed)

    def start(self, hand: Hand, message: Loaded, closed: bool) -> None:
        """The last look, then the wire."""
        if message.phone is None:
            hand.results.append(self.not_started(hand, message, Outcome.SUPPRESSED))
        elif closed:
            hand.results.append(self.not_started(hand, message))
        else:
            request = Request(message.id, hand.batch.seq, message, self.tick())
            hand.under_way.append(request)
            self.requests.append(request)

    @verb(weight=4, when=lambda self: any(hand.under_way for hand in self.hands), pick=PICK, answer=ANSWER, soon=BOOL)
    async def answer(self, db: Db, pick: int, answer: str, soon: bool) -> None:
        hand, request = self.pick([(hand, r) for hand in self.hands for r in hand.under_way], pick)
        hand.under_way.remove(request)
        hand.results.append(self.answered(hand, request, answer, soon=soon))

    @verb(weight=8, when=lambda self: bool(self.gone), pick=PICK, answer=ANSWER, soon=BOOL, told=BOOL)
    async def answer_late(self, db: Db, pick: int, answer: str, soon: bool, told: bool) -> Effect | None:
        hand, request = self.pick(self.gone, pick)
        self.gone.remove((hand, request))
        self.late[hand.replica].append((hand.batch.seq, self.answered(hand, request, answer, soon=soon)))
        return await self.append_late(db, REPLICAS.index(hand.replica), lost=False) if told else None

    def answered(self, hand: Hand, request: Request, answer: str, *, soon: bool = False) -> Result:
        """As `Sender._after` and `Sender._attempt` have it."""
        outcome, reason = ANSWERS[answer]
        request.maybe_sent = outcome in MAYBE_SENT
        wait = 0.0 if outcome in (Outcome.THROTTLED, Outcome.MISCONFIGURED) else None
        loaded = request.history
        history = policy.History(loaded.counted, loaded.declined, loaded.in_doubt)
        next_ = policy.after(outcome, reason, history, self.policy, wait=wait)
        if next_.state is MessageState.RETRYING and hand.batch.state is MessageState.DOUBTFUL:
            next_ = replace(next_, state=MessageState.DOUBTFUL)
        due_at = None
        if next_.wait is not None:
            due_at = self.now + timedelta(seconds=WAIT + next_.wait) if next_.wait and not soon else self.now
        return Result(
            batch_id=hand.batch.id,
            message_id=request.message_id,
            outcome=outcome,
            state=next_.state,
            started_at=request.started_at,
            duration_ms=12,
            phone=loaded.phone,
            text_version=1,
            status_code=200,
            reason=next_.reason,
            detail=None,
            due_at=due_at,
        )

    @verb(weight=2, most=2, who=WHO, answers=st.lists(ANSWER, min_size=1, max_size=3))
    async def work_off(self, db: Db, who: int, answers: list[str]) -> None:
        """A batch's whole way with nothing in between."""
        known = list(self.hands)
        self.take(await self.claim(db, who, retries=False, limit=1, loaded=0, lost=False))
        for hand in [hand for hand in self.hands if hand not in known]:
            await self.through(hand, answers)

    async def through(self, hand: Hand, answers: list[str]) -> None:
        await self.stage(hand, len(hand.batch.ids))
        await self.alone(self.record(self.db, self.hands.index(hand), lost=False))
        for n, message in enumerate(hand.ready):
            self.start(hand, message, closed=False)
            if hand.under_way:
                hand.results.append(self.answered(hand, hand.under_way.pop(), answers[n % len(answers)]))
        hand.ready = []
        if hand in self.hands:
            await self.alone(self.record(self.db, self.hands.index(hand), lost=False))

    @verb(weight=5, when=lambda self: any(self.late.values()), beside=True, pick=PICK, lost=SELDOM)
    async def append_late(self, db: Db, pick: int, lost: bool) -> Effect | None:
        """As `Recorder._append_late`, one at a time."""
        who = self.pick([who for who in self.late if self.late[who]] or [HEIR], pick)
        late = self.late[who]
        keys = [(result.message_id, seq, result.started_at) for seq, result in late]
        mine = await ledger.mine(db, who, keys)
        left = [
            told for told, key in zip(late, keys, strict=True) if key not in mine and told[1].outcome not in OWN_ENTRIES
        ]
        if left:
            await ledger.append_late(db, who, left[0][1])

        def heard() -> None:
            self.late[who] = left if lost else left[1:]

        return heard

    @verb(
        weight=5,
        when=lambda self: bool(self.seen.owned),
        beside=True,
        who=WHO,
        which=st.integers(0, 7),
        wait=st.sampled_from([WAIT, -1.0]),
        settled=st.sampled_from([True, True, True, False]),
    )
    async def take_over(self, db: Db, who: int, which: int, wait: float, settled: bool) -> None:
        """From whoever owns, who does not hear of it; not ``settled``: whoever took it over died in between."""
        owned = sorted(await queue.owned(db))
        chosen = [batch for n, batch in enumerate(owned) if not which >> n % 3 & 1]
        for batch in await queue.reclaim(db, who, chosen):
            if settled:
                await settle(db, who, [batch], self.policy, wait)

    @verb(when=lambda self: bool(self.hands or self.gone), most=1, who=WHO)
    async def die(self, db: Db, who: int) -> None:
        self.hands = [hand for hand in self.hands if hand.replica != who]
        self.gone = [(hand, request) for hand, request in self.gone if hand.replica != who]
        self.late[who] = []

    # ---- steps -------------------------------------------------------------------------------------------------------

    # One rule for all verbs: hypothesis leaves most rules out of each example, and these need each other. What is drawn
    # hangs on nothing that is in the database: on a slow machine the same steps may lead elsewhere, and hypothesis
    # takes a test that then draws something else for a broken one.
    @rule(data=st.data(), beside=st.integers(0, 9))
    def step(self, data: st.DataObject, beside: int) -> None:
        call = self.first_of(
            data.draw(calls()), lambda verb: self.used[verb] < VERBS[verb].most and VERBS[verb].when(self)
        )
        others = data.draw(calls()) if beside >= 8 else []
        other = None
        if call is None:
            return
        first, one = call
        self.used[first] += 1
        if others and VERBS[first].beside:
            if beside == 9 and first in ("append_late", "resolve", "plan"):
                others = [("close", {})]  # who adds a batch, and who looks whether there is none left
            other = self.first_of(others, lambda verb: VERBS[verb].beside and not {verb, first} <= ONE_AFTER_THE_OTHER)
        if other is None:
            self.run(self.alone(VERBS[first].do(self, self.db, **one)))
            return
        second, two = other
        self.run(self.beside(lambda db: VERBS[first].do(self, db, **one), lambda db: VERBS[second].do(self, db, **two)))

    @staticmethod
    def first_of(calls: Sequence[Call], fits: Callable[[str], bool]) -> Call | None:
        return next((call for call in calls if fits(call[0])), None)

    async def beside(self, first: Callable[[Db], Any], second: Callable[[Db], Any]) -> None:
        """The second begins when the first is done and not committed, and ends after that if it has to wait for it."""
        self.sound, self.steps = False, 2
        async with self.db.acquire() as one, self.db.acquire() as other:
            async with one.transaction():
                effect = await first(one)
                task = asyncio.ensure_future(second(other))
                waits = asyncio.ensure_future(waiting_for_a_lock(self.db, other))
                await asyncio.wait({task, waits}, return_when=asyncio.FIRST_COMPLETED)
                waits.cancel()
            then = await task
        self.take(effect)
        self.take(then)
        self.granted = []  # the other may have written after the watermark was granted

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_adds_up(self) -> None:
        if not self.sound:
            self.run(self.check())
            self.sound = True

    async def check(self) -> None:
        assert not await ledger_errors(self.db)
        before, self.seen = self.seen, await look(self.db)
        self.transitions_are_legal(before)
        self.completed_means_complete(before)
        self.archived_means_over()
        self.wire_agrees()

    def transitions_are_legal(self, before: Seen) -> None:
        for mailing_id in self.seen.mailings.keys() & before.mailings.keys():
            reached = {before.status(mailing_id)}
            for _ in range(self.steps):
                reached |= {target for source, target in STEPS if source in reached}
            status = self.seen.status(mailing_id)
            assert status in reached, f"mailing {mailing_id}: {before.status(mailing_id)} → {status}"
            old, new = before.mailings[mailing_id], self.seen.mailings[mailing_id]
            assert all(new[key] >= old[key] for key in ("version", "audience", "planned")), f"{old} → {new}"
        for message_id, (mailing_id, rows) in before.messages.items():
            if message_id in self.seen.messages:
                assert self.seen.messages[message_id][1][: len(rows)] == rows, f"message {message_id}'s past changed"
            else:
                assert before.mailings[mailing_id]["expired"], f"message {message_id} vanished"

    def archived_means_over(self) -> None:
        for mailing_id, mailing in self.seen.mailings.items():
            assert not mailing["archived"] or self.seen.status(mailing_id) in OVER, f"{mailing_id} goes on, archived"

    def completed_means_complete(self, before: Seen) -> None:
        """Nothing was left when it was closed, and nothing came since, but for what came after the end."""
        for mailing_id in self.seen.shown():
            mailing, old = self.seen.mailings[mailing_id], before.mailings.get(mailing_id)
            if (mailing["status"], mailing["status_reason"]) != ("finished", "completed"):
                continue
            if mailing["ended"] and (self.steps > 1 or (old is not None and old["status"] == "finished")):
                continue
            assert mailing["planned"]
            for message_id, (of, _) in self.seen.messages.items():
                state = self.seen.state(message_id)
                assert of != mailing_id or state not in OPEN_STATES, f"completed; {message_id} is {state}"

    def wire_agrees(self) -> None:
        copies = Counter(request.message_id for request in self.requests if request.maybe_sent)
        for request in self.requests:
            if (found := self.seen.messages.get(request.message_id)) is None:
                continue
            known = len(found[1]) >= request.seq or (request.message_id, request.seq) in self.seen.marked
            assert known or self.seen.mailings[found[0]]["deleted"], f"nobody knows of {request}"
        for message_id, (_, rows) in self.seen.messages.items():
            doubts = sum(outcome in IN_DOUBT for outcome, _ in rows)
            assert copies[message_id] <= 1 + doubts, f"{copies[message_id]} copies of {message_id}, {rows}"
            most = GIVES_UP[self.policy] + self.asked_again[message_id]
            assert copies[message_id] <= most, f"{copies[message_id]} copies of {message_id}, {rows}"
            if any(outcome is Outcome.ACCEPTED for outcome, _ in rows):
                assert rows[-1][1] is MessageState.SENT, f"{message_id} was accepted and is {rows[-1][1]}"

    # ---- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.sound:
            self.run(self.come_to_an_end())

    async def come_to_an_end(self) -> None:
        """When the dead are taken over and every message is answered, nothing is left."""
        self.hands = []
        for mailing_id in self.seen.shown():
            for name in ("start", "resume"):
                try:
                    await mailings.act(self.db, mailing_id, name)
                except Conflict:
                    pass
        await self.db.execute("UPDATE mailings SET starts_at = now() - interval '1 hour' WHERE ends_at > now()")
        await audience.begin_due(self.db)
        while await audience.unplanned(self.db):
            await self.plan(self.db, 0, 3)
        for batch in await queue.reclaim(self.db, HEIR, await queue.owned(self.db)):
            await settle(self.db, HEIR, [batch], self.policy, WAIT)
        await self.db.execute("UPDATE batches SET due_at = now()")
        self.steps = 9
        await self.check()
        while claimed := await queue.claim(self.db, HEIR, after=0, limit=8):
            self.hands = self.held(HEIR, claimed)
            for hand in list(self.hands):
                await self.through(hand, ["accepted"])
            assert not self.hands
        await mailings.finish_ended(self.db)
        for mailing_id in await mailings.worked_off(self.db):
            assert await mailings.close(self.db, mailing_id)
        await self.check()
        for line in await statistics.of_mailings(self.db, None, 100):
            assert line.status in OVER | {MailingStatus.DRAFT}, f"mailing {line.id} is {line.status}"
            assert not any(line.messages[status] for status in UNDER_WAY), f"mailing {line.id}: {line.messages}"
        await let_a_month_pass(self.db)
        while await mailings.purge(self.db):
            pass
        self.seen = await look(self.db)
        assert len(self.seen.shown()) == len(self.seen.mailings)
        assert all(mailing_id in self.seen.mailings for mailing_id, _ in self.seen.messages.values())


@pytest.mark.timeout(TIMEOUT)
def test_whatever_is_done_in_whatever_order_the_books_balance(db: Pool, io_loop: IOLoop) -> None:
    run_state_machine_as_test(type("Machine", (Machine,), {"db": db, "loop": io_loop}), settings=PROFILE)
