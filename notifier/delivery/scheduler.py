"""The loops: begin, plan, feed, record, close, take over. Start, wake, drain, stop.

Each loop is a `poll()` that does one batch of work and returns the seconds to sleep; a wake cuts the sleep short.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container, Sequence
from contextlib import suppress
from zoneinfo import ZoneInfo

import structlog

from notifier import telemetry, windows, zones
from notifier.delivery import backoff
from notifier.delivery.clock import Clock
from notifier.delivery.gateway import Gateway
from notifier.delivery.limits import Limits
from notifier.delivery.planner import Planner
from notifier.delivery.recorder import REFUSED, Recorder, store
from notifier.delivery.sender import Sender
from notifier.delivery.session import Session
from notifier.models import OnUnknown, Outcome, Reason
from notifier.storage import audience, clients, idempotency, mailings, queue, replicas, sessions
from notifier.storage.database import AWAY, DISTURBED, Db, Pool, transaction
from notifier.storage.installation import Hold
from notifier.storage.queue import Claimed, Owned, Report, Result

log = structlog.get_logger(__name__)

BEAT = 2.0  # seconds between heartbeats
# A peer without a heartbeat for so long is dead: four beats, and longer than any pause of a healthy process.
DEAD_AFTER = 8.0
# So is one whose session lock was free at two looks this far apart (seconds): one look may fall between the loss of a
# connection and its return.
FREE_FOR = 0.7
# Owned batches without progress for the gateway's timeout and this (seconds) are stuck, whoever owns them.
STUCK_AFTER = 15.0
# Everything under way when a mailing ended is through long before (seconds): promise 3 gives 60.
SETTLED_AFTER = 45.0
# A claim that its replica knows nothing of for so long (seconds) was lost with its answer: no statement takes longer.
LOST_CLAIM = 6.0
# The net under all wakes and timers (seconds).
NET = 1.0
# After an error a loop waits this long (seconds), twice as long each time in a row up to the second figure.
AFTER_ERROR = (0.25, 2.0)
TICK = 0.01  # seconds between two looks at how late the loop is, while something is being sent
PURGE_EVERY = 30.0
PURGE_REST = 0.5  # seconds between two pieces of a purge, each some 50 ms of the database: sending comes first
ZONES_EVERY = 600.0
OPTIONAL = ("purge", "session", "lag", "zones")  # loops without which everything is sent all the same
CUT_OFF = 2.0  # seconds that a step of stopping waits for the database


class Loop:
    """A supervised loop around ``poll``; it ends only by `stop`."""

    def __init__(self, name: str, poll: Callable[[], Awaitable[float]]) -> None:
        self.name = name
        self._poll = poll
        self._woken = asyncio.Event()
        self._stopping = False
        self.task: asyncio.Task[None] | None = None
        self.failing_since: float | None = None  # on the monotonic clock; None after a poll that went well

    def start(self) -> None:
        """Run until stopped; should the task end in any other way, another takes its place."""
        self.task = asyncio.get_running_loop().create_task(self._run(), name=f"notifier-{self.name}")
        self.task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not self._stopping:
            log.error("a loop ended by itself; it is started again", loop=self.name)
            telemetry.LOOP_ERRORS.labels(self.name).inc()
            self.start()

    def wake(self) -> None:
        """Poll at once, or once more after the present poll."""
        self._woken.set()

    async def stop(self) -> None:
        """Cut the loop off; what it was doing is left to the database's rules."""
        self._stopping = True
        if self.task is not None:
            self.task.cancel()
            await asyncio.wait({self.task}, timeout=CUT_OFF)  # a database that hangs must not hold up the stop

    async def _run(self) -> None:
        errors = 0
        while True:
            self._woken.clear()
            try:
                delay = await self._poll()
                errors, self.failing_since = 0, None
            except Exception as error:
                telemetry.LOOP_ERRORS.labels(self.name).inc()
                self.failing_since = self.failing_since or time.monotonic()
                if isinstance(error, AWAY):
                    log.warning("the database is away", loop=self.name, error=str(error) or type(error).__name__)
                elif isinstance(error, DISTURBED):
                    log.warning("another transaction was in the way", loop=self.name, error=str(error))
                else:
                    log.exception("a loop failed; it goes on", loop=self.name)
                await asyncio.sleep(min(AFTER_ERROR[1], AFTER_ERROR[0] * 2**errors))
                errors = min(errors + 1, 10)
                continue
            if delay > 0:
                # Not wait_for: in Python 3.11 it may swallow the cancellation of a task that was just woken.
                with suppress(TimeoutError):
                    async with asyncio.timeout(delay):
                        await self._woken.wait()
            else:
                await asyncio.sleep(0)


