"""Schedulers on a real database, in front of the real simulated gateway."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextvars import ContextVar, copy_context
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tornado.ioloop import IOLoop

from chaos.stage import PATIENCE
from notifier import policy
from notifier.cluster.loops import Signal
from notifier.delivery.engine import Engine
from notifier.delivery.gateway import Gateway
from notifier.delivery.planner import Planner
from notifier.delivery.scheduler import Scheduler
from notifier.models import Filter, Mailing, Message, OnUnknown, Status
from notifier.simulator import Simulator
from notifier.storage import audience, audit, mailings, messages, replicas, statistics
from notifier.storage.database import Db, Pool, create_pool
from notifier.storage.installation import Hold
from tests.conftest import poll_until


@pytest.fixture
def simulator() -> Iterator[Simulator]:
    """The simulated gateway in a process of its own."""
    with Simulator() as running:
        yield running


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come after hundredths of a second instead of seconds."""
    monkeypatch.setattr(policy, "BASE", 0.05)
    monkeypatch.setattr(policy, "CAP", 0.2)


async def cut_control_connections(db: Db) -> None:
    """Terminate whoever holds an advisory lock in this database; other tests have theirs in the same server."""
    await db.execute(
        """
        SELECT pg_terminate_backend(l.pid)
        FROM pg_locks l JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
        WHERE l.locktype = 'advisory' AND l.pid <> pg_backend_pid()
        """
    )


REPLICA: ContextVar[int | None] = ContextVar("REPLICA", default=None)


