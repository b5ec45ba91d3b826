"""Claims due batches, loads chunks of them, and stages them for their watermark.

Ids outside their client's local hours go back into the queue, due when the window opens.
"""

from __future__ import annotations

import time

from notifier import telemetry
from notifier.cluster.loops import Signal
from notifier.delivery.clock import Clock
from notifier.delivery.concurrency import Concurrency
from notifier.delivery.held import CHUNK, Chunk, HeldBatch, HeldBatches
from notifier.delivery.limits import Limits
from notifier.delivery.line import Line
from notifier.errors import Stale
from notifier.storage import queue
from notifier.storage.database import Db
from notifier.storage.queue import Claimed, Loaded

# Marked ids without a ledger row are at most concurrency + AHEAD: what a kill -9 can leave in doubt (promise 5).
AHEAD = 400
# And not more are marked than can be started in so many seconds, so that few wait when the gateway is slow.
HORIZON = 0.4
# Every so many claims retries are asked for first, so that neither they nor first tries starve.
RETRY_TURN = 5
# Other mailings' due batches are looked for this often (seconds), also while there is enough to do.
LOOK_AROUND = 0.1
# Batches in hand at once; each takes part in every record.
MAX_HELD = 64
# Seconds until the next poll while batches are in hand, and while none is due.
HOLDING, IDLE = 0.02, 1.0


class Feeder:
    """Keeps enough messages of one gateway lined up. ``news``: something may have become due. ``record`` is set when
    something is staged.
    """

    def __init__(
        self,
        db: Db,
        replica: int,
        held: HeldBatches,
        line: Line,
        limits: Limits,
        concurrency: Concurrency,
        clock: Clock,
        *,
        news: Signal,
        record: Signal,
    ) -> None:
        self._db = db
        self._replica = replica
        self._held = held
        self._line = line
        self._limits = limits
        self._concurrency = concurrency
        self._clock = clock
        self._news = news
        self._record = record
        self._is_stopping = False
        self.is_feeding = False  # a claim may be under way
        self._last_mailing = 0
        self._claims = 0
        self._looked_at = 0.0
        self._found = True  # the last claim found something

    def stop(self) -> None:
        """Claim nothing more."""
        self._is_stopping = True

    async def poll(self) -> float:
        """Claim what is due and load the next chunks; seconds until there may be more to do."""
        if self._is_stopping or not self._limits.usable():
            return IDLE
        self.is_feeding = True
        try:
            return await self._feed()
        finally:
            self.is_feeding = False

    async def _feed(self) -> float:
        room = self._room()
        # Not for a handful, while there is something to start: each load is a round trip.
        if room >= min(CHUNK, self._limits.concurrency) or (room > 0 and not self._line):
            await self._claim()
            if chunks := self._held.next_chunks(room):
                await self._load(chunks)
                return 0.0
        if self._held:
            return HOLDING
        seconds = await queue.seconds_to_next(self._db)
        if seconds is None:
            return IDLE
        return min(IDLE, seconds + 0.001) if seconds > 0 else LOOK_AROUND

    def _room(self) -> int:
        """How many more ids may be marked: free connections now, and what is started within the horizon.

        Results that wait to be recorded need not be counted: they are committed with the very record that would carry
        these watermarks.
        """
        self._concurrency.measure_rate(time.monotonic())
        lined_up = len(self._line) + sum(batch.staged for batch in self._held)
        free = self._concurrency.free() + min(AHEAD, int(self._concurrency.rate * HORIZON)) - lined_up
        return min(free, self._limits.room(HORIZON) - lined_up)

    async def _claim(self) -> None:
        """Have enough unloaded ids in hand, and look around for mailings that have nothing in hand here."""
        now = time.monotonic()
        if self._news.take():
            self._looked_at = 0.0
        enough = sum(batch.unloaded for batch in self._held) >= queue.BATCH_SIZE
        if len(self._held) >= MAX_HELD or ((enough or not self._found) and now - self._looked_at < LOOK_AROUND):
            return
        self._looked_at = now
        busy = [batch.mailing.id for batch in self._held] if enough else []
        self._claims += 1
        claimed: list[Claimed] = []
        if self._claims % RETRY_TURN == 0:  # retry batches are small: take several
            claimed = await queue.claim(
                self._db, self._replica, after=self._last_mailing, busy=busy, retries=True, limit=8
            )
        if not claimed:
            claimed = await queue.claim(self._db, self._replica, after=self._last_mailing, busy=busy)
        self._found = bool(claimed)
        for batch in claimed:
            telemetry.CLAIMS.inc()
            self._last_mailing = batch.mailing_id
            self._held.add(batch)

    async def _load(self, chunks: list[Chunk]) -> None:
        ids: list[int] = []
        seqs: list[int] = []
        for chunk in chunks:
            claimed = chunk.batch.claimed
            ids += claimed.ids[chunk.start : chunk.end]
            seqs += [claimed.seq] * (chunk.end - chunk.start)
        rows = await queue.load(self._db, ids, seqs)
        position = 0
        for chunk in chunks:
            loaded = rows[position : position + chunk.end - chunk.start]
            position += len(loaded)
            if chunk.batch.takes(chunk):
                await self._stage(chunk.batch, loaded)
        self._record.set()

    async def _stage(self, batch: HeldBatch, loaded: list[Loaded]) -> None:
        """Stage what was loaded, unless a client of it is outside the window: then those are moved first."""
        now = self._clock.latest(time.monotonic())
        if batch.mailing.window is not None and now < batch.mailing.ends_at and _closed(batch, loaded, now):
            await self._reschedule(batch, loaded, now)
            return  # what is open is loaded with the next turn
        batch.stage(loaded)

    async def _reschedule(self, batch: HeldBatch, loaded: list[Loaded], now: float) -> None:
        """Put whoever of a batch is outside the window back into the queue, due when it opens; all of them at once."""
        ids = batch.claimed.ids
        rest = ids[batch.loaded + len(loaded) :]
        loaded = loaded + await queue.load(self._db, rest, [batch.claimed.seq] * len(rest))
        if batch.is_lost or batch.is_releasing:
            return
        mailing = batch.mailing
        moved = {message.id: mailing.opens_at(message.timezone, now) for message in _closed(batch, loaded, now)}
        keep = [*ids[: batch.loaded], *(i for i in ids[batch.loaded :] if i not in moved)]
        try:
            is_done = await queue.reschedule(
                self._db, batch.claimed, keep, list(moved.items()), version=mailing.version
            )
        except Stale:  # an edit, perhaps of the window: what is not staged is loaded again
            await mailing.refresh(self._db)
            return
        except BaseException:
            self._lose(batch)  # whether it was done is unknown, and positions mean nothing without that
            raise
        if is_done:
            batch.keep(keep)
            if not keep:
                self._held.drop(batch)
        elif not batch.is_releasing:  # else the rest was given back meanwhile, with all that was to be moved
            self._lose(batch)

    def _lose(self, batch: HeldBatch) -> None:
        self._held.drop(batch, lost=True)
        self._line.leave_with(batch)


def _closed(batch: HeldBatch, loaded: list[Loaded], now: float) -> list[Loaded]:
    """Return those whose clients may not be texted now (seconds since the epoch)."""
    return [m for m in loaded if not m.recorded and m.phone and not batch.mailing.may_text(m.timezone, now)]
