"""Replicas: a row each, with a counter that says "alive"."""

from __future__ import annotations

import hmac
import time

from notifier.storage import replicas
from notifier.storage.database import Pool
from tests.storage.scenes import insert_batch, insert_mailing, insert_messages


async def test_a_replica_with_another_key_is_noticed_once(db: Pool) -> None:
    old, new = "an old key of thirty-two characters", "a new key of thirty-two characters!"
    assert await replicas.share_key(db, old)
    assert await replicas.share_key(db, old)
    assert not await replicas.share_key(db, new)
    assert await replicas.share_key(db, new)
    assert new.encode() not in await db.fetchval("SELECT mark FROM secret_key")


async def test_what_the_database_has_of_the_key_costs_a_guess_much(db: Pool) -> None:
    """Salted and slow; what version 0.1.0 left there, which a guess could be compared with at once, is replaced."""
    key, other = "an old key of thirty-two characters", "another key of thirty-two characters"
    fast = hmac.digest(key.encode(), b"notifier", "sha256")
    await db.execute("INSERT INTO secret_key (mark) VALUES ($1)", fast)
    assert await replicas.share_key(db, key)  # a replica of 0.1.0 runs beside
    marks = {await db.fetchval("SELECT mark FROM secret_key")}
    await db.execute("UPDATE secret_key SET mark = $1", fast)
    assert not await replicas.share_key(db, other)
    await db.execute("DELETE FROM secret_key")
    assert await replicas.share_key(db, key)
    marks.add(await db.fetchval("SELECT mark FROM secret_key"))
    assert len(marks) == 2  # the same key, another salt
    assert all(fast not in mark for mark in marks)
    begun = time.process_time()
    assert await replicas.share_key(db, key)
    assert time.process_time() - begun > 0.01  # a fast hash takes 0.000002


async def test_each_replica_gets_a_number_and_sees_the_others(db: Pool) -> None:
    one, other = await replicas.register(db, "one"), await replicas.register(db, "other")
    assert one != other
    await replicas.beat(db, one, "one", session=False)
    await replicas.beat(db, one, "one", session=False)
    # what a statement reads is older than what it writes: one's own counter is one behind
    assert await replicas.beat(db, other, "other", session=False) == {one: 2, other: 0}
    assert await replicas.beat(db, one, "one", session=False) == {one: 2, other: 1}


async def test_a_row_that_was_taken_away_comes_back_with_the_next_beat(db: Pool) -> None:
    """Others thought it dead while it was cut off; it keeps its number, and nobody else gets it."""
    number = await replicas.register(db, "one")
    assert await replicas.forget(db, number)
    assert await replicas.beat(db, number, "one", session=False) == {}
    assert await replicas.beat(db, number, "one", session=False) == {number: 1}
    assert await replicas.register(db, "other") == number + 1


async def test_a_replica_is_forgotten_when_it_owns_nothing(db: Pool) -> None:
    owner, idle = await replicas.register(db, "owner"), await replicas.register(db, "idle")
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 1)
    await insert_batch(db, mailing_id, ids, replica=owner)

    assert not await replicas.forget(db, owner)
    assert await replicas.forget(db, idle)
    assert not await replicas.forget(db, idle)

    await db.execute("DELETE FROM batches")
    assert await replicas.forget(db, owner)
    assert await db.fetchval("SELECT count(*) FROM replicas") == 0
