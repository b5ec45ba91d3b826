from __future__ import annotations

import asyncio
import gc
import os
import socket
import threading
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest

from chaos import proxy as chaos
from chaos.proxy import Proxy
from chaos.stage import PATIENCE
from notifier.storage import database
from notifier.storage.database import AWAY, Pool
from tests.conftest import poll_until

INSERT = "INSERT INTO seen VALUES ($1)"


@pytest.fixture
def proxy(dsn: str) -> Iterator[Proxy]:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE seen (value int)")
    with Proxy(dsn) as proxy:
        yield proxy
    gc.collect()  # a socket that nobody closed warns now, and not in another test


async def open_pool(proxy: Proxy, *, statement_cache: int = 100, statement_timeout: float = 5.0) -> Pool:
    return await database.create_pool(
        proxy.dsn,
        size=3,
        application_name="replica",
        statement_cache=statement_cache,
        statement_timeout=statement_timeout,
    )


def seen(dsn: str) -> list[int]:
    """Return what is committed, asked of the server itself."""
    with psycopg.connect(dsn) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM seen ORDER BY value")]


async def works(pool: Pool) -> bool:
    try:
        return bool(await pool.fetchval("SELECT true"))
    except AWAY:
        return False


# Nothing asked for


@pytest.mark.parametrize("chunk", [1, chaos.CHUNK])
@pytest.mark.parametrize("statement_cache", [0, 100])
async def test_everything_passes_as_it_is(
    dsn: str, proxy: Proxy, statement_cache: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "CHUNK", chunk)
    text = "я" * 10 * min(chunk, 50_000)
    async with await open_pool(proxy, statement_cache=statement_cache) as pool, pool.acquire() as connection:
        assert await connection.fetchval("SELECT $1::text", text) == text
        await connection.executemany(INSERT, [(value,) for value in range(5)])
        await connection.copy_records_to_table("seen", records=[(value,) for value in range(5, 10)])
        async with connection.transaction():
            assert [row["value"] async for row in connection.cursor("SELECT * FROM seen", prefetch=2)] == seen(dsn)
        with pytest.raises(asyncpg.DivisionByZeroError):
            await connection.execute("SELECT 1 / 0")
    assert seen(dsn) == list(range(10))
    assert (proxy.cuts, proxy.lost, proxy.dropped) == (0, 0, 0)


def test_a_target_by_tcp_and_libpq_as_the_client(dsn: str, proxy: Proxy) -> None:
    with Proxy(proxy.dsn) as outer, psycopg.connect(outer.dsn) as connection:
        connection.execute("INSERT INTO seen VALUES (1)")
        connection.commit()
        connection.cancel_safe()
    assert seen(dsn) == [1]


def test_of_a_server_that_is_away_the_client_sees_a_connection_closed() -> None:
    with Proxy("postgresql://nobody@/nothing?host=/nowhere&port=5432") as proxy:
        with pytest.raises(psycopg.OperationalError):
            psycopg.connect(proxy.dsn)


def test_several_hosts_are_refused() -> None:
    with pytest.raises(ValueError, match="several hosts"):
        Proxy("postgresql://nobody@/nothing?host=/one,/two")


def test_the_other_parts_of_the_address_stay() -> None:
    with Proxy("postgresql://me:a%40b@db:5433/name?application_name=x%20y&host=/sockets&port=1") as proxy:
        host = proxy.dsn.removeprefix("postgresql://me:a%40b@127.0.0.1:").split("/")[0]
        assert proxy.dsn == f"postgresql://me:a%40b@127.0.0.1:{host}/name?application_name=x%20y"


# A statement's answer, or the statement, is lost


