"""What is not needed any more is taken away by a running scheduler."""

from __future__ import annotations

from notifier.storage import mailings
from tests.conftest import poll_until
from tests.delivery.conftest import World


async def test_old_keys_go_faster_than_they_are_made_though_another_chore_fails(world: World) -> None:
    # 821 a second can be made. The first chore fails each time: a deleted mailing whose slices cannot be read.
    mailing = await world.mailing(draft=True)
    await mailings.delete(world.db, mailing.id)
    await world.db.execute("UPDATE mailings SET deleted_at = now() - interval '90 days'")
    await world.db.execute("ALTER TABLE slices RENAME TO hidden")
    await world.db.execute(
        "INSERT INTO idempotency_keys (key, body, status, headers, answer, created_at) "
        "SELECT sha256(i::text::bytea), '', 201, '{}', '', now() - interval '25 hours' FROM generate_series(1, 4000) i"
    )
    started = await world.db.fetchval("SELECT clock_timestamp()")
    await world.replica()

    async def left() -> int:
        return int(await world.db.fetchval("SELECT count(*) FROM idempotency_keys"))

    async def gone() -> bool:
        return await left() == 0

    await poll_until(gone, progress=left)
    took = await world.db.fetchval("SELECT extract(epoch FROM clock_timestamp() - $1)", started)
    assert took < 80  # by pieces of a thousand each 30 s it took 90 s, and never began
    await world.db.execute("ALTER TABLE hidden RENAME TO slices")
