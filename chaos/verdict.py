"""What came of a run: the oracle's word and the audit's on it, and how the API answered meanwhile."""

from __future__ import annotations

import asyncio
import http.client
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from chaos import oracle
from chaos.stage import Stage, until
from notifier.simulator import Entry
from notifier.storage import audit
from notifier.storage.database import create_pool

# Seconds between two calls of the API while it is watched.
WATCH_EVERY = 0.05


class Lacking(Exception):
    """This machine lacks what the fault is made with; the text says how to get it."""


@dataclass(slots=True)
class Figures:
    """The numbers of one fault, or the sum of several runs of it; ``slowest`` is the API's slowest answer in seconds.

    ``notes`` are figures of its own, as people read them.
    """

    runs: int = 0
    messages: int = 0
    sent: int = 0
    lost: int = 0
    doubled: int = 0
    in_doubt: int = 0
    slowest: float = 0.0
    breaches: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __add__(self, other: Figures) -> Figures:
        return Figures(
            self.runs + other.runs,
            self.messages + other.messages,
            self.sent + other.sent,
            self.lost + other.lost,
            self.doubled + other.doubled,
            self.in_doubt + other.in_doubt,
            max(self.slowest, other.slowest),
            self.breaches + other.breaches,
            self.notes + other.notes,
        )


class Row(NamedTuple):
    """A row of the fault matrix: its number, the fault in words, and the program that makes it.

    ``run`` raises AssertionError when what the row is to show is not so, and `Lacking`.
    """

    number: int
    fault: str
    run: Callable[[], Figures]


@dataclass(slots=True)
class Watched:
    """What the API answered while it was watched: seconds of each answer, and how many were 503 or none."""

    latencies: list[float] = field(default_factory=list)
    unavailable: int = 0
    none: int = 0
    wrong: list[str] = field(default_factory=list)

    @property
    def slowest(self) -> float:
        """Seconds; 0 when nobody was asked."""
        return max(self.latencies, default=0.0)

    @property
    def p99(self) -> float:
        """Seconds in which 99 of 100 answers came; 0 when nobody was asked."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)] if self.latencies else 0.0


@contextmanager
def watching(stage: Stage) -> Iterator[Watched]:
    """Ask the living replicas in turn for the statistics, as long as the block runs.

    503 with Retry-After is an answer; no answer counts as ``none`` (a replica that was just killed), anything else as
    ``wrong``.
    """
    watched, over = Watched(), threading.Event()

    def watch() -> None:
        turn = 0
        while not over.wait(WATCH_EVERY):
            up = [replica for replica in stage.living() if replica.url]
            if not up:
                continue
            turn += 1
            try:
                reply = up[turn % len(up)].call("GET", "/api/v1/statistics")
            except (OSError, http.client.HTTPException):
                watched.none += 1
                continue
            watched.latencies.append(reply.seconds)
            if reply.status == 503 and "Retry-After" in reply.headers:
                watched.unavailable += 1
            elif reply.status != 200:
                watched.wrong.append(f"{reply.status} {reply.body}")

    thread = threading.Thread(target=watch, name="watching")
    thread.start()
    try:
        yield watched
    finally:
        over.set()
        thread.join()


def judge(
    stage: Stage,
    watched: Watched | None = None,
    *,
    shown: Callable[[datetime], datetime] = lambda at: at,
    **known: Any,
) -> Figures:
    """The figures of a run that is over, with every rule that was broken; ``known`` are fields of `oracle.Run`.

    ``shown`` is what the database's clock showed at a moment of ours, where it is another.
    """
    entries = [entry._replace(at=shown(entry.at)) for entry in stage.gateway.entries()]
    return asyncio.run(_judge(stage, watched or Watched(), entries, known))


async def _judge(stage: Stage, watched: Watched, entries: list[Entry], known: dict[str, Any]) -> Figures:
    pool = await create_pool(stage.database.dsn, size=2, application_name="oracle", statement_timeout=600)
    try:
        found = [str(finding) async for finding in audit.run(pool) if finding.breach]
        alive = [replica.id for replica in stage.living()]
        given: dict[str, Any] = {"alive": alive, "audit": found, "latencies": watched.latencies}
        facts = await oracle.gather(pool, entries, oracle.Run(**(given | known)), ZoneInfo("UTC"))
    finally:
        await pool.close()
    breaches = oracle.check(facts)
    numbers = oracle.summary(facts, breaches)
    wrong = [f"api: {answer}" for answer in watched.wrong]
    return Figures(
        runs=1,
        messages=numbers.messages,
        sent=numbers.sent,
        lost=numbers.lost,
        doubled=numbers.doubled,
        in_doubt=numbers.in_doubt,
        slowest=watched.slowest,
        breaches=[str(breach) for breach in breaches] + wrong[:10],
    )


def together(figures: Sequence[Figures]) -> Figures:
    """The sum of several runs."""
    return sum(figures, Figures())


def timed(check: Callable[[], Any], *, progress: Callable[[], Any] = lambda: None) -> float:
    """Seconds until ``check`` is true, asked every 10 ms (see `until`)."""
    started = time.monotonic()
    until(check, every=0.01, progress=progress)
    return time.monotonic() - started
