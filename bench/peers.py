"""Messages a second beside job queues that others made, each at its best settings found: the same requests.

They are the extra `peers`; `make bench ONLY=peers` installs it. A peer's rate is from its first request to its last
answer, as ours. PgQueuer and Procrastinate run in the same process, on a durable database of the same kind, with
aiohttp's session as fast as it goes (`bench/plain.py`) and as many requests at once; Celery has processes of its own,
Redis, and a synchronous client with keep-alive that has one request under way in each. Medians of a few rounds.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import asyncpg
import uvloop

from bench.celery_peer import WORKERS, celery_and_redis, redis_server
from bench.nginx import Missing
from bench.plain import Plain
from bench.throughput import CONNECTIONS, ROUNDS, Row, a_database, engine
from notifier.process import collect_rarely

EXTRA = ("celery", "pgqueuer", "procrastinate", "redis", "urllib3")
MESSAGES = 10_000
PROCRASTINATE_MESSAGES = 2_000  # it takes its time
CELERY_MESSAGES = 5_000
PGQUEUER_TARGET, PROCRASTINATE_TARGET, CELERY_TARGET = 2.2, 20, 35


class Sending:
    """Sends message after message and keeps the time."""

    def __init__(self, plain: Plain) -> None:
        self._plain = plain
        self._started = self._ended = 0.0
        self.sent = 0

    async def send(self, message_id: int) -> None:
        self._started = self._started or time.perf_counter()
        await self._plain.send(message_id)
        self.sent += 1
        self._ended = time.perf_counter()

    @property
    def rate(self) -> float:
        """Messages a second."""
        return self.sent / (self._ended - self._started)


async def pgqueuer(url: str, dsn: str, messages: int) -> float:
    """Messages a second of PgQueuer, which claims in batches and writes what is done in batches.

    Its tables are logged, its commits synchronous, and three rows a message stay in its log: queued, picked, successful
    (1,570 bytes of WAL a message from claim to log). A session tuned like that, uvloop and the product's settings of
    the garbage collector are more than its users have by themselves. On two cores shared with other work: 2,730 with
    all three, 2,080 without the last, 1,970 with session and JSON as usual, 1,500 without uvloop too. A bare loop with
    that session and without a database sends 1.3 to 1.7 times as many as the first.

    A claim is committed before its requests, as our mark is. What a killed process had claimed is all done again once
    its heartbeat is old (30 s), started or not, uncounted and without a limit: of 256 claimed at a kill -9, 191 had
    been started and were started again, and `attempts` stayed 0. An exception deletes the job; its log keeps the
    traceback. Status code and duration of a request are not kept. Before a request it looks at no end, pause, local
    hours or rate. Phone and text cost it no query here: a payload is an id.
    """
    from pgqueuer import PgQueuer
    from pgqueuer.types import QueueExecutionMode

    async with (
        asyncpg.create_pool(dsn, min_size=9, max_size=9) as pool,
        Plain(url) as plain,
    ):
        queue = PgQueuer.from_asyncpg_pool(pool)
        await queue.qm.queries.install()
        sending = Sending(plain)
        free = asyncio.Semaphore(CONNECTIONS)

        async def send(job: Any) -> None:
            async with free:
                await sending.send(int(job.payload))

        queue.entrypoint("send")(send)
        for first in range(1, messages + 1, 1_000):
            ids = range(first, min(first + 1_000, messages + 1))
            await queue.qm.queries.enqueue(["send"] * len(ids), [b"%d" % i for i in ids], [0] * len(ids))
        await pool.execute("ANALYZE")
        collect_rarely()
        await queue.run(
            timedelta(seconds=1),
            batch_size=CONNECTIONS,  # 64 with 128 jobs in hand was slower, and so was 500
            max_concurrent_tasks=CONNECTIONS * 2,
            mode=QueueExecutionMode.drain,
        )
        assert sending.sent == messages, f"{sending.sent} of {messages} sent"
        return sending.rate


async def procrastinated(url: str, dsn: str, messages: int) -> float:
    """Messages a second of Procrastinate, which claims and finishes job by job."""
    import procrastinate

    app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=dsn, min_size=9, max_size=9))
    async with app.open_async(), Plain(url) as plain:
        await app.schema_manager.apply_schema_async()
        sending = Sending(plain)

        async def send(message_id: int) -> None:
            await sending.send(message_id)

        task = app.task(send, name="send")
        await task.batch_defer_async(*({"message_id": i} for i in range(1, messages + 1)))
        collect_rarely()
        await app.run_worker_async(
            concurrency=CONNECTIONS, wait=False, install_signal_handlers=False, delete_jobs="successful"
        )
        assert sending.sent == messages, f"{sending.sent} of {messages} sent"
        return sending.rate


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table; raises Missing without the extra, or without redis-server."""
    if not all(map(find_spec, EXTRA)):
        raise Missing("the extra `peers` is needed: make bench ONLY=peers")
    redis_server()
    peers: tuple[tuple[str, Callable[[str], float], float], ...] = (
        ("PgQueuer", lambda dsn: uvloop.run(pgqueuer(url, dsn, MESSAGES)), PGQUEUER_TARGET),
        (
            "Procrastinate",
            lambda dsn: uvloop.run(procrastinated(url, dsn, PROCRASTINATE_MESSAGES)),
            PROCRASTINATE_TARGET,
        ),
        (f"{WORKERS} workers of Celery", lambda _: celery_and_redis(url, CELERY_MESSAGES), CELERY_TARGET),
    )
    for name, peer, target in peers:
        found = []
        for _ in range(ROUNDS):
            with a_database() as dsn:
                theirs, ours = peer(dsn), uvloop.run(engine(url, dsn, MESSAGES))
            found.append((ours / theirs, ours, theirs))
        ratio, ours, theirs = sorted(found)[ROUNDS // 2]
        question = f"messages a second, {CONNECTIONS} connections, beside {name}"
        yield question, f"{ours:,.0f}", f"{theirs:,.0f}", f"{ratio:.1f}", f"{target}", ratio >= target