class World:
    """A database with clients, a gateway, and the replicas of a test. Each replica has connections of its own."""

    def __init__(self, db: Pool, dsn: str, simulator: Simulator) -> None:
        self.db = db
        self.simulator = simulator
        self.schedulers: list[Scheduler] = []
        self.gateways: list[Gateway] = []
        self._dsn = dsn
        self._pools: dict[Scheduler, Pool] = {}
        self._tasks: defaultdict[int | None, set[asyncio.Task[Any]]] = defaultdict(set)
        asyncio.get_running_loop().set_task_factory(self._task)

    def _task(self, loop: asyncio.AbstractEventLoop, coro: Any, **given: Any) -> asyncio.Task[Any]:
        """Make a task, and note whose it is: tasks inherit the context of whoever makes them."""
        task = asyncio.Task(coro, loop=loop, **given)
        mine = self._tasks[REPLICA.get()]
        mine.add(task)
        task.add_done_callback(mine.discard)
        return task

    async def clients(self, count: int, *, timezone: str | None = None, first: int = 1) -> None:
        await self.db.execute(
            "INSERT INTO clients (phone, operator_code, timezone) "
            "SELECT 79000000000 + i, '900', $3 FROM generate_series($1::bigint, $2::bigint) i",
            first,
            first + count - 1,
            timezone,
        )

    async def mailing(self, **given: Any) -> Mailing:
        """A mailing to everybody that starts at once and ends in an hour, unless ``given`` says otherwise."""
        values: dict[str, Any] = {
            "name": None,
            "text": "Здравствуйте!",
            "filter": Filter(),
            "starts_at": None,
            "ends_at": datetime.now(UTC) + timedelta(hours=1),
            "window": None,
            "priority": 0,
            "draft": False,
        }
        mailing = await mailings.create(self.db, **(values | given))
        for scheduler in self.schedulers:
            scheduler.wake()
        return mailing

    async def replica(self, **given: Any) -> Scheduler:
        """Start one more scheduler."""
        options: dict[str, Any] = {
            "concurrency": 20,
            "rate": 0.0,
            "timeout": 1.0,
            "on_unknown": OnUnknown.RETRY,
            "pause_all": False,
            "hold": Hold(self.db, None),
        }
        options |= given
        gateway = Gateway("default", options.pop("url", self.simulator.url), "token", timeout=options["timeout"])
        pool = await create_pool(self._dsn, size=10, application_name="test")
        scheduler = Scheduler(pool, name="test", gateway=gateway, default_zone=ZoneInfo("UTC"), **options)
        self.gateways.append(gateway)
        self.schedulers.append(scheduler)
        self._pools[scheduler] = pool
        context = copy_context()
        context.run(REPLICA.set, id(scheduler))
        await asyncio.get_running_loop().create_task(scheduler.start(), context=context)
        return scheduler

    async def engine(self, db: Any = None, **given: Any) -> Engine:
        """Return the engine of one more replica; its loops do not run: the test polls its parts."""
        options: dict[str, Any] = {"concurrency": 50, "rate": 0.0, "timeout": 1.0, "on_unknown": OnUnknown.RETRY}
        options |= given
        gateway = Gateway("default", self.simulator.url, "token", timeout=options["timeout"])
        self.gateways.append(gateway)
        replica = await replicas.register(self.db, "test")
        return Engine(db or self.db, replica, gateway, default_zone=ZoneInfo("UTC"), finished=Signal(), **options)

    async def planned(self) -> None:
        """Begin and plan all mailings that are due."""
        await audience.begin_due(self.db)
        planner = Planner(self.db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)
        while await audience.unplanned(self.db):
            await planner.poll()

    async def loaded(self, count: int, **given: Any) -> Engine:
        """Return an engine that has claimed and loaded so many messages of one mailing."""
        await self.clients(count)
        await self.mailing()
        await self.planned()
        engine = await self.engine(**given)
        await engine.limits.poll()
        await engine.feeder.poll()
        assert [batch.staged for batch in engine.held] == [count]
        return engine

    async def marked(self, count: int, **given: Any) -> Engine:
        """Return an engine that may start so many messages of one mailing, and has started none."""
        engine = await self.loaded(count, **given)
        await engine.recorder.poll()
        assert len(engine.line) == count
        return engine

    async def stop(self, scheduler: Scheduler, grace: float = 0.5) -> None:
        """Stop a scheduler as its process would."""
        await scheduler.stop(grace)
        await self._pools.pop(scheduler).close()
        self.schedulers.remove(scheduler)

    async def kill(self, scheduler: Scheduler) -> None:
        """End a scheduler as kill -9 would: nothing is given back, nothing recorded.

        Loops and requests are cut off in the same turn of the loop, so what is under way stays without a result.
        """
        self._pools.pop(scheduler).terminate()
        for task in self._tasks[id(scheduler)]:
            task.cancel()
        await scheduler.stop(0)  # ends the loops, which start again by themselves; the database hears nothing of it
        self.schedulers.remove(scheduler)

    async def counts(self, mailing: Mailing) -> dict[str, int]:
        """The statistics, without the zeros; checked against the sum and against the rows."""
        numbers = await statistics.of_mailing(self.db, mailing.id)
        assert all(n >= 0 for n in numbers.messages.values()), numbers.messages
        assert sum(numbers.messages.values()) == numbers.audience
        assert sum(failure.count for failure in numbers.failures) == numbers.messages[Status.FAILED]
        return {status.value: n for status, n in numbers.messages.items() if n}

    async def until(self, mailing: Mailing, **expected: int) -> None:
        """Wait until the mailing's messages stand exactly so."""
        seen: dict[str, int] = {}

        async def so() -> bool:
            nonlocal seen
            seen = await self.counts(mailing)
            return seen == expected

        try:
            await poll_until(so, progress=lambda: seen)
        except AssertionError:
            raise AssertionError(f"{seen} instead of {expected}") from None

    async def status(self, mailing: Mailing) -> str:
        return (await mailings.get(self.db, mailing.id)).status.value

    async def finished(self, mailing: Mailing) -> None:
        """Wait until the mailing is finished."""

        async def so() -> bool:
            return await self.status(mailing) == "finished"

        await poll_until(so, progress=lambda: self.counts(mailing))

    async def messages(self, mailing: Mailing) -> list[Message]:
        """All messages with their timelines, oldest first."""
        page, _ = await messages.of_mailing(self.db, mailing.id, None, None, 200)
        return [await messages.get(self.db, message.id) for message in reversed(page)]

    async def outcomes(self, mailing: Mailing) -> Counter[str]:
        """The ledger's outcomes of a mailing."""
        rows = await self.db.fetch("SELECT outcome FROM attempts WHERE mailing_id = $1", mailing.id)
        return Counter(row["outcome"] for row in rows)

    async def check(self, mailing: Mailing) -> None:
        """The audit finds no breach; sent ids were accepted, copies ≤ 1 + attempts in doubt."""
        assert [str(finding) async for finding in audit.run(self.db) if finding.breach] == []
        own = {row["id"] for row in await self.db.fetch("SELECT id FROM messages WHERE mailing_id = $1", mailing.id)}
        accepted = Counter(entry.id for entry in self.simulator.entries() if entry.accepted and entry.id in own)
        sent = {
            row["message_id"]
            for row in await self.db.fetch(
                "SELECT message_id FROM attempts WHERE mailing_id = $1 AND outcome = 'accepted'", mailing.id
            )
        }
        assert sent <= accepted.keys()
        in_doubt = {
            row["message_id"]: row["n"]
            for row in await self.db.fetch(
                "SELECT message_id, count(*) AS n FROM attempts WHERE mailing_id = $1 "
                "AND outcome IN ('unknown', 'interrupted') GROUP BY 1",
                mailing.id,
            )
        }
        assert {message: n for message, n in accepted.items() if n > 1 + in_doubt.get(message, 0)} == {}
        assert accepted.keys() - sent <= in_doubt.keys()


@pytest.fixture
def world(db: Pool, dsn: str, simulator: Simulator, io_loop: IOLoop) -> Iterator[World]:
    """Clients, a gateway and no replica yet; those that a test starts are stopped after it."""

    async def made() -> World:
        return World(db, dsn, simulator)

    world = io_loop.run_sync(made)
    yield world

    async def stop() -> None:
        for scheduler in list(world.schedulers):
            await world.stop(scheduler)
        for gateway in world.gateways:
            await gateway.close()

    io_loop.run_sync(stop, timeout=PATIENCE)
