from __future__ import annotations

import asyncio
import os
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from chaos.stage import PATIENCE
from notifier.errors import NotifierError, Unavailable
from notifier.storage import database, migrations, readiness
from notifier.storage.database import AWAY, Db, Pool
from notifier.storage.embedded import running
from tests.conftest import TEST_DATABASE_URL, poll_until, with_database


def with_dead_host_first(dsn: str) -> str:
    parts = conninfo_to_dict(dsn)
    host, port = parts.get("host", "localhost"), parts.get("port", "5432")
    user = f"{parts['user']}:{parts.get('password', '')}"
    hosts = f"host=/nowhere,{host}&port=5432,{port}&target_session_attrs=read-write"
    return f"postgresql://{user}@/{parts['dbname']}?{hosts}"


# The pool


@pytest.mark.parametrize("value", [{"a": ["я", None, 1.5, True]}, [], "text", 2**63 - 1, None])
async def test_jsonb_goes_in_and_comes_out_as_python(db: Pool, value: object) -> None:
    assert await db.fetchval("SELECT $1::jsonb", value) == value
    assert await db.fetchval("SELECT jsonb_build_object('v', $1::jsonb)", value) == {"v": value}


async def test_sessions_are_set_up(dsn: str) -> None:
    pool = await database.create_pool(dsn, size=1, application_name="replica 7", statement_timeout=1.5)
    async with pool:
        row = await pool.fetchrow(
            """
            SELECT current_setting('application_name') AS application_name, now() AS now,
                   current_setting('statement_timeout') AS statement_timeout,
                   current_setting('timezone') AS timezone, current_setting('jit') AS jit
            """
        )
    assert row is not None
    assert abs(row["now"] - datetime.now(UTC)).total_seconds() < 60
    assert dict(row.items(), now=None) == {
        "application_name": "replica 7",
        "now": None,
        "statement_timeout": "1500ms",
        "timezone": "UTC",
        "jit": "off",
    }


async def test_slow_statement_is_cut_off_and_the_connection_serves_on(dsn: str) -> None:
    pool = await database.create_pool(dsn, size=1, application_name="test", statement_timeout=0.1)
    async with pool:
        pid = await pool.fetchval("SELECT pg_backend_pid()")
        with pytest.raises(AWAY):
            await pool.execute("SELECT pg_sleep(10)")
        assert await pool.fetchval("SELECT pg_backend_pid()") == pid


async def test_no_statement_is_kept_prepared_behind_an_old_pooler(dsn: str) -> None:
    pool = await database.create_pool(dsn, size=1, application_name="test", statement_cache=0)
    async with pool:
        await pool.fetch("SELECT 1 AS one")
        assert await pool.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'one$'") == 0


async def test_of_several_hosts_the_one_that_takes_writes_is_found(dsn: str) -> None:
    several = with_dead_host_first(dsn)
    async with await database.create_pool(several, size=1, application_name="test") as pool:
        assert await pool.fetchval("SELECT 1") == 1
    assert await asyncio.to_thread(migrations.migrate, several) == []


async def test_abandoned_transaction_is_gone_when_the_connection_is_handed_on(dsn: str) -> None:
    pool = await database.create_pool(dsn, size=1, application_name="test")
    async with pool:
        async with pool.acquire() as connection:
            await connection.execute("BEGIN; CREATE TABLE half (id int)")
        async with pool.acquire() as connection:
            assert not connection.is_in_transaction()
            assert await connection.fetchval("SELECT to_regclass('half')") is None


async def test_a_server_that_says_nothing_counts_as_away() -> None:
    def accepted(_reader: object, writer: asyncio.StreamWriter) -> None:
        silent.append(writer)

    silent: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    pool = await database.create_pool(
        f"postgresql://u@127.0.0.1:{port}/d?sslmode=disable", size=1, application_name="test", silence=0.2
    )
    with pytest.raises(AWAY):
        await pool.fetchval("SELECT 1")
    assert silent
    pool.terminate()
    for writer in silent:
        writer.close()
    server.close()


