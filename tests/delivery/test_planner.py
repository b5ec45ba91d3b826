"""The planner between two slices: which ids it gives, and what it does when somebody else was first."""

from __future__ import annotations

from typing import Any
from zoneinfo import ZoneInfo

import pytest

from notifier.delivery.planner import STALE, Planner
from notifier.storage import audience
from notifier.storage.database import Db, Pool
from tests.storage.scenes import books, insert_clients
from tests.storage.test_audience import insert_begun


@pytest.fixture
def planner(db: Pool) -> Planner:
    return Planner(db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)


async def ids_of(db: Pool, mailing_id: int) -> list[int]:
    rows = await db.fetch("SELECT id FROM messages WHERE mailing_id = $1 ORDER BY id", mailing_id)
    return [row["id"] for row in rows]


async def test_ids_that_a_slice_left_over_serve_the_next_one(db: Pool, planner: Planner) -> None:
    await insert_clients(db, 3)
    first, second = await insert_begun(db), await insert_begun(db)
    while await planner.poll() == 0.0:
        pass
    ids = await ids_of(db, first) + await ids_of(db, second)
    assert ids == list(range(ids[0], ids[0] + 6))
    assert not await books(db)


async def test_a_slice_that_may_have_been_written_takes_its_ids_along(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the second slice is lost, and so is its mailing's row as of before: the next ids are others."""
    await insert_clients(db, 3)
    await insert_begun(db)
    await planner.poll()
    plan = audience.plan_slice

    async def lost(*given: Any) -> audience.Slice:
        await plan(*given)
        raise ConnectionError

    monkeypatch.setattr(audience, "plan_slice", lost)
    second = await insert_begun(db)
    with pytest.raises(ConnectionError):
        await planner.poll()
    monkeypatch.setattr(audience, "plan_slice", plan)
    third = await insert_begun(db)
    while await planner.poll() == 0.0:
        pass
    assert len({*await ids_of(db, second), *await ids_of(db, third)}) == 6
    assert not await books(db)


async def test_who_was_second_looks_again_in_a_moment(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica plans the mailing between our look and our word."""
    clients = await insert_clients(db, 3)
    mailing_id = await insert_begun(db)
    plan = audience.plan_slice
    other = Planner(db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)

    async def late(given: Db, *rest: Any) -> audience.Slice:
        monkeypatch.setattr(audience, "plan_slice", plan)
        await other.poll()
        return await plan(given, *rest)

    monkeypatch.setattr(audience, "plan_slice", late)
    assert await planner.poll() == STALE
    assert len(await ids_of(db, mailing_id)) == len(clients)
    assert not await books(db)
