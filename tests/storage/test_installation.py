"""Where a database is, whether it looks like a copy, and its release."""

from __future__ import annotations

import asyncio
import secrets

import psycopg

from notifier.storage import database, installation
from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from tests.conftest import with_database
from tests.storage.scenes import insert_mailing, insert_messages


async def held(db: Pool, instance: str | None) -> str:
    """What a replica that starts with this INSTANCE says, "" where it may send."""
    return await Hold(db, instance).begin() or ""


async def test_the_first_replica_notes_the_place_and_no_later_one_is_held(db: Pool) -> None:
    assert await installation.read(db, None) is None
    assert [await held(db, None) for _ in range(2)] == ["", ""]
    found = await installation.read(db, None)
    assert found is not None
    assert found.kept == found.now
    assert found.kept.system_identifier == await db.fetchval("SELECT system_identifier FROM pg_control_system()")


async def test_ten_replicas_may_start_at_once(db: Pool) -> None:
    assert set(await asyncio.gather(*(held(db, "production") for _ in range(10)))) == {""}


async def test_a_copy_in_another_database_of_the_server_is_held(db: Pool, dsn: str, server: str) -> None:
    await held(db, None)
    name = await db.fetchval("SELECT current_database()")
    await db.close()  # CREATE DATABASE … TEMPLATE copies only what nobody is connected to
    copy = f"{name}_copy"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {copy} TEMPLATE {name}")
    try:
        async with await database.create_pool(with_database(dsn, copy), size=2, application_name="test") as other:
            assert "the oid differs" in await held(other, None)
            assert "the oid differs" in await held(other, "staging")
            await installation.release(other, "staging")
            assert await held(other, "staging") == ""
            assert "'staging', and INSTANCE is not set" in await held(other, None)
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {copy} WITH (FORCE)")


async def test_another_cluster_is_held(db: Pool) -> None:
    await held(db, None)
    await db.execute("UPDATE installation SET system_identifier = 1")
    assert "another PostgreSQL cluster" in await held(db, None)


async def test_a_name_is_taken_over_once_and_then_compared(db: Pool) -> None:
    await held(db, None)
    assert await held(db, "production") == ""
    assert await held(db, "production") == ""
    assert "'production', and INSTANCE is 'staging'" in await held(db, "staging")
    assert "INSTANCE is not set" in await held(db, None)


async def test_a_copy_does_not_take_a_name_over(db: Pool) -> None:
    await held(db, None)
    await db.execute("UPDATE installation SET system_identifier = 1")
    assert await held(db, "staging")
    assert await db.fetchval("SELECT instance FROM installation") is None


async def test_where_the_identifier_may_not_be_read_the_oid_and_the_name_count(db: Pool) -> None:
    role = f"reader_{secrets.token_hex(8)}"
    async with db.acquire() as connection:
        await connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM public")
        await connection.execute(f"CREATE ROLE {role}; GRANT SELECT, INSERT, UPDATE ON installation TO {role}")
        await connection.execute(f"SET ROLE {role}")
        try:
            found = await installation.note(connection, "production")
            other = await installation.read(connection, "staging")
        finally:
            await connection.execute(f"RESET ROLE; DROP OWNED BY {role}; DROP ROLE {role}")
    assert (found.kept.system_identifier, found.difference) == (None, None)
    assert other is not None
    assert other.difference is not None


async def test_a_release_ends_the_hold_of_those_that_run(db: Pool) -> None:
    await held(db, "production")
    replica, other = Hold(db, "staging"), Hold(db, "staging")
    assert await replica.begin()
    assert await other.begin()
    assert await replica.reason()
    await other.release()
    assert [await hold.reason() for hold in (replica, other)] == [None, None]


async def test_what_would_go_on_is_counted(db: Pool) -> None:
    for status in ("draft", "running", "scheduled", "finished"):
        mailing_id = await insert_mailing(db, status)
        if status == "running":
            await insert_messages(db, mailing_id, 3)
    assert (await installation.would_send(db))[0] == 2
