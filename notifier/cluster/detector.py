"""Which replicas are dead and which batches are stuck."""

from __future__ import annotations

from collections.abc import Container

from notifier.storage.queue import Owned

# A peer without a heartbeat for so long is dead: four beats, and longer than any pause of a healthy process.
DEAD_AFTER = 8.0
# So is one whose session lock was free at two checks this far apart (seconds): one check may fall between the loss of a
# connection and its return.
FREE_FOR = 0.7
# Everything under way when a mailing ended is through long before (seconds): promise 3 gives 60.
SETTLED_AFTER = 45.0
# A claim that its replica knows nothing of for so long (seconds) was lost with its answer: no statement takes longer.
LOST_CLAIM = 6.0


class FailureDetector:
    """Judges who is dead and what is stuck by its own observations, on its own monotonic clock.

    Neither a step of a clock nor an outage of the database makes anybody dead: after a gap in its own observations a
    detector knows nothing, and begins anew.
    """

    def __init__(self) -> None:
        self._beats: dict[int, tuple[int, float]] = {}  # replica → (counter, unchanged since)
        self._batches: dict[tuple[int, int], tuple[Owned, float]] = {}  # (batch, owner) → (as seen, unchanged since)
        self._over: dict[tuple[int, int], float] = {}  # (batch, owner) → seen with its mailing over since
        self._last = 0.0
        self._free: dict[int, float] = {}  # replica → its lock is free since
        self._doubted: set[int] = set()  # those whose heartbeat goes on without their lock
        self._locks_seen = 0.0

    def observe(self, beats: dict[int, int], owned: list[Owned], now: float) -> None:
        """Take in the heartbeat counters and owned batches as they were just read, at ``time.monotonic() == now``."""
        if now - self._last > DEAD_AFTER / 2:
            self._beats, self._batches, self._over = {}, {}, {}
        old, before, self._last = self._beats, self._last, now
        for peer, since in list(self._free.items()):
            if before >= since and beats.get(peer) != old.get(peer, (None,))[0]:
                self._doubted.add(peer)  # its heartbeat goes on: a free lock says nothing until it is held again
                del self._free[peer]
        self._beats = {peer: old[peer] if old.get(peer, (None,))[0] == n else (n, now) for peer, n in beats.items()}
        keys = {(batch.id, batch.owner): batch for batch in owned}
        seen = self._batches
        self._batches = {key: seen[key] if seen.get(key, (None,))[0] == b else (b, now) for key, b in keys.items()}
        self._over = {key: self._over.get(key, now) for key, batch in keys.items() if batch.over}

    def forget_batches(self) -> None:
        """Begin anew to watch for progress: there could be none."""
        self._batches = {key: (batch, self._last) for key, (batch, _) in self._batches.items()}

    def observe_locks(self, free: set[int] | None, now: float) -> None:
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

    def is_leader(self, me: int) -> bool:
        """Whether ``me`` is the living replica with the lowest number: the one that does what one should do.

        For some seconds two may find so of themselves, or nobody: what a leader does must be harmless when done twice.
        """
        return me == min(self._beats.keys() - self.dead(), default=None)

    def to_reclaim(self, me: int, in_hand: Container[int], stuck_after: float) -> list[Owned]:
        """Return the batches to reclaim: of the dead, without progress for ``stuck_after`` seconds, still owned
        SETTLED_AFTER seconds after the end, and those of ``me`` that it does not have ``in_hand``: the answer to its
        claim was lost.

        An owner without a row may just have registered, or its row was removed while it was stopped and comes back with
        its next heartbeat; so its batches are reclaimed only after DEAD_AFTER seconds without progress.
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