class Watch:
    """Who is dead and what is stuck, judged by one that looked on throughout, on its own monotonic clock.

    Neither a step of a clock nor an outage of the database makes anybody dead: after a gap of its own an observer knows
    nothing, and starts to watch anew.
    """

    def __init__(self) -> None:
        self._beats: dict[int, tuple[int, float]] = {}  # replica → (counter, unchanged since)
        self._batches: dict[tuple[int, int], tuple[Owned, float]] = {}  # (batch, owner) → (as seen, unchanged since)
        self._over: dict[tuple[int, int], float] = {}  # (batch, owner) → seen with its mailing over since
        self._last = 0.0
        self._free: dict[int, float] = {}  # replica → its lock is free since
        self._doubted: set[int] = set()  # those whose heart beats without their lock
        self._locks_seen = 0.0

    def look(self, beats: dict[int, int], owned: list[Owned], now: float) -> None:
        """Take in the heartbeat counters and owned batches as they were just read, at ``time.monotonic() == now``."""
        if now - self._last > DEAD_AFTER / 2:
            self._beats, self._batches, self._over = {}, {}, {}
        old, before, self._last = self._beats, self._last, now
        for peer, since in list(self._free.items()):
            if before >= since and beats.get(peer) != old.get(peer, (None,))[0]:
                self._doubted.add(peer)  # its heart beats without its lock: that says nothing until it is held again
                del self._free[peer]
        self._beats = {peer: old[peer] if old.get(peer, (None,))[0] == n else (n, now) for peer, n in beats.items()}
        keys = {(batch.id, batch.owner): batch for batch in owned}
        seen = self._batches
        self._batches = {key: seen[key] if seen.get(key, (None,))[0] == b else (b, now) for key, b in keys.items()}
        self._over = {key: self._over.get(key, now) for key, batch in keys.items() if batch.over}

    def forget_batches(self) -> None:
        """Begin anew to watch for progress: there could be none."""
        self._batches = {key: (batch, self._last) for key, (batch, _) in self._batches.items()}

    def look_at_locks(self, free: set[int] | None, now: float) -> None:
        """Take in whose lock is free, as it was just read, at ``time.monotonic() == now``; None: nothing is known."""
        if free is None or now - self._locks_seen > DEAD_AFTER / 4:
            self._free = {}
        self._locks_seen = now
        self._doubted &= free or set()
        self._free = {peer: self._free.get(peer, now) for peer in (free or set()) - self._doubted}

    def dead(self) -> set[int]:
        """The replicas whose counter stood still for DEAD_AFTER seconds, or whose lock was free for FREE_FOR."""
        still = {peer for peer, (_, since) in self._beats.items() if self._last - since >= DEAD_AFTER}
        if self._last - self._locks_seen > DEAD_AFTER / 4:
            return still  # what was seen of the locks is old
        return still | {peer for peer, since in self._free.items() if self._locks_seen - since >= FREE_FOR}

    def left_behind(self, me: int, in_hand: Container[int], stuck_after: float) -> list[Owned]:
        """Batches to be taken over: of the dead, without progress for ``stuck_after`` seconds, still owned
        SETTLED_AFTER seconds after the end, and those of ``me`` that it does not have ``in_hand``: the answer to its
        claim was lost.

        An owner who is not on the list may just have registered, or was struck off it while it was stopped and comes
        back with its next beat; so its batches are looked at for as long as a heart may stand still.
        """
        dead = self.dead() - {me}
        found = []
        for key, (batch, since) in self._batches.items():
            idle = self._last - since
            over = self._last - self._over.get(key, self._last)
            lost_claim = batch.replica == me and batch.id not in in_hand and idle >= LOST_CLAIM
            nobodys = batch.replica not in self._beats and idle >= DEAD_AFTER
            if batch.replica in dead or nobodys or lost_claim or idle >= stuck_after or over >= SETTLED_AFTER:
                found.append(batch)
        return found


