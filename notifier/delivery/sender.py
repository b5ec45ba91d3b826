"""A claimed batch → requests → results.

`feed` claims batches and loads strides of them; the recorder commits their marks (`recorder.py`); marked messages line
up and are started one after the other, each with a last look at everything that could forbid it; results go back to the
recorder. No database connection is held while a request is under way.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple
from zoneinfo import ZoneInfo

import orjson
import structlog

from notifier import telemetry, windows
from notifier.delivery import backoff
from notifier.delivery.answers import Answer, has_it_already
from notifier.delivery.clock import Clock
from notifier.delivery.gateway import Gateway
from notifier.delivery.limits import Limits
from notifier.errors import Stale
from notifier.models import MailingStatus, OnUnknown, Outcome, Reason, Standing
from notifier.storage import queue
from notifier.storage.database import Db
from notifier.storage.queue import Claimed, Loaded, Orders, Recorded, Report, Result

log = structlog.get_logger(__name__)

# Marked ids without a ledger row are at most concurrency + AHEAD: what a kill -9 can leave in doubt (promise 5).
AHEAD = 400
# Ids loaded for one mailing before the next one's turn, or more if there is room for more than that of each.
STRIDE = 100
# And not more than can be started in so many seconds, so that little waits under a mark when the gateway is slow.
HORIZON = 0.4
# What a record may take on a busy loop (seconds): so much must be ready when the next mark is asked for.
RECORD = 0.04
# So many results make a record due at once; fewer wait a moment for more (recorder.py).
FULL = 250
# A process whose last committed record is older starts nothing: it may have been stopped, and its work taken over.
FRESH = 1.0
# How late the loop may be on the average because of what waits in it: so many seconds or, if that is more, such a part
# of the time the gateway takes, up to so many seconds. With one that answers at once all that is in flight waits in
# the loop, and more of it only makes the API slow; with a slow one many are needed, and come in bursts (decision 0005).
LAGGING, LAGGING_PART, LAGGING_MOST = 0.005, 0.3, 0.030
# How much of what the loop is late for leaves, or of the room there is comes, with each look.
GAIN = 0.1
FEWEST = 8
# Every so many claims retries are asked for first, so that neither they nor first tries starve.
RETRY_TURN = 5
# Every so many starts the lowest priority has its turn: what is marked must not lie until it counts as stuck.
LOWEST_TURN = 10
# Other mailings' due batches are looked for this often (seconds), also while there is enough to do.
LOOK_AROUND = 0.1
# Seconds that a marked message may wait for its start.
LINED_UP = 10.0
# Seconds until a message is looked at again that our own error kept from starting.
AFTER_BUG = 60.0
# Batches in hand at once; each takes part in every record.
MAX_WORKS = 64
# Why a batch is given back, by the status of its mailing; of every other status the end has come.
STOPPED_BY = {MailingStatus.PAUSED: Reason.PAUSED, MailingStatus.CANCELLED: Reason.CANCELLED}


class View:
    """A mailing as the sender needs it: its text as JSON, its end, and when the local windows close."""

    def __init__(self, mailing_id: int, orders: Orders, default_zone: ZoneInfo) -> None:
        self.id = mailing_id
        self.turn = 0  # when it was loaded from last; the least recently served is next
        self._default_zone = default_zone
        self._open: dict[str | None, tuple[float, float]] = {}  # zone → a span in which the window is open
        self.set(orders)

    def set(self, orders: Orders) -> None:
        """Take over an edit."""
        self.version = orders.version
        self.priority = orders.priority
        self.window = orders.window
        self.text = orjson.dumps(orders.text)
        self.text_version = orders.text_version
        self.ends_at = orders.ends_at.timestamp()
        self._open.clear()

    def may_text(self, zone: str | None, at: float) -> bool:
        """Whether a client of that zone may be texted at ``at`` (seconds since the epoch)."""
        if at >= self.ends_at:
            return False
        if self.window is None:
            return True
        opened, closes = self._open.get(zone, (0.0, 0.0))
        if not opened <= at < closes:
            now = datetime.fromtimestamp(at, UTC)
            closes = windows.closes_at(now, self.window, windows.zone(zone, self._default_zone)).timestamp()
            if closes <= at + 0.000_001:  # closed: rounded to microseconds, ``now`` may lie after ``at``
                return False
            self._open[zone] = at, closes
        return True

    def opens(self, zone: str | None, now: float) -> datetime:
        """When a client of that zone may be texted next; ``now`` in seconds since the epoch."""
        at = datetime.fromtimestamp(now, UTC)
        return windows.opens_at(at, self.window, windows.zone(zone, self._default_zone)) if self.window else at


class Work:
    """A batch in our hands. Positions count from the front: committed mark ≤ asked-for mark ≤ loaded."""

    __slots__ = (
        "asked",
        "batch",
        "late",
        "loaded",
        "lost",
        "mark",
        "released",
        "releasing",
        "skipped",
        "staged",
        "view",
    )

    def __init__(self, batch: Claimed, view: View) -> None:
        self.batch = batch
        self.view = view
        self.mark = self.asked = self.loaded = batch.mark
        self.late = batch.late
        self.staged: list[Job] = []
        self.skipped: list[int] = []  # positions beyond the mark whose row is there already
        self.releasing = False
        self.released = False  # and a record was told so
        self.lost = False

    @property
    def unloaded(self) -> int:
        """How many ids nobody has looked at yet."""
        return 0 if self.releasing else len(self.batch.ids) - self.loaded

    def unstage(self) -> None:
        """Forget what was loaded beyond the mark."""
        self.asked = self.loaded = self.mark
        self.skipped, self.staged = [], []

    def advance(self, mark: int) -> list[Job]:
        """The mark is committed up to here: what may be started now."""
        jobs = [job for job in self.staged if job.position < mark]
        self.staged = self.staged[len(jobs) :]
        self.skipped = [position for position in self.skipped if position >= mark]
        self.mark = mark
        return jobs


@dataclass(slots=True, eq=False)
class Job:
    """One message that may be started as soon as its mark is committed; ``position`` counts from 0."""

    work: Work
    message: Loaded
    position: int
    since: float = 0.0  # monotonic; when its mark was committed


class Verdict(Enum):
    """What the last look at a marked message says."""

    START = 1
    WAIT = 2
    FORGET = 3


START, WAIT = Verdict.START, Verdict.WAIT


class Stride(NamedTuple):
    """Positions of a batch that are loaded together; ``late`` as it was when they were asked for."""

    work: Work
    start: int
    end: int
    late: int


class Sender:
    """Sends the batches of one replica through one gateway; ``wake_recorder`` is called when there is news for it."""

    def __init__(
        self,
        db: Db,
        replica: int,
        gateway: Gateway,
        limits: Limits,
        clock: Clock,
        *,
        policy: OnUnknown,
        default_zone: ZoneInfo,
    ) -> None:
        self._db = db
        self._replica = replica
        self._gateway = gateway
        self.limits = limits
        self._clock = clock
        self._policy = policy
        self._default_zone = default_zone
        self.wake_recorder: Callable[[], None] = lambda: None
        self.wake_feed: Callable[[], None] = lambda: None
        self.on_finished: Callable[[], None] = lambda: None  # nothing of some mailing is left in hand
        self.works: dict[int, Work] = {}
        self._lanes: dict[int, deque[Job]] = {}  # by priority
        self._turns = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.results: list[tuple[Work, Result]] = []
        self.ready = 0
        self.inflight = 0
        self._picks = 0
        self._told_dry = False
        self._probe: Job | None = None  # the request that an open breaker let through
        self._starting = 0  # tasks that were made and did not run yet
        self.stopping = False
        self._feeding = False  # a claim may be under way
        self._ceiling = float(limits.concurrency)  # of requests in flight; under the limit while the loop is late
        self._lag = 0.0  # seconds, smoothed
        self._duration = 0.0  # of a request, seconds, smoothed
        self.confirmed = 0.0  # monotonic; when the last record was sent that was committed
        self._last_mailing = 0
        self._claims = 0
        self._looked = 0.0
        self._found = True  # the last look into the queue found something
        self._started = 0
        self._rate = 0.0
        self._rated = time.monotonic()

    # ---- feed: claim and load ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Something may have become due, or may be started: start it, and look into the queue with the next feed."""
        self.pump()
        self._looked = 0.0
        self.wake_feed()

    async def feed(self) -> float:
        """Claim what is due and load the next strides; seconds until there may be more to do."""
        if self.stopping or not self.limits.usable():
            return 1.0
        self._feeding = True
        try:
            return await self._feed()
        finally:
            self._feeding = False

    async def _feed(self) -> float:
        room = self._room()
        # Not for a handful, while there is something to start: each load is a round trip.
        if room >= min(STRIDE, self.limits.concurrency) or (room > 0 and not self.ready):
            await self._claim()
            picked = self._pick(room)
            if picked:
                await self._load(picked)
                return 0.0
        if self.works:
            return 0.02
        return await self._until_due()

    async def _until_due(self) -> float:
        seconds = await queue.seconds_to_next(self._db)
        if seconds is None:
            return 1.0
        return min(1.0, seconds + 0.001) if seconds > 0 else LOOK_AROUND

    def _room(self) -> int:
        """How many more ids may be marked: free connections now, and what is started within the horizon.

        Results that wait to be recorded need not be counted: they are committed with the very record that would carry
        these marks.
        """
        now = time.monotonic()
        if now - self._rated > 0.2:
            self._rate += 0.5 * (self._started / (now - self._rated) - self._rate)
            self._started, self._rated = 0, now
        staged = sum(len(work.staged) for work in self.works.values())
        lined_up = self.ready + staged
        free = self._free() + min(AHEAD, int(self._rate * HORIZON)) - lined_up
        return min(free, self.limits.room(HORIZON) - lined_up)

    async def _claim(self) -> None:
        """Have enough unloaded ids in hand, and look around for mailings that have nothing in hand here."""
        now = time.monotonic()
        enough = sum(work.unloaded for work in self.works.values()) >= queue.BATCH_SIZE
        if len(self.works) >= MAX_WORKS or ((enough or not self._found) and now - self._looked < LOOK_AROUND):
            return
        self._looked = now
        busy = [work.view.id for work in self.works.values()] if enough else []
        self._claims += 1
        claimed: list[Claimed] = []
        if self._claims % RETRY_TURN == 0:  # retry batches are small: take several
            claimed = await queue.claim(
                self._db, self._replica, after=self._last_mailing, busy=busy, retries=True, limit=8
            )
        if not claimed:
            claimed = await queue.claim(self._db, self._replica, after=self._last_mailing, busy=busy)
        self._found = bool(claimed)
        views = {work.view.id: work.view for work in self.works.values()}  # the works of a mailing share one
        for batch in claimed:
            assert batch.orders is not None
            telemetry.CLAIMS.inc()
            self._last_mailing = batch.mailing_id
            if batch.mailing_id not in views:
                views[batch.mailing_id] = View(batch.mailing_id, batch.orders, self._default_zone)
            self.works[batch.id] = Work(batch, views[batch.mailing_id])

    def _pick(self, room: int) -> list[Stride]:
        """Strides to load next: higher priority first, mailings in turn, of each its retries and then the oldest claim.

        One batch after the other, so that the ledger's keys are written in their order: pages of its index are split
        once then, and not again and again (12 bytes of WAL a message).
        """
        waiting: dict[View, list[Work]] = {}
        for work in sorted(self.works.values(), key=lambda work: work.batch.seq == 1):
            if work.unloaded:
                waiting.setdefault(work.view, []).append(work)
        if not waiting:
            return []
        top = max(view.priority for view in waiting)
        views = sorted((view for view in waiting if view.priority == top), key=lambda view: view.turn)
        share = max(STRIDE, room // len(views))
        picked: list[Stride] = []
        for view in views:
            if not room:
                break
            left = min(share, room)
            room -= left
            for work in waiting[view]:
                if count := min(left, work.unloaded):
                    picked.append(Stride(work, work.loaded, work.loaded + count, work.late))
                    left -= count
            room += left
            self._turns += 1
            view.turn = self._turns
        return picked

    async def _load(self, picked: list[Stride]) -> None:
        ids: list[int] = []
        seqs: list[int] = []
        for work, start, end, _ in picked:
            ids += work.batch.ids[start:end]
            seqs += [work.batch.seq] * (end - start)
        rows = await queue.load(self._db, ids, seqs)
        position = 0
        for work, start, end, late in picked:
            stride = rows[position : position + end - start]
            position += end - start
            # While the rows were on their way the work may have been lost or unstaged by the recorder, or somebody may
            # have written a row for one of them.
            if work.lost or work.releasing or work.loaded != start or work.late != late:
                continue
            await self._stage(work, stride)
        self.wake_recorder()

    async def _stage(self, work: Work, stride: list[Loaded]) -> None:
        """Line a loaded stride up for its mark; ids outside their window go back into the queue unmarked."""
        now = self._clock.latest(time.monotonic())
        if work.view.window is not None and now < work.view.ends_at and self._closed(work, stride, now):
            await self._sort_again(work, stride, now)
            return  # what is open is loaded with the next turn
        for position, message in enumerate(stride, work.loaded):
            if message.recorded:
                work.skipped.append(position)
            else:
                work.staged.append(Job(work, message, position))
        work.loaded += len(stride)

    @staticmethod
    def _closed(work: Work, loaded: list[Loaded], now: float) -> list[Loaded]:
        """Those whose clients may not be texted now; ``now`` in seconds since the epoch."""
        return [m for m in loaded if not m.recorded and m.phone and not work.view.may_text(m.timezone, now)]

    async def _sort_again(self, work: Work, stride: list[Loaded], now: float) -> None:
        """Put whoever of a batch is outside the window back into the queue, due when it opens; all of them at once."""
        ids = work.batch.ids
        rest = ids[work.loaded + len(stride) :]
        loaded = stride + await queue.load(self._db, rest, [work.batch.seq] * len(rest))
        if work.lost or work.releasing:
            return
        moved = {m.id: work.view.opens(m.timezone, now) for m in self._closed(work, loaded, now)}
        keep = [*ids[: work.loaded], *(i for i in ids[work.loaded :] if i not in moved)]
        try:
            sorted_again = await queue.sort_again(
                self._db, work.batch, keep, list(moved.items()), version=work.view.version
            )
        except Stale:  # an edit, perhaps of the window: what is not staged is loaded again
            await self._refresh(work.view)
            return
        except BaseException:
            self.drop(work, lost=True)  # whether it was done is not known, and positions mean nothing without that
            raise
        if sorted_again:
            work.batch = replace(work.batch, ids=keep)
            if not keep:
                self.drop(work)
        elif not work.releasing:  # else the tail was given back meanwhile, with all that was to be moved
            self.drop(work, lost=True)

    # ---- start ---------------------------------------------------------------------------------------------------

    def line_up(self, jobs: list[Job]) -> None:
        """Their mark is committed: they may be started."""
        now = time.monotonic()
        for job in jobs:
            job.since = now
            self._lanes.setdefault(job.work.view.priority, deque()).append(job)
        self.ready += len(jobs)

    def note_lag(self, seconds: float) -> None:
        """The loop is so late: have fewer requests in flight, or more again.

        By Little's law ``lag`` times the rate are those that wait in the loop; those that wait for the gateway are not
        to blame, however many they are.
        """
        self._lag += GAIN * (seconds - self._lag)
        most = self.limits.concurrency
        gateway = self._duration - 2 * self._lag  # a request waits for the loop when it is sent and when it is answered
        allowed = min(LAGGING_MOST, max(LAGGING, LAGGING_PART * gateway))
        change = GAIN * (allowed - self._lag) * self._rate
        if change < 0:  # from what is in flight, but not because little is for a moment
            change += max(min(self._ceiling, self.inflight), (1 - GAIN) * self._ceiling) - self._ceiling
        else:
            change += most / 500
        self._ceiling = max(min(FEWEST, most), min(most, self._ceiling + change))
        self.pump()

    def forget_lag(self) -> None:
        """Nothing is being sent: what is sent next begins anew."""
        self._lag, self._ceiling = 0.0, float(self.limits.concurrency)

    def runs_dry(self) -> bool:
        """Whether what may be started will not last until a record asked for now is committed."""
        return self.ready <= self._rate * RECORD

    def is_urged(self) -> bool:
        """Whether what waits for its mark has a higher priority than all that may be started."""
        top = max(self._lanes, default=0)
        return any(work.staged and work.view.priority > top for work in self.works.values())

    def _free(self) -> int:
        return int(min(self.limits.concurrency, self._ceiling)) - self.inflight

    def pump(self) -> None:
        """Start as much as may be started now: each task looks for itself when it really starts."""
        free = min(self.ready, self._free()) - self._starting
        if free > 0:
            for _ in range(min(free, self.limits.allowance(time.monotonic()) - self._starting)):
                self._starting += 1
                task = asyncio.get_running_loop().create_task(self._run())
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def _next(self, now: float) -> Job | None:
        """The next message whose request may start at this moment; it counts as in flight from here on."""
        while self.ready and now - self.confirmed <= FRESH and self._free() > 0:
            lane = self._lanes[(min if self._picks % LOWEST_TURN == 0 else max)(self._lanes)]
            job = lane[0]
            try:
                verdict = self._look_at(job, now)
            except Exception:  # one message's bad luck must not stop the others
                log.exception("cannot be started", message_id=job.message.id, mailing_id=job.work.view.id)
                at = self._clock.latest(now)
                due_at = backoff.due_at(self._clock.now(), AFTER_BUG)
                verdict = _books(job.work, job.message.id, Outcome.NOT_STARTED, Reason.INTERNAL_ERROR, at, due_at)
            if verdict is WAIT:
                return None
            self._pop(lane)
            if verdict is START:
                self.inflight += 1
                self._started += 1
                self._picks += 1
                if self.limits.probing:
                    self._probe = job
                return job
            if isinstance(verdict, Result):
                self._add(job.work, verdict)
        return None

    def _look_at(self, job: Job, now: float) -> Verdict | Result:
        """Whether a marked message may start now: the last look at everything that could forbid it."""
        work, message = job.work, job.message
        if work.lost:
            return Verdict.FORGET
        at = self._clock.latest(now)
        if message.phone is None:
            return _books(work, message.id, Outcome.SUPPRESSED, Reason.CLIENT_DELETED, at)
        held = self._policy is OnUnknown.HOLD and work.batch.standing is Standing.DOUBTFUL
        if held and not message.let_go:  # it was queued under another policy
            return _books(work, message.id, Outcome.NOT_STARTED, Reason.HELD, at)
        if at >= work.view.ends_at:
            return _books(work, message.id, Outcome.NOT_STARTED, Reason.ENDED, at, work.batch.due_at)
        if not work.view.may_text(message.timezone, at):
            # Due at once: `_sort_again` says when, under the mailing's lock, so that no edit of the window is missed.
            return _books(work, message.id, Outcome.NOT_STARTED, Reason.WINDOW, at, work.batch.due_at)
        # Open by the latest the database's clock may show, but not by the earliest: in a moment it is.
        open_ = work.view.may_text(message.timezone, self._clock.earliest(now))
        return START if open_ and self.limits.may_start(now) else WAIT

    def _pop(self, lane: deque[Job]) -> None:
        lane.popleft()
        self.ready -= 1
        if not lane:
            self._lanes = {priority: jobs for priority, jobs in self._lanes.items() if jobs}
            self.wake_recorder()  # what waits for its mark may be more urgent than what is left

    async def _run(self) -> None:
        """Send one message after the other, as long as there is one that may start."""
        self._starting -= 1
        while job := self._next(looked := time.monotonic()):
            try:
                await self._attempt(job, looked)
            finally:
                self.inflight -= 1
            if not self._told_dry and self.runs_dry():
                self._told_dry = True
                self.wake_recorder()
                self.wake_feed()

    async def _attempt(self, job: Job, started: float) -> None:
        """Send one message; ``started`` is when the last look was, so that the books say what was judged."""
        work, message = job.work, job.message
        view = work.view
        probe, self._probe = job is self._probe, None if job is self._probe else self._probe
        started_at = datetime.fromtimestamp(self._clock.latest(started), UTC)
        text_version = view.text_version
        identity = self._gateway.identity
        # The batch knows of a doubt that no outcome shows: an acceptance that could not be recorded.
        doubts = max(message.in_doubt, int(work.batch.standing is Standing.DOUBTFUL))
        try:
            assert message.phone is not None
            answer = await self._gateway.send(message.id, message.phone, view.text)
            if doubts and has_it_already(answer):
                answer = answer._replace(outcome=Outcome.ACCEPTED, reason=Reason.ALREADY_ACCEPTED)
            answer = self.limits.note(answer, message.id, started_at, identity, probe=probe, in_doubt=doubts > 0)
        except Exception as error:  # one message's bad luck must not stop the others
            log.exception("sending failed", message_id=message.id, mailing_id=view.id)
            answer = Answer(Outcome.UNKNOWN, Reason.INTERNAL_ERROR, None, type(error).__name__)
            if probe:
                self.limits.probing = False
        duration = time.monotonic() - started
        self._duration += 0.01 * (duration - self._duration)
        next_ = self._after(answer, message, doubts)
        self._add(
            work,
            Result(
                work.batch.id,
                message.id,
                answer.outcome,
                next_.standing,
                started_at,
                int(duration * 1000),
                message.phone,
                text_version,
                answer.status_code,
                next_.reason,
                answer.detail,
                None if next_.wait is None else backoff.due_at(self._clock.now(), next_.wait),
            ),
        )

    def _after(self, answer: Answer, message: Loaded, doubts: int) -> backoff.Next:
        if answer.outcome is Outcome.ACCEPTED and answer.reason is None:
            return _SENT
        wait = answer.retry_after
        if wait is None and answer.outcome in (Outcome.THROTTLED, Outcome.MISCONFIGURED):
            wait = 0.0  # the gateway's pause holds it back, not a backoff of its own
        history = backoff.History(message.counted, message.declined, doubts)
        return backoff.after(answer.outcome, answer.reason, history, self._policy, wait=wait)

    def _add(self, work: Work, result: Result) -> None:
        self.results.append((work, result))
        if len(self.results) in (1, FULL):
            self.wake_recorder()

    # ---- what the recorder brings back ---------------------------------------------------------------------------

    def reports(self) -> list[Report]:
        """What is to be said of every batch in hand with the next record."""
        reports = []
        for work in self.works.values():
            work.asked, work.released = work.loaded, work.releasing
            reports.append(
                Report(
                    batch_id=work.batch.id,
                    owner=work.batch.owner,
                    old_mark=work.mark,
                    new_mark=work.asked,
                    skipped=len(work.skipped),
                    late=work.late,
                    release=work.releasing,
                )
            )
        return reports

    async def settle(self, recorded: Iterable[Recorded], asked: float) -> None:
        """Act on what a committed record found; ``asked`` is when it was sent (``time.monotonic``)."""
        for row in recorded:
            work = self.works.get(row.batch_id)
            if work is None:
                continue
            if not row.owned or row.finished:
                self.drop(work, lost=not row.owned)
                if not any(other.view is work.view for other in self.works.values()):
                    self.on_finished()
                continue
            if row.version != work.view.version:
                await self._refresh(work.view)
            if row.mark > work.mark:
                self.line_up(work.advance(row.mark))
            elif work.asked > work.mark:
                work.unstage()  # not granted: paused, over, or somebody wrote a row for one of them; load again
            work.late = row.late
            if row.status is not MailingStatus.RUNNING or row.now >= row.ends_at:
                self.release(work, STOPPED_BY.get(row.status, Reason.ENDED))
            elif not self.limits.usable():
                self.release(work, Reason.PAUSED)
            elif self.stopping:
                self.release(work, Reason.RELEASED)
        # Not before: what the record told of may have had to be read, and nothing starts on old words.
        self.confirmed = asked
        self._told_dry = False
        self._give_back_the_old()
        self.pump()
        self.wake_feed()

    def _give_back_the_old(self) -> None:
        """What waits long under its mark (a very low rate, a hanging gateway) goes back before it counts as stuck."""
        now = time.monotonic()
        for lane in list(self._lanes.values()):
            while lane and now - lane[0].since > LINED_UP:
                work, message = lane[0].work, lane[0].message
                self._pop(lane)
                at = self._clock.latest(now)
                due_at = work.batch.due_at
                self._add(work, _books(work, message.id, Outcome.NOT_STARTED, Reason.RELEASED, at, due_at))

    async def _refresh(self, view: View) -> None:
        orders = await queue.orders(self._db, view.id)
        if orders is None:  # deleted: its status says so with every record
            view.version = -1
        else:
            view.set(orders)

    def release(self, work: Work, reason: Reason) -> None:
        """Give back what was not started: the marked with a ledger row that says so, the rest with the next record."""
        if work.releasing:
            return
        work.releasing = True
        work.unstage()
        at = self._clock.latest(time.monotonic())
        for lane in self._lanes.values():
            mine = [job for job in lane if job.work is work]
            if mine:
                rest = [job for job in lane if job.work is not work]
                lane.clear()
                lane.extend(rest)
                self.ready -= len(mine)
            for job in mine:
                self._add(work, _books(work, job.message.id, Outcome.NOT_STARTED, reason, at, work.batch.due_at))
        self._lanes = {priority: jobs for priority, jobs in self._lanes.items() if jobs}
        self.wake_recorder()

    def drop(self, work: Work, *, lost: bool = False) -> None:
        """Forget a batch that is finished or, when ``lost``, not ours any more: what is under way will be late."""
        self.works.pop(work.batch.id, None)
        work.lost, work.releasing = lost, True

    def idle(self) -> bool:
        """Whether nothing is under way and everything is handed over."""
        return not (self.works or self.inflight or self.results or self._feeding)


_SENT = backoff.Next(Standing.SENT, None, None)


def _books(
    work: Work, message_id: int, outcome: Outcome, reason: Reason, at: float, due_at: datetime | None = None
) -> Result:
    """A row of the books for a marked message whose request was not started."""
    standing = work.batch.standing
    if due_at is None:  # it ends here
        standing = Standing.UNKNOWN if standing is Standing.DOUBTFUL else Standing.SUPPRESSED
    return Result(
        work.batch.id,
        message_id,
        outcome,
        standing,
        datetime.fromtimestamp(at, UTC),
        None,
        None,
        None,
        None,
        reason,
        None,
        due_at,
    )
