"""The control connection: its lock says that a replica lives, and another sees it go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from notifier.delivery import scheduler, session
from notifier.delivery.session import Session
from notifier.storage import replicas
from notifier.storage.database import Pool
from tests.conftest import poll_until
from tests.delivery.conftest import World


@asynccontextmanager
async def a_session(db: Pool, replica: int, **calls: Any) -> AsyncIterator[Session]:
    names = ("on_news", "on_locks", "on_held", "on_lost")
    session = Session(db, replica, **{name: calls.get(name, lambda *_: None) for name in names})
    try:
        yield session
    finally:
        await session.close()


async def held(own: Session) -> None:
    """Poll until the lock is held, on a connection that hears itself."""

    async def so() -> bool:
        await own.poll()
        return own.held

    await poll_until(so)


async def registered(db: Pool, name: str) -> int:
    """A replica that has said that it holds its lock."""
    number = await replicas.register(db, name)
    await replicas.beat(db, number, name, session=True)
    await replicas.beat(db, number, name, session=True)
    return number


async def test_a_lock_goes_with_its_connection(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "TRUSTED_AFTER", 0.0)
    one, other = await registered(db, "one"), await registered(db, "other")
    seen: list[set[int] | None] = []
    async with a_session(db, one, on_locks=seen.append) as mine:
        async with a_session(db, other) as theirs:
            await held(mine)
            await held(theirs)
            await mine.poll()
            assert seen[-1] == set()

        async def free() -> bool:
            await mine.poll()
            return seen[-1] == {other}

        await poll_until(free)


async def test_a_connection_that_is_cut_is_made_again_and_a_young_one_shows_nothing(db: Pool) -> None:
    lost: list[int] = []
    seen: list[set[int] | None] = []
    number = await registered(db, "one")
    async with a_session(db, number, on_lost=lambda: lost.append(1), on_locks=seen.append) as own:
        await held(own)
        await db.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
        await poll_until(lambda: lost)
        assert not own.held
        assert seen[-1] is None
        await held(own)
        await own.poll()
        assert not any(isinstance(free, set) for free in seen)


async def test_a_connection_that_broke_a_moment_ago_goes_back_without_its_ears(db: Pool) -> None:
    """The driver has seen its end and has not tidied it up yet; a pool warns of whoever hands listeners on."""
    async with a_session(db, await registered(db, "one")) as own:
        await held(own)
        own._connection._con._protocol.abort()
        await own.close()
        await held(own)


async def test_a_connection_that_cannot_listen_is_not_kept(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    add_listener, tries = asyncpg.Connection.add_listener, 0

    async def fails_once(self: Any, *given: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise asyncpg.QueryCanceledError("too slow")
        await add_listener(self, *given)

    monkeypatch.setattr(asyncpg.Connection, "add_listener", fails_once)
    async with a_session(db, await registered(db, "one")) as own:
        with pytest.raises(asyncpg.QueryCanceledError):
            await own.poll()
        await held(own)
        assert tries == 2


async def test_who_does_not_hear_itself_does_not_say_that_it_holds_a_lock(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a pooler in transaction mode hands the word to whoever uses the server's connection at that moment
    async def nowhere(*_: Any) -> None:
        pass

    monkeypatch.setattr(replicas, "call", nowhere)
    async with a_session(db, await registered(db, "one")) as own:
        for _ in range(3):
            await own.poll()
        assert not own.held


async def test_a_killed_replicas_work_is_taken_over_long_before_its_heartbeat_is_missed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "TRUSTED_AFTER", 0.0)
    monkeypatch.setattr(scheduler, "DEAD_AFTER", 1_000.0)
    world.simulator.script(latency=50)
    await world.clients(300)
    victim = await world.replica(concurrency=10)

    async def holds_its_lock() -> bool:
        return bool(await world.db.fetchval("SELECT bool_and(session) FROM replicas"))

    await poll_until(holds_its_lock)
    mailing = await world.mailing()
    await poll_until(lambda: victim.sender is not None and victim.sender.inflight)
    await world.replica(concurrency=10)
    await world.kill(victim)
    await world.finished(mailing)
    assert await world.counts(mailing) == {"sent": 300}
    assert (await world.outcomes(mailing))["interrupted"] > 0
    await world.check(mailing)


async def test_a_lost_control_connection_is_told_before_others_can_see_a_death_in_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BEAT", 1_000.0)
    replica = await world.replica()

    async def says_so() -> bool:
        return bool(await world.db.fetchval("SELECT session FROM replicas WHERE id = $1", replica.replica))

    async def does_not_say_so() -> bool:
        return not await says_so()

    await poll_until(says_so)
    async with world.db.acquire() as connection:

        async def taken_away() -> bool:
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
            return await replicas.lock(connection, replica.replica)

        await poll_until(taken_away)
        await poll_until(does_not_say_so)
        await connection.execute("SELECT pg_advisory_unlock_all()")
    await poll_until(says_so)
