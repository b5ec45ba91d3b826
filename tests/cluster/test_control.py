"""The control connection: its lock says that a replica lives, and another sees it go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from notifier.cluster import control
from notifier.cluster.control import ControlConnection
from notifier.storage import replicas
from notifier.storage.database import Pool
from tests.conftest import poll_until
from tests.delivery.conftest import cut_control_connections


@asynccontextmanager
async def a_session(db: Pool, replica: int, **calls: Any) -> AsyncIterator[ControlConnection]:
    names = ("on_news", "on_locks", "on_held", "on_lost")
    session = ControlConnection(db, replica, **{name: calls.get(name, lambda *_: None) for name in names})
    try:
        yield session
    finally:
        await session.close()


async def held(own: ControlConnection) -> None:
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
    monkeypatch.setattr(control, "TRUSTED_AFTER", 0.0)
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
        await cut_control_connections(db)
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