@pytest.mark.parametrize("chunk", [1, chaos.CHUNK])
@pytest.mark.parametrize("statement_cache", [0, 100])
@pytest.mark.parametrize("happens", [True, False])
async def test_a_commit_that_loses_its_connection(
    dsn: str, proxy: Proxy, happens: bool, statement_cache: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "CHUNK", chunk)
    async with await open_pool(proxy, statement_cache=statement_cache) as pool:
        (proxy.lose_answer if happens else proxy.drop_statement)("COMMIT")
        with pytest.raises(AWAY):
            async with database.transaction(pool) as connection:
                await connection.execute(INSERT, 1)
        assert seen(dsn) == ([1] if happens else [])
        assert (proxy.lost, proxy.dropped) == ((1, 0) if happens else (0, 1))

        async with database.transaction(pool) as connection:
            await connection.execute(INSERT, 2)
        assert seen(dsn) == ([1, 2] if happens else [2])


@pytest.mark.parametrize("chunk", [1, chaos.CHUNK])
@pytest.mark.parametrize("statement_cache", [0, 100])
@pytest.mark.parametrize("happens", [True, False])
async def test_a_prepared_statement_that_loses_its_connection(
    dsn: str, proxy: Proxy, happens: bool, statement_cache: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chaos, "CHUNK", chunk)
    async with await open_pool(proxy, statement_cache=statement_cache) as pool:
        await pool.execute(INSERT, 1)  # with a cache, its text passes here for the last time
        (proxy.lose_answer if happens else proxy.drop_statement)("INTO seen")
        assert await pool.fetchval("SELECT count(*) FROM seen") == 1
        with pytest.raises(AWAY):
            await pool.execute(INSERT, 2)
        assert seen(dsn) == ([1, 2] if happens else [1])
        assert (proxy.lost, proxy.dropped) == ((1, 0) if happens else (0, 1))


@pytest.mark.parametrize("happens", [True, False])
async def test_many_executions_before_one_answer_are_one_statement(dsn: str, proxy: Proxy, happens: bool) -> None:
    async with await open_pool(proxy) as pool:
        (proxy.lose_answer if happens else proxy.drop_statement)("INTO seen")
        with pytest.raises(AWAY):
            await pool.executemany(INSERT, [(1,), (2,), (3,)])
        assert seen(dsn) == ([1, 2, 3] if happens else [])
        await pool.execute(INSERT, 4)
        assert (proxy.lost, proxy.dropped) == ((1, 0) if happens else (0, 1))


async def test_an_answer_that_is_still_due_is_not_taken_for_the_one_to_be_lost(dsn: str, proxy: Proxy) -> None:
    with psycopg.connect(proxy.dsn) as connection:
        proxy.lose_answer("INTO seen")
        connection.pgconn.enter_pipeline_mode()
        for statement in (b"SELECT pg_sleep(0.1)", b"INSERT INTO seen SELECT 1 FROM pg_sleep(0.1)"):
            connection.pgconn.send_query_params(statement, [])
            connection.pgconn.pipeline_sync()
        await poll_until(lambda: proxy.lost)
        connection.close()
    assert seen(dsn) == [1]


async def test_a_fault_happens_so_many_times_and_only_to_what_it_names(dsn: str, proxy: Proxy) -> None:
    async with await open_pool(proxy) as pool:
        proxy.drop_statement("INTO seen", times=2)
        proxy.lose_answer("DELETE")
        for _ in range(2):
            with pytest.raises(AWAY):
                await pool.execute(INSERT, 1)
        await pool.execute(INSERT, 2)
        assert (proxy.lost, proxy.dropped) == (0, 2)
        with pytest.raises(AWAY):
            await pool.execute("DELETE FROM seen")
        assert (proxy.lost, proxy.dropped) == (1, 2)
    assert seen(dsn) == []


# Connections are lost


def test_the_client_sees_a_reset(proxy: Proxy) -> None:
    address = ("127.0.0.1", urlsplit(proxy.dsn).port)
    with socket.create_connection(address, timeout=PATIENCE) as client:
        while not proxy.cut():  # it may not have been accepted yet
            pass
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.refuse()
    with pytest.raises(ConnectionResetError), socket.create_connection(address, timeout=PATIENCE) as client:
        client.recv(1)


