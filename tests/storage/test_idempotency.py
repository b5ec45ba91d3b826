"""Answers kept for repeated requests: one transaction, one winner, and what the others see."""

from __future__ import annotations

import asyncio

import pytest

from notifier.errors import Conflict, Invalid
from notifier.storage import idempotency
from notifier.storage.database import Connection, Pool, transaction
from notifier.storage.idempotency import Answer

KEY, BODY = b"k" * 32, b"b" * 32
ANSWER = Answer(201, {"Location": "/x"}, b"{}")


async def answered(connection: Connection) -> Answer:
    return ANSWER


async def never(connection: Connection) -> Answer:
    raise AssertionError("it was done twice")


async def test_an_answer_is_kept_with_what_it_tells_of(db: Pool) -> None:
    assert await idempotency.once(db, KEY, BODY, answered) == (ANSWER, False)
    assert await idempotency.once(db, KEY, BODY, never) == (ANSWER, True)
    with pytest.raises(Invalid):
        await idempotency.once(db, KEY, b"other", never)


async def test_what_fails_leaves_nothing(db: Pool) -> None:
    async def fails(connection: Connection) -> Answer:
        await connection.execute("INSERT INTO clients (phone, operator_code) VALUES (79161234567, '916')")
        raise Conflict

    with pytest.raises(Conflict):
        await idempotency.once(db, KEY, BODY, fails)
    assert await db.fetchval("SELECT count(*) FROM clients") == 0
    assert await idempotency.once(db, KEY, BODY, answered) == (ANSWER, False)


async def test_repeats_of_what_is_done_are_all_answered_whoever_else_asks(db: Pool) -> None:
    """One holds the key's lock, as a repeat does that is reading the answer; the others need not wait for it."""
    await idempotency.once(db, KEY, BODY, answered)
    async with transaction(db) as reading:
        await reading.execute("SELECT pg_advisory_xact_lock($1)", int.from_bytes(KEY[:8], signed=True))
        repeats = await asyncio.gather(*(idempotency.once(db, KEY, BODY, never) for _ in range(30)))
    assert repeats == [(ANSWER, True)] * 30


async def test_repeats_wait_for_the_first_without_a_connection(db: Pool) -> None:
    """More of them than the pool of ten has connections: the first one, which needs two more, still gets them."""
    started, asked = asyncio.Event(), asyncio.Event()

    async def first(connection: Connection) -> Answer:
        started.set()
        await asked.wait()
        async with db.acquire(), db.acquire():
            return ANSWER

    doing = asyncio.ensure_future(idempotency.once(db, KEY, BODY, first))
    await started.wait()
    repeats = [asyncio.ensure_future(idempotency.once(db, KEY, BODY, never)) for _ in range(30)]
    await asyncio.sleep(0)
    asked.set()
    assert await doing == (ANSWER, False)
    assert await asyncio.gather(*repeats) == [(ANSWER, True)] * 30


async def test_one_at_a_time_and_free_after_a_crash(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    async with db.acquire() as doomed:
        await doomed.execute("BEGIN")
        await doomed.execute("SELECT pg_advisory_xact_lock($1)", int.from_bytes(KEY[:8], signed=True))
        with monkeypatch.context() as patch:
            patch.setattr(idempotency, "WAIT", 0.1)
            with pytest.raises(Conflict, match="first_under_way"):
                await idempotency.once(db, KEY, BODY, never)
        doomed.terminate()
    assert await idempotency.once(db, KEY, BODY, answered) == (ANSWER, False)


async def test_after_a_day_the_key_is_free_and_purged(db: Pool) -> None:
    for key in (KEY, b"x" * 32, b"y" * 32):
        await idempotency.once(db, key, BODY, answered)
    await db.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key <> $1", b"y" * 32)
    assert await idempotency.once(db, KEY, b"other", answered) == (ANSWER, False)
    assert await idempotency.purge(db) == 1
    assert await idempotency.purge(db) == 0
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 2