class Scheduler:
    """One replica's engine. Without ``gateway`` mailings begin and are planned, and wait.

    ``concurrency`` is requests in flight, ``rate`` messages a second over all replicas (0: no limit), ``timeout``
    seconds for a request; ``pause_all`` sends nothing, ``hold`` nothing until it is released.
    """

    def __init__(
        self,
        db: Pool,
        *,
        name: str,
        gateway: Gateway | None,
        concurrency: int,
        rate: float,
        timeout: float,
        policy: OnUnknown,
        default_zone: ZoneInfo,
        hold: Hold,
        pause_all: bool = False,
    ) -> None:
        self._db = db
        self._hold = hold
        self._name = name
        self._gateway = gateway
        self._settings = (concurrency, rate, timeout)
        self._policy = policy
        self._default_zone = default_zone
        self._unknown_zones: set[str] = set()  # named in the log
        self._pause_all = pause_all
        self._watch = Watch()
        self._planner = Planner(db, default_zone=default_zone, on_batches=self._look)
        self.replica = 0
        self.sender: Sender | None = None
        self._recorder: Recorder | None = None
        self._loops: dict[str, Loop] = {}
        self._session: Session | None = None

    async def start(self) -> None:
        """Register and start the loops."""
        self.replica = await replicas.register(self._db, self._name)
        self._session = Session(
            self._db,
            self.replica,
            on_news=self.wake,
            on_locks=self._saw_locks,
            on_held=lambda: self._wake("heartbeat"),
            on_lost=self._lost_session,
        )
        polls: dict[str, Callable[[], Awaitable[float]]] = {
            "lifecycle": self._lifecycle,
            "planner": self._planner.poll,
            "heartbeat": self._heartbeat,
            "purge": self._purge,
            "zones": self._zones,
            "session": self._session.poll,
        }
        if self._gateway is not None and not self._pause_all:
            if await self._hold.reason() is None:
                polls |= self._sending(self._gateway)
            else:
                polls["hold"] = self._held
        self._start_loops(polls)
        log.info(
            "the scheduler runs",
            replica=self.replica,
            gateway=bool(self._gateway),
            pause_all=self._pause_all,
            tzdata=zones.release(),  # replicas that differ may judge a local hour differently
        )

    def _start_loops(self, polls: dict[str, Callable[[], Awaitable[float]]]) -> None:
        loops = {name: Loop(name, poll) for name, poll in polls.items()}
        self._loops |= loops
        for loop in loops.values():
            loop.start()

    async def _held(self) -> float:
        """Begin to send once the database, which looks like a copy, is released."""
        if self.sender is None and await self._hold.reason() is None:
            assert self._gateway is not None
            log.info("the database is released: sending begins")
            self._start_loops(self._sending(self._gateway))
        return NET if self.sender is None else PURGE_EVERY

    def _sending(self, gateway: Gateway) -> dict[str, Callable[[], Awaitable[float]]]:
        concurrency, rate, timeout = self._settings
        clock = Clock()
        limits = Limits(
            self._db,
            gateway.name,
            clock,
            concurrency=concurrency,
            rate=rate,
            timeout=timeout,
            identity=lambda: gateway.identity,
        )
        sender = Sender(
            self._db, self.replica, gateway, limits, clock, policy=self._policy, default_zone=self._default_zone
        )
        recorder = Recorder(self._db, self.replica, sender, clock)
        sender.wake_recorder = lambda: self._wake("recorder")
        sender.wake_feed = lambda: self._wake("feed")
        sender.on_finished = lambda: self._wake("lifecycle")
        limits.wake = lambda: self._wake("limits")
        limits.on_change = sender.look
        self.sender, self._recorder = sender, recorder
        return {"feed": sender.feed, "recorder": recorder.poll, "limits": limits.poll, "lag": self._lag}

    def wake(self) -> None:
        """Something was created or changed: look at once."""
        for name in ("lifecycle", "planner", "limits", "recorder", "hold"):
            self._wake(name)
        self._look()

    def _wake(self, name: str) -> None:
        if name in self._loops:
            self._loops[name].wake()

    def _look(self) -> None:
        if self.sender is not None:
            self.sender.look()

    async def stop(self, grace: float) -> None:
        """Claim nothing more, finish what is in flight within ``grace`` seconds, record it, give the rest back."""
        deadline = time.monotonic() + grace
        if self.sender is not None and self._recorder is not None:
            self.sender.stopping = True
            while not (self.sender.idle() and self._recorder.idle()) and time.monotonic() < deadline:
                if not self.sender.inflight and await self._away():
                    break  # nothing is under way, and nothing can be given back
                self._wake("recorder")
                await asyncio.sleep(0.02)
            if not self.sender.idle():
                log.warning("stopped before all was given back; it is taken over", inflight=self.sender.inflight)
        await asyncio.gather(*(loop.stop() for loop in self._loops.values()))
        with suppress(*AWAY):
            await asyncio.wait_for(replicas.forget(self._db, self.replica), CUT_OFF)
        if self._session is not None:
            with suppress(*AWAY):
                await asyncio.wait_for(self._session.close(), CUT_OFF)

    def failing(self, seconds: float) -> list[str]:
        """The loops that have done nothing but fail for so long, without those that sending can do without."""
        before = time.monotonic() - seconds
        return [
            name
            for name, loop in self._loops.items()
            if name not in OPTIONAL and loop.failing_since is not None and loop.failing_since <= before
        ]

    async def _away(self) -> bool:
        try:
            await asyncio.wait_for(mailings.clock(self._db), 1)
        except AWAY:
            return True
        return False

    # ---- the loops -----------------------------------------------------------------------------------------------

    async def _lifecycle(self) -> float:
        """Begin what is due, finish what has ended, close what is worked off; wait for the next start or end."""
        if begun := await audience.begin_due(self._db):
            self._planner.begin(begun)
            self._wake("planner")
        if await mailings.finish_ended(self._db):
            self._wake("recorder")
        for mailing_id in await mailings.worked_off(self._db):
            if await mailings.close(self._db, mailing_id):
                log.info("a mailing is finished", mailing_id=mailing_id)
        seconds = await mailings.seconds_to_next(self._db)
        return NET if seconds is None else min(NET, seconds + 0.001)

    async def _heartbeat(self) -> float:
        """Say that this replica lives, and take over from those that do not say so."""
        assert self._session is not None
        beats = await replicas.beat(self._db, self.replica, self._name, session=self._session.held)
        self._watch.look(beats, await queue.owned(self._db), time.monotonic())
        in_hand = self.sender.works if self.sender is not None else ()
        left_behind = self._watch.left_behind(self.replica, in_hand, self._settings[2] + STUCK_AFTER)
        if left_behind:
            await self._take_over(left_behind)
        for peer in self._watch.dead() - {self.replica}:
            await replicas.forget(self._db, peer)
        return BEAT

    async def _take_over(self, left_behind: list[Owned]) -> None:
        """Adopt and settle in one transaction: where nothing can be written the owners stay who they are.

        A database that is full or read-only keeps everybody from progress; so nothing counts as stuck for that.
        """
        policy, wait = self._policy, self._settings[2]
        try:
            async with transaction(self._db) as conn:
                adopted = await queue.adopt(conn, self.replica, left_behind)
                await take_over(conn, self.replica, adopted, policy, wait)
        except AWAY:
            self._watch.forget_batches()
            raise
        except REFUSED:  # a row of one of them; it is split off by those who need no transaction around it
            adopted = await queue.adopt(self._db, self.replica, left_behind)
            for batch in adopted:
                await take_over(self._db, self.replica, [batch], policy, wait, write=store)
        for batch in adopted:
            log.warning("took a batch over", batch=batch.id, mailing_id=batch.mailing_id)
            telemetry.TAKEOVERS.inc()
        self._look()

    async def _purge(self) -> float:
        """Take away what is not needed any more, in pieces: deleted mailings, phones of the erased, what is too old.

        Each is done though another fails; the first error is raised when all had their turn.
        """
        errors: list[Exception] = []
        more = False
        for chore in (self._purge_mailings, self._purge_erased, self._purge_keys, self._purge_sessions):
            try:
                more |= await chore()
            except Exception as error:
                errors.append(error)
        if errors:
            raise errors[0]
        return PURGE_REST if more else PURGE_EVERY

    async def _purge_mailings(self) -> bool:
        return await mailings.purge(self._db)

    async def _purge_erased(self) -> bool:
        return await clients.erase_again(self._db, SETTLED_AFTER) == clients.PIECE

    async def _purge_keys(self) -> bool:
        return await idempotency.purge(self._db) == idempotency.PIECE

    async def _purge_sessions(self) -> bool:
        await sessions.purge(self._db)
        return False

    async def _zones(self) -> float:
        """Name the zones of clients that the zone data here do not know, each once: those are in the default zone."""
        for name in await clients.zones(self._db, 1000):
            if name not in self._unknown_zones and not windows.is_known(name):
                count = await clients.count_in(self._db, name)
                self._unknown_zones.add(name)
                log.warning(
                    "clients have a time zone that is not known here; DEFAULT_TIMEZONE is used for them",
                    timezone=name,
                    clients=count,
                    default=self._default_zone.key,
                )
        return ZONES_EVERY

    def _saw_locks(self, free: set[int] | None) -> None:
        """What the control connection shows of the others' locks: who is gone is taken over at once."""
        self._watch.look_at_locks(free, time.monotonic())
        if self._watch.dead() - {self.replica}:
            self._wake("heartbeat")

    def _lost_session(self) -> None:
        """The control connection is gone: get another, and say over the rest that the lock means nothing now."""
        self._wake("session")
        self._wake("heartbeat")

    async def _lag(self) -> float:
        """How late is the loop? Its lateness limits what is in flight, since the API shares it."""
        assert self.sender is not None
        if not self.sender.works:
            self.sender.forget_lag()
            return NET / 4
        asked = time.monotonic()
        await asyncio.sleep(TICK)
        lag = time.monotonic() - asked - TICK
        telemetry.LOOP_LAG.set(max(0.0, lag))  # uvloop's timers have whole milliseconds, and fire up to one too early
        self.sender.note_lag(lag)
        return 0.0


