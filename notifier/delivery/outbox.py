"""Results on their way from the sender to the recorder."""

from __future__ import annotations

from notifier.cluster.loops import Signal
from notifier.delivery.held import HeldBatch
from notifier.storage.recording import Result

# So many results make a record due at once; fewer wait a moment for more (recorder.py).
FULL = 250


class Outbox:
    """Results that no record has taken yet; ``record`` is set by the first, and when there are `FULL`."""

    def __init__(self, record: Signal) -> None:
        self._record = record
        self._results: list[tuple[HeldBatch, Result]] = []

    def __len__(self) -> int:
        return len(self._results)

    def add(self, batch: HeldBatch, result: Result) -> None:
        """Hand a result over."""
        self._results.append((batch, result))
        if len(self._results) in (1, FULL):
            self._record.set()

    def take(self) -> list[tuple[HeldBatch, Result]]:
        """Take all out."""
        results, self._results = self._results, []
        return results
