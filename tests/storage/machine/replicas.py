"""Verbs of the replicas: they claim, load, record, send, come late, take over and die."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from hypothesis import strategies as st

from notifier import policy
from notifier.delivery.reclaim import settle
from notifier.delivery.recorder import OWN_ENTRIES, store
from notifier.models import MailingStatus, MessageState, Outcome, Reason
from notifier.storage import ledger, queue
from notifier.storage.database import Db
from notifier.storage.queue import Claimed, Loaded
from notifier.storage.recording import Result
from tests.storage.machine.knowledge import ANSWERS, HEIR, MAYBE_SENT, REPLICAS, WAIT, Hand, Request
from tests.storage.machine.verbs import ANSWER, BOOL, PICK, SELDOM, WHO, Effect, verb
from tests.storage.machine.world import World


class Replicas(World):
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