async def test_transaction_on_a_pool_and_inside_another(db: Pool) -> None:
    async def add(to: Db, value: int, *, fail: bool) -> None:
        async with database.transaction(to) as connection:
            await connection.execute("INSERT INTO seen VALUES ($1)", value)
            if fail:
                raise ZeroDivisionError

    await db.execute("CREATE TABLE seen (value int)")
    async with database.transaction(db) as outer:
        await add(outer, 1, fail=False)
        with pytest.raises(ZeroDivisionError):
            await add(outer, 2, fail=True)
    with pytest.raises(ZeroDivisionError):
        await add(db, 3, fail=True)
    assert [row["value"] for row in await db.fetch("SELECT value FROM seen")] == [1]


async def test_who_stands_still_inside_a_transaction_lets_the_others_on(db: Pool) -> None:
    # As a process that was frozen between two statements. 3 s, where every statement may wait for 5 s.
    await db.execute("CREATE TABLE seen AS SELECT 1 AS value")
    async with db.acquire() as frozen:
        await frozen.execute("BEGIN; UPDATE seen SET value = 2")
        await db.execute("UPDATE seen SET value = 3")
        with pytest.raises(AWAY):
            await frozen.execute("UPDATE seen SET value = 4")
    assert await db.fetchval("SELECT value FROM seen") == 3


# What means "away"


async def test_whatever_a_terminated_session_raises_means_away_and_the_pool_recovers(dsn: str) -> None:
    pool = await database.create_pool(dsn, size=4, application_name="victim")
    raised: list[BaseException] = []
    stop = asyncio.Event()

    async def use() -> None:
        while not stop.is_set():
            try:
                async with database.transaction(pool) as connection:
                    await connection.fetch("SELECT pg_sleep(0.002)")
                    await connection.fetch("SELECT 1")
                await pool.fetch("SELECT pg_sleep(0.002)")
            except AWAY as error:
                raised.append(error)

    async def kill_until_seen() -> bool:
        await killer.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'victim'"
            " AND datname = current_database()"
        )
        return len(raised) >= 50

    killer = await asyncpg.connect(dsn)
    async with pool:
        users = [asyncio.create_task(use()) for _ in range(8)]
        await poll_until(kill_until_seen, progress=lambda: len(raised))
        stop.set()
        await asyncio.gather(*users)  # an error outside AWAY is raised here
        await killer.close()
        assert await pool.fetchval("SELECT 1") == 1


async def test_stopped_server_means_away_and_the_pool_finds_it_again(place: Path) -> None:
    def start_and_stop() -> str:
        with running(place, fast=True) as dsn:
            return dsn

    dsn = await asyncio.to_thread(start_and_stop)
    pool = await database.create_pool(dsn, size=1, application_name="test")
    async with pool:
        with pytest.raises(AWAY):
            await pool.fetchval("SELECT 1")
        with running(place, fast=True):
            assert await pool.fetchval("SELECT 1") == 1
        with pytest.raises(AWAY):
            await pool.fetchval("SELECT 1")


async def test_read_only_database_means_away(db: Pool) -> None:
    async with db.acquire() as connection:
        await connection.execute("SET default_transaction_read_only = on")
        with pytest.raises(AWAY):
            await connection.execute("CREATE TABLE t (id int)")
        await connection.execute("RESET default_transaction_read_only")


@pytest.mark.parametrize(("kind", "value"), [("text", "\x00"), ("text", "\ud800"), ("int8", 2**63), ("jsonb", "\x00")])
async def test_value_that_postgresql_refuses_does_not_mean_away(db: Pool, kind: str, value: object) -> None:
    with pytest.raises(asyncpg.PostgresError) as caught:
        await db.fetchval(f"SELECT $1::{kind}", value)
    assert not isinstance(caught.value, AWAY)


# The start