async def test_cut_ends_what_runs_and_the_pool_recovers(proxy: Proxy) -> None:
    async with await open_pool(proxy) as pool:
        running = [asyncio.create_task(pool.execute(f"SELECT pg_sleep(60), {number}")) for number in range(2)]
        await poll_until(lambda: pool.get_size() == 2 and pool.get_idle_size() == 0)
        assert proxy.cut() == 2
        for error in await asyncio.gather(*running, return_exceptions=True):
            assert isinstance(error, AWAY)
        assert await poll_until(lambda: works(pool))
        assert proxy.cuts == 2


async def test_cut_of_idle_connections(proxy: Proxy) -> None:
    async with await open_pool(proxy) as pool:
        assert await works(pool)
        assert proxy.cut() == 1
        assert proxy.cut() == 0
        assert await poll_until(lambda: works(pool))
        assert proxy.cuts == 1


async def test_refuse_keeps_newcomers_out_until_accept(proxy: Proxy) -> None:
    async with await open_pool(proxy) as pool, pool.acquire() as old:
        proxy.refuse()
        with pytest.raises(AWAY):
            await pool.execute("SELECT 1")
        assert await old.fetchval("SELECT 1") == 1
        proxy.accept()
        assert await pool.fetchval("SELECT 1") == 1


async def test_refuse_for_some_time_ends_by_itself_unless_renewed(proxy: Proxy) -> None:
    async with await open_pool(proxy) as pool:
        proxy.refuse(0.05)
        assert await poll_until(lambda: works(pool))
        proxy.cut()
        proxy.refuse(0.05)
        proxy.refuse()
        await asyncio.sleep(0.1)
        with pytest.raises(AWAY):
            await asyncpg.connect(proxy.dsn)


# The network hangs or is slow


async def test_what_was_sent_while_the_network_hung_arrives_afterwards(dsn: str, proxy: Proxy) -> None:
    connection = await asyncpg.connect(proxy.dsn)
    await connection.execute(INSERT, 1)
    proxy.stall()
    insert = asyncio.create_task(connection.execute(INSERT, 2))
    await asyncio.sleep(0.1)
    assert seen(dsn) == [1]
    assert not insert.done()
    proxy.flow()
    await insert
    assert seen(dsn) == [1, 2]
    await connection.close()


async def test_a_hanging_network_ends_in_a_timeout_and_the_pool_recovers(proxy: Proxy) -> None:
    async with await open_pool(proxy, statement_timeout=0.2) as pool:
        await poll_until(lambda: works(pool))
        proxy.stall()
        with pytest.raises(AWAY) as raised:
            await pool.execute("SELECT 1")
        assert isinstance(raised.value, TimeoutError)
        proxy.flow()
        assert await poll_until(lambda: works(pool))


async def test_a_slow_network_delays_the_answers(proxy: Proxy) -> None:
    connection = await asyncpg.connect(proxy.dsn)
    proxy.slow(0.1)
    started = time.monotonic()
    assert await connection.fetchval("SELECT 1") == 1
    assert time.monotonic() - started > 0.09
    proxy.slow(0)
    await connection.close()


# The proxy itself


async def test_leaving_ends_all_connections_and_leaves_nothing_behind(proxy: Proxy) -> None:
    gc.collect()
    threads, files = set(threading.enumerate()), len(os.listdir("/dev/fd"))
    with Proxy(proxy.dsn) as inner:
        stalled = await asyncpg.connect(inner.dsn)
        inner.stall()
        waiting = asyncio.create_task(stalled.fetchval("SELECT 1"))
        await asyncio.sleep(0)
    with pytest.raises(AWAY):
        await waiting
    stalled.terminate()
    await poll_until(lambda: len(os.listdir("/dev/fd")) == files)
    assert set(threading.enumerate()) == threads


def test_what_goes_wrong_in_the_proxy_itself_is_told(dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def connect_through(proxy: Proxy) -> None:
        with proxy, psycopg.connect(proxy.dsn):
            pass

    monkeypatch.delattr(chaos.Link, "read_server")
    with pytest.raises(ExceptionGroup, match="the proxy went wrong"):
        connect_through(Proxy(dsn))
