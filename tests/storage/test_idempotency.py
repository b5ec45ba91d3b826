from __future__ import annotations

import pytest

from notifier.errors import Conflict, Invalid
from notifier.storage import idempotency
from notifier.storage.database import Pool, transaction
from notifier.storage.idempotency import Answer

KEY, BODY = b"k" * 32, b"b" * 32
ANSWER = Answer(201, {"Location": "/x"}, b"{}")


async def test_an_answer_is_kept_with_what_it_tells_of(db: Pool) -> None:
    async with transaction(db) as connection:
        assert await idempotency.claim(connection, KEY, BODY) is None
        await idempotency.keep(connection, KEY, BODY, ANSWER)
    async with transaction(db) as connection:
        assert await idempotency.claim(connection, KEY, BODY) == ANSWER
        with pytest.raises(Invalid):
            await idempotency.claim(connection, KEY, b"other")


async def test_one_at_a_time_and_free_after_a_crash(db: Pool) -> None:
    async with transaction(db) as first, transaction(db) as second:
        assert await idempotency.claim(first, KEY, BODY) is None
        with pytest.raises(Conflict):
            await idempotency.claim(second, KEY, BODY)
    async with db.acquire() as doomed:
        await doomed.execute("BEGIN")
        assert await idempotency.claim(doomed, KEY, BODY) is None
        await idempotency.keep(doomed, KEY, BODY, ANSWER)
        doomed.terminate()
    for _ in range(100):
        async with transaction(db) as connection:
            try:
                assert await idempotency.claim(connection, KEY, BODY) is None
                break
            except Conflict:
                pass  # the server has not noticed yet
    else:
        raise AssertionError("the key is still taken")


async def test_after_a_day_the_key_is_free_and_purged(db: Pool) -> None:
    for key in (KEY, b"x" * 32, b"y" * 32):
        await idempotency.keep(db, key, BODY, ANSWER)
    await db.execute("UPDATE idempotency_keys SET created_at = now() - interval '25 hours' WHERE key <> $1", b"y" * 32)
    async with transaction(db) as connection:
        assert await idempotency.claim(connection, KEY, b"other") is None
        await idempotency.keep(connection, KEY, b"other", ANSWER)
    assert await idempotency.purge(db) == 1
    assert await idempotency.purge(db) == 0
    assert await db.fetchval("SELECT count(*) FROM idempotency_keys") == 2