async def take_over(
    db: Db,
    replica: int,
    batches: Sequence[Claimed],
    policy: OnUnknown,
    wait: float,
    *,
    write: Callable[[Db, int, Sequence[Report], Sequence[Result]], Awaitable[object]] = queue.record,
) -> None:
    """Settle batches that were just adopted: in doubt are their ids under the mark without a ledger row.

    They get an `interrupted` row and, where the policy allows another try, a batch due after ``wait`` seconds (the
    gateway's timeout), so that a late acceptance of the old owner still cancels it; what lies beyond the mark was not
    started and goes back into the queue.
    """
    if not batches:
        return
    now = await mailings.clock(db)
    reports: list[Report] = []
    results: list[Result] = []
    marked = [(batch, message_id) for batch in batches for message_id in batch.ids[: batch.mark]]
    loaded = await queue.load(db, [message_id for _, message_id in marked], [batch.seq for batch, _ in marked])
    recorded = Counter(batch.id for (batch, _), message in zip(marked, loaded, strict=True) if message.recorded)
    for batch in batches:
        unknown_to_it = recorded[batch.id] - batch.done
        reports.append(Report(batch.id, batch.owner, batch.mark, batch.mark, unknown_to_it, batch.late, release=True))
    for (batch, _), message in zip(marked, loaded, strict=True):
        if message.recorded:
            continue
        history = backoff.History(message.counted, message.declined, message.in_doubt)
        next_ = backoff.after(Outcome.INTERRUPTED, Reason.INTERRUPTED, history, policy, wait=wait)
        results.append(
            Result(
                batch_id=batch.id,
                message_id=message.id,
                outcome=Outcome.INTERRUPTED,
                standing=next_.standing,
                started_at=now,
                duration_ms=None,
                phone=message.phone,
                text_version=None,
                status_code=None,
                reason=next_.reason,
                detail=None,
                due_at=None if next_.wait is None else backoff.due_at(now, next_.wait),
            )
        )
    await write(db, replica, reports, results)
