"""A real PgBouncer between the pool and PostgreSQL: what it breaks is found out by the first connection."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from structlog.testing import capture_logs

from chaos.databases import SESSION, pgbouncer
from chaos.stage import Postgres
from notifier.storage import database, readiness
from tests.faults.conftest import skipped_where_lacking


@contextmanager
def bouncer(postgres: Postgres, *settings: str, database: str = "") -> Iterator[str]:
    with skipped_where_lacking(), pgbouncer(postgres.folder, postgres.port, database=database, settings=settings) as at:
        yield at


async def use(dsn: str, *, times: int = 60) -> set[int]:
    """Have one statement run again and again on ten connections at once; the processes that served."""
    async with await database.create_pool(dsn, size=10, application_name="test") as pool:
        served = await asyncio.gather(
            *(pool.fetchval("SELECT pg_backend_pid() FROM pg_sleep(0.002 * ($1::int % 3))", i) for i in range(times))
        )
        return set(served)


async def test_with_the_defaults_of_pgbouncer_in_transaction_mode_no_statement_is_kept(postgres: Postgres) -> None:
    with bouncer(postgres, "pool_mode = transaction") as dsn, capture_logs() as said:
        assert len(await use(dsn)) > 1
        assert len(await use(dsn)) > 1
    (warning,) = said
    assert "DATABASE_STATEMENT_CACHE=0" in warning["event"]
    assert "max_prepared_statements" in warning["event"]


async def test_in_session_mode_statements_are_kept(postgres: Postgres) -> None:
    with bouncer(postgres, "pool_mode = session") as dsn, capture_logs() as said:
        async with await database.create_pool(dsn, size=1, application_name="test") as pool:
            await pool.fetchval("SELECT 5 AS five")
            assert await pool.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'five$'") == 1
    assert said == []


async def test_nothing_is_said_where_none_are_wanted(postgres: Postgres) -> None:
    with bouncer(postgres, "pool_mode = transaction") as dsn, capture_logs() as said:
        async with await database.create_pool(dsn, size=4, application_name="test", statement_cache=0) as pool:
            await asyncio.gather(*(pool.fetchval("SELECT $1::int", i) for i in range(20)))
    assert said == []


async def test_sessions_that_are_not_set_up_are_told_with_the_line_that_mends_it(postgres: Postgres) -> None:
    advise = partial(readiness.advice, connections=20)
    with bouncer(postgres, "pool_mode = transaction") as dsn:
        async with await database.create_pool(dsn, size=2, application_name="test", statement_cache=0) as pool:
            (advice,) = await advise(pool)
    line = advice.partition("PgBouncer ")[2]
    assert "SET idle_in_transaction_session_timeout = ''3000''" in line
    for connect_query in (line, f"connect_query='{SESSION}'"):
        with bouncer(postgres, "pool_mode = transaction", database=connect_query) as dsn:
            async with await database.create_pool(dsn, size=2, application_name="test", statement_cache=0) as pool:
                assert await advise(pool) == []


async def test_a_direct_connection_keeps_its_statements(postgres: Postgres) -> None:
    with capture_logs() as said:
        async with await database.create_pool(postgres.dsn, size=1, application_name="test") as pool:
            await pool.fetchval("SELECT 6 AS six")
            assert await pool.fetchval("SELECT count(*) FROM pg_prepared_statements WHERE statement ~ 'six$'") == 1
            assert await readiness.advice(pool, connections=20) == []
    assert said == []
