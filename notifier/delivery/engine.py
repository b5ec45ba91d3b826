"""What a replica runs for one gateway: feeder → recorder → sender → recorder, and the signals between them."""

from __future__ import annotations

import asyncio
import time
from zoneinfo import ZoneInfo

from notifier import telemetry
from notifier.cluster.loops import Loop, Signal
from notifier.delivery.clock import Clock
from notifier.delivery.concurrency import Concurrency
from notifier.delivery.feeder import Feeder
from notifier.delivery.gateway import Gateway
from notifier.delivery.held import HeldBatches
from notifier.delivery.limits import Limits
from notifier.delivery.line import Line
from notifier.delivery.outbox import Outbox
from notifier.delivery.recorder import Recorder
from notifier.delivery.sender import Sender
from notifier.models import OnUnknown
from notifier.storage.database import Pool

TICK = 0.01
"""Seconds between two measurements of the event loop's lag, while batches are in hand."""
NO_WORK = 0.25
"""Seconds until the next check while no batch is in hand."""


class Engine:
    """The parts that send through one gateway, and the signals between them.

    ``concurrency`` is requests under way, ``rate`` messages a second over all replicas (0: no limit), ``timeout``
    seconds for a request. ``finished`` is set when no batch of some mailing is left in hand.
    """

    def __init__(
        self,
        db: Pool,
        replica: int,
        gateway: Gateway,
        *,
        concurrency: int,
        rate: float,
        timeout: float,
        on_unknown: OnUnknown,
        default_zone: ZoneInfo,
        finished: Signal,
    ) -> None:
        self._record, self._feed, self._start, self._tell = Signal(), Signal(), Signal(), Signal()
        self._news = Signal(self._feed)  # something may have become due
        clock = Clock()
        self.limits = Limits(
            db,
            gateway.name,
            clock,
            concurrency=concurrency,
            rate=rate,
            timeout=timeout,
            identity=lambda: gateway.identity,
            tell=self._tell,
            changed=Signal(self._start, self._news),
        )
        self.concurrency = Concurrency(self.limits)
        self.held = HeldBatches(default_zone)
        self.line = Line()
        self.outbox = Outbox(self._record)
        self.feeder = Feeder(
            db,
            replica,
            self.held,
            self.line,
            self.limits,
            self.concurrency,
            clock,
            news=self._news,
            record=self._record,
        )
        self.sender = Sender(
            gateway,
            self.limits,
            self.concurrency,
            self.line,
            self.outbox,
            clock,
            on_unknown=on_unknown,
            more=Signal(self._record, self._feed),
            urgent=self._record,
        )
        self.recorder = Recorder(
            db,
            replica,
            self.held,
            self.line,
            self.outbox,
            self.limits,
            self.concurrency,
            clock,
            record=self._record,
            start=self._start,
            feed=self._feed,
            finished=finished,
        )

    def loops(self) -> list[Loop]:
        """Return the loops that make it run."""
        return [
            Loop("limits", self.limits.poll, self._tell),
            Loop("feed", self.feeder.poll, self._feed),
            Loop("recorder", self.recorder.poll, self._record),
            Loop("start", self.sender.start, self._start),
            Loop("lag", self._measure_lag),
        ]

    def look(self) -> None:
        """Something may have become due, or may be started."""
        self._start.set()
        self._news.set()

    def wake(self) -> None:
        """Something was changed, perhaps what is in hand, perhaps the gateway: ask the database."""
        self._tell.set()
        self._record.set()
        self.look()

    def stop(self) -> None:
        """Claim nothing more, and give back what is not started; `is_idle` says when that is done."""
        self.feeder.stop()
        self.recorder.stop()
        self._record.set()

    def is_idle(self) -> bool:
        """Whether nothing is under way and everything is committed."""
        return not self.concurrency.inflight and not self.feeder.is_feeding and self.recorder.is_idle()

    async def _measure_lag(self) -> float:
        """Measure the event loop's lag; it limits what is under way, since the API shares the loop."""
        if not self.held:
            self.concurrency.reset()
            return NO_WORK
        asked = time.monotonic()
        await asyncio.sleep(TICK)
        lag = time.monotonic() - asked - TICK
        telemetry.LOOP_LAG.set(max(0.0, lag))  # uvloop's timers have whole milliseconds, and fire up to one too early
        self.concurrency.adjust(lag)
        if self.line:
            self._start.set()
        return 0.0