async def test_waiting_says_so_and_gives_up() -> None:
    said: list[str] = []
    with socket.socket() as bound:  # bound, but nobody listens: refused, and no stranger gets the port
        bound.bind(("127.0.0.1", 0))
        dsn = f"postgresql://x@127.0.0.1:{bound.getsockname()[1]}/x"
        with pytest.raises(Unavailable, match=r"did not come up within 1 s: .*refused|failed"):
            await readiness.wait_until_up(dsn, seconds=1, say=said.append)
    assert len(said) == 1
    assert "unavailable" in said[0]


async def test_waiting_ends_when_the_database_comes_up(place: Path) -> None:
    def start_and_stop() -> str:
        with running(place, fast=True) as dsn:
            return dsn

    said: list[str] = []
    dsn = await asyncio.to_thread(start_and_stop)
    waiting = asyncio.create_task(readiness.wait_until_up(dsn, say=said.append))
    await poll_until(lambda: said)
    assert not waiting.done()
    with running(place, fast=True):
        await asyncio.wait_for(waiting, PATIENCE)


@pytest.mark.parametrize("gone", [psycopg.errors.AdminShutdown("stop"), asyncpg.ConnectionDoesNotExistError("reset")])
async def test_a_step_is_tried_again_when_the_database_goes_away_in_it(gone: Exception) -> None:
    errors = [gone]
    said: list[str] = []

    async def step() -> str:
        if errors:
            raise errors.pop()
        return "done"

    assert await readiness.patiently(step, say=said.append) == "done"
    assert len(said) == 1
    errors.append(gone)
    with pytest.raises(Unavailable, match="did not come up within 0 s"):
        await readiness.patiently(step, seconds=0, say=pytest.fail)


async def test_what_waiting_cannot_mend_is_told_at_once(server: str) -> None:
    started = time.monotonic()
    with pytest.raises(NotifierError, match="refuses"):
        await readiness.wait_until_up(with_database(server, "no_such_database"), say=pytest.fail)
    with pytest.raises(NotifierError, match="address"):
        await readiness.wait_until_up("mysql://localhost/x", say=pytest.fail)
    assert time.monotonic() - started < 30  # it would have waited for 60


async def test_check_passes_what_keeps_the_promises(place: Path) -> None:
    with running(place) as dsn:
        await asyncio.to_thread(migrations.migrate, dsn)
        async with await database.create_pool(dsn, size=1, application_name="test") as pool:
            await readiness.check(pool)


@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync"])
async def test_check_refuses_a_database_that_forgets(dsn: str, setting: str) -> None:
    if setting == "fsync" and TEST_DATABASE_URL in os.environ:
        pytest.skip("only the embedded server of the tests has it off")
    value = "off" if setting == "synchronous_commit" else "on"
    with psycopg.connect(dsn, autocommit=True) as admin:
        name = conninfo_to_dict(dsn)["dbname"]
        admin.execute(f"ALTER DATABASE {name} SET synchronous_commit = {value}")
    async with await database.create_pool(dsn, size=1, application_name="test") as pool:
        with pytest.raises(NotifierError, match=f"{setting} is off"):
            await readiness.check(pool)
        await readiness.check(pool, durable=False)


async def test_check_refuses_an_old_server(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "OLDEST_SERVER", 99)
    with pytest.raises(NotifierError, match="PostgreSQL 99 or newer"):
        await readiness.check(db, durable=False)


async def test_check_refuses_an_old_schema(empty_dsn: str) -> None:
    async with await database.create_pool(empty_dsn, size=1, application_name="test") as pool:
        assert await readiness.why_not_ready(pool) == "the schema is older than this program"
        with pytest.raises(NotifierError, match=r"apply .* migrate"):
            await readiness.check(pool, durable=False)
        await asyncio.to_thread(migrations.migrate, empty_dsn)
        assert await readiness.why_not_ready(pool) is None
        await pool.execute("DELETE FROM _yoyo_migration WHERE migration_id = $1", migrations.NEWEST)
        assert await readiness.why_not_ready(pool) is not None
