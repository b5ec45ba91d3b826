"""One replica's scheduler: it wires the loops, and stops them.

Mailings begin, are planned, sent by the engine, closed; batches of dead replicas are reclaimed.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from zoneinfo import ZoneInfo

import structlog

from notifier import zones
from notifier.cluster.control import ControlConnection
from notifier.cluster.detector import FailureDetector
from notifier.cluster.loops import CUT_OFF, Loop, Loops, Signal
from notifier.delivery.chores import Chores
from notifier.delivery.engine import Engine
from notifier.delivery.gateway import Gateway
from notifier.delivery.planner import Planner
from notifier.delivery.reclaim import reclaim
from notifier.models import OnUnknown
from notifier.storage import audience, mailing_lifecycle, mailings, queue, replicas
from notifier.storage.database import AWAY, Pool
from notifier.storage.installation import Hold

log = structlog.get_logger(__name__)

BEAT = 2.0  # seconds between heartbeats
# Owned batches without progress for the gateway's timeout and this (seconds) are stuck, whoever owns them.
STUCK_AFTER = 15.0
# Seconds after which a loop polls at the latest, should a signal have been missed.
NET = 1.0
# Seconds between two checks of a database that is released.
RELEASED = 30.0
OPTIONAL = ("purge", "control", "lag", "zones")  # loops without which everything is sent all the same


class Scheduler:
    """The loops of one replica. Without ``gateway`` mailings begin and are planned, and wait.

    ``concurrency`` is requests under way, ``rate`` messages a second over all replicas (0: no limit), ``timeout``
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
        on_unknown: OnUnknown,
        default_zone: ZoneInfo,
        hold: Hold,
        pause_all: bool = False,
    ) -> None:
        self._db = db
        self._hold = hold
        self._name = name
        self._gateway = gateway
        self._concurrency, self._rate, self._timeout = concurrency, rate, timeout
        self._on_unknown = on_unknown
        self._default_zone = default_zone
        self._pause_all = pause_all
        self._detector = FailureDetector()
        self._loops = Loops()
        self._lifecycle_signal, self._planner_signal, self._hold_signal = Signal(), Signal(), Signal()
        self._heartbeat_signal, self._control_signal = Signal(), Signal()
        self._planner = Planner(db, default_zone=default_zone, on_batches=self._look)
        self.replica = 0
        self.engine: Engine | None = None
        self._control: ControlConnection | None = None

    async def start(self) -> None:
        """Register and start the loops."""
        self.replica = await replicas.register(self._db, self._name)
        self._control = ControlConnection(
            self._db,
            self.replica,
            on_news=self.wake,
            on_locks=self._saw_locks,
            on_held=self._heartbeat_signal.set,
            on_lost=Signal(self._control_signal, self._heartbeat_signal).set,
        )
        chores = Chores(self._db, self._default_zone, lambda: self._detector.is_leader(self.replica))
        self._loops.start(
            [
                Loop("lifecycle", self._lifecycle, self._lifecycle_signal),
                Loop("planner", self._planner.poll, self._planner_signal),
                Loop("heartbeat", self._heartbeat, self._heartbeat_signal),
                Loop("control", self._control.poll, self._control_signal),
                Loop("purge", chores.purge),
                Loop("zones", chores.name_unknown_zones),
            ]
        )
        if self._gateway is not None and not self._pause_all:
            if await self._hold.reason() is None:
                self._send_through(self._gateway)
            else:
                self._loops.start([Loop("hold", self._held, self._hold_signal)])
        log.info(
            "the scheduler runs",
            replica=self.replica,
            gateway=bool(self._gateway),
            pause_all=self._pause_all,
            tzdata=zones.release(),  # replicas that differ may judge a local hour differently
        )

    def _send_through(self, gateway: Gateway) -> None:
        self.engine = Engine(
            self._db,
            self.replica,
            gateway,
            concurrency=self._concurrency,
            rate=self._rate,
            timeout=self._timeout,
            on_unknown=self._on_unknown,
            default_zone=self._default_zone,
            finished=self._lifecycle_signal,
        )
        self._loops.start(self.engine.loops())

    def wake(self) -> None:
        """Something was created or changed: poll at once."""
        for signal in (self._lifecycle_signal, self._planner_signal, self._hold_signal):
            signal.set()
        if self.engine is not None:
            self.engine.wake()

    def _look(self) -> None:
        if self.engine is not None:
            self.engine.look()

    async def stop(self, grace: float) -> None:
        """Claim nothing more, finish what is under way within ``grace`` seconds, record it, give the rest back."""
        deadline = time.monotonic() + grace
        if self.engine is not None:
            self.engine.stop()
            while not self.engine.is_idle() and time.monotonic() < deadline:
                if not self.engine.concurrency.inflight and await self._is_away():
                    break  # nothing is under way, and nothing can be given back
                self.engine.stop()
                await asyncio.sleep(0.02)
            if not self.engine.is_idle():
                inflight = self.engine.concurrency.inflight
                log.warning("stopped before all was given back; it will be reclaimed", inflight=inflight)
        await self._loops.stop()
        with suppress(*AWAY):
            await asyncio.wait_for(replicas.forget(self._db, self.replica), CUT_OFF)
        if self._control is not None:
            with suppress(*AWAY):
                await asyncio.wait_for(self._control.close(), CUT_OFF)

    def failing(self, seconds: float) -> list[str]:
        """The loops that have done nothing but fail for so long, without those that sending can do without."""
        return self._loops.failing(seconds, without=OPTIONAL)

    async def _is_away(self) -> bool:
        try:
            await asyncio.wait_for(mailings.clock(self._db), 1)
        except AWAY:
            return True
        return False

    # ---- the loops -----------------------------------------------------------------------------------------------

    async def _held(self) -> float:
        """Begin to send once the database, which looks like a copy, is released."""
        if self.engine is None and await self._hold.reason() is None:
            assert self._gateway is not None
            log.info("the database is released: sending begins")
            self._send_through(self._gateway)
        return NET if self.engine is None else RELEASED

    async def _lifecycle(self) -> float:
        """Begin what is due, finish what has ended, close what is worked off; wait for the next start or end."""
        if begun := await audience.begin_due(self._db):
            self._planner.begin(begun)
            self._planner_signal.set()
        if await mailing_lifecycle.finish_ended(self._db) and self.engine is not None:
            self.engine.wake()
        for mailing_id in await mailing_lifecycle.worked_off(self._db):
            if await mailing_lifecycle.close(self._db, mailing_id):
                log.info("a mailing is finished", mailing_id=mailing_id)
        seconds = await mailing_lifecycle.seconds_to_next(self._db)
        return NET if seconds is None else min(NET, seconds + 0.001)

    async def _heartbeat(self) -> float:
        """Write the heartbeat, and reclaim the batches of dead replicas and stuck batches."""
        assert self._control is not None
        beats = await replicas.beat(self._db, self.replica, self._name, session=self._control.held)
        self._detector.observe(beats, await queue.owned(self._db), time.monotonic())
        in_hand = self.engine.held if self.engine is not None else ()
        left_behind = self._detector.to_reclaim(self.replica, in_hand, self._timeout + STUCK_AFTER)
        if left_behind:
            try:
                await reclaim(self._db, self.replica, left_behind, self._on_unknown, self._timeout)
            except AWAY:  # a database that is full or read-only keeps everybody from progress: nobody is stuck for that
                self._detector.forget_batches()
                raise
            self._look()
        for peer in self._detector.dead() - {self.replica}:
            await replicas.forget(self._db, peer)
        return BEAT

    def _saw_locks(self, free: set[int] | None) -> None:
        """The control connection shows whose lock is free: what the dead hold is reclaimed at once."""
        self._detector.observe_locks(free, time.monotonic())
        if self._detector.dead() - {self.replica}:
            self._heartbeat_signal.set()
