"""Who is logged in: a session is found until it is ended, idle or too old."""

from __future__ import annotations

import pytest

from notifier.storage import sessions
from notifier.storage.database import Pool

HASH, TOKEN = b"h" * 32, b"t" * 32


async def test_a_session_is_found_until_it_ends(db: Pool) -> None:
    assert await sessions.find(db, HASH) is None
    await sessions.begin(db, HASH, TOKEN)
    assert await sessions.find(db, HASH) == sessions.Session(TOKEN, due=False)
    await sessions.end(db, HASH)
    assert await sessions.find(db, HASH) is None


@pytest.mark.parametrize(
    ("created", "seen", "good"),
    [
        ("11 hours 59 minutes", "0", True),
        ("12 hours 1 second", "0", False),
        ("61 minutes", "59 minutes", True),
        ("61 minutes", "60 minutes 1 second", False),
    ],
)
async def test_it_ends_by_itself_and_is_then_purged(db: Pool, created: str, seen: str, good: bool) -> None:
    await sessions.begin(db, HASH, TOKEN)
    await db.execute(
        "UPDATE sessions SET expires_at = expires_at - $1::text::interval, seen_at = seen_at - $2::text::interval",
        created,
        seen,
    )
    assert (await sessions.find(db, HASH) is not None) == good
    await sessions.purge(db)
    assert await db.fetchval("SELECT count(*) FROM sessions") == int(good)


async def test_who_was_noted_within_the_minute_is_not_noted_again(db: Pool) -> None:
    await sessions.begin(db, HASH, TOKEN)
    await db.execute("UPDATE sessions SET seen_at = now() - interval '59 seconds'")
    found = await sessions.find(db, HASH)
    assert found is not None
    assert not found.due
    await db.execute("UPDATE sessions SET seen_at = now() - interval '61 seconds'")
    found = await sessions.find(db, HASH)
    assert found is not None
    assert found.due
    await sessions.touch(db, HASH)
    assert await db.fetchval("SELECT seen_at > now() - interval '1 second' FROM sessions")
