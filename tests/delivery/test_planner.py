"""The planner between two slices: which ids it gives, and what it does when somebody else was first."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from notifier.delivery.planner import STALE, Planner
from notifier.models import Filter
from notifier.storage import audience, mailings
from notifier.storage.database import Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.mailing_scenes import create
from tests.storage.scenes import insert_clients
from tests.storage.test_audience import NINE_TO_FIVE, insert_begun


@pytest.fixture
def planner(db: Pool) -> Planner:
    return Planner(db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)


async def ids_of(db: Pool, mailing_id: int) -> list[int]:
    rows = await db.fetch("SELECT id FROM messages WHERE mailing_id = $1 ORDER BY id", mailing_id)
    return [row["id"] for row in rows]


def before_the_next_slice(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], Awaitable[object]]) -> None:
    """Have something happen between the choice of the next slice that is written and its writing."""
    store = audience.store

    async def late(*given: Any) -> None:
        monkeypatch.setattr(audience, "store", store)
        await happens()
        await store(*given)

    monkeypatch.setattr(audience, "store", late)


async def test_ids_that_a_slice_left_over_serve_the_next_one(db: Pool, planner: Planner) -> None:
    await insert_clients(db, 3)
    first, second = await insert_begun(db), await insert_begun(db)
    while await planner.poll() == 0.0:
        pass
    ids = await ids_of(db, first) + await ids_of(db, second)
    assert ids == list(range(ids[0], ids[0] + 6))
    assert not await ledger_errors(db)


async def test_a_slice_that_may_have_been_written_takes_its_ids_along(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the second slice is lost, and so is its mailing's row as of before: the next ids are others."""
    await insert_clients(db, 3)
    await insert_begun(db)
    await planner.poll()
    store = audience.store

    async def lost(*given: Any) -> None:
        await store(*given)
        raise ConnectionError

    monkeypatch.setattr(audience, "store", lost)
    second = await insert_begun(db)
    with pytest.raises(ConnectionError):
        await planner.poll()
    monkeypatch.setattr(audience, "store", store)
    third = await insert_begun(db)
    while await planner.poll() == 0.0:
        pass
    assert len({*await ids_of(db, second), *await ids_of(db, third)}) == 6
    assert not await ledger_errors(db)


async def test_who_was_second_looks_again_in_a_moment(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another replica plans the mailing between our look and our word."""
    clients = await insert_clients(db, 3)
    mailing_id = await insert_begun(db)
    other = Planner(db, default_zone=ZoneInfo("UTC"), on_batches=lambda: None)
    before_the_next_slice(monkeypatch, other.poll)
    assert await planner.poll() == STALE
    assert len(await ids_of(db, mailing_id)) == len(clients)
    assert not await ledger_errors(db)


async def test_what_was_chosen_ahead_of_a_slice_that_was_not_written_is_forgotten(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The window is edited while the first of three slices is written and the second is chosen."""
    monkeypatch.setattr("notifier.delivery.planner.NEXT", 2)
    clients = await insert_clients(db, 6)
    mailing_id = await insert_begun(db)
    before_the_next_slice(monkeypatch, lambda: mailings.edit(db, mailing_id, {"window": NINE_TO_FIVE}))
    assert await planner.poll() == STALE
    assert await planner.poll() == 0.0  # by the new window
    assert len(await ids_of(db, mailing_id)) == 2
    while await planner.poll() == 0.0:
        pass
    assert len(await ids_of(db, mailing_id)) == len(clients)
    assert not await ledger_errors(db)


async def test_mailings_take_turns_and_who_has_just_begun_is_first(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two found by looking, with two slices each; then two that begin, the later one of a higher priority."""
    monkeypatch.setattr("notifier.delivery.planner.FIRST", 1)
    monkeypatch.setattr("notifier.delivery.planner.NEXT", 2)
    await insert_clients(db, 3)
    one, two = await insert_begun(db), await insert_begun(db)
    assert await planner.poll() == 0.0
    low, high = [(await create(db, priority=priority)).id for priority in (0, 1)]
    planner.begin(await audience.begin_due(db))
    while await planner.poll() == 0.0:
        pass
    rows = await db.fetch("SELECT mailing_id, size FROM batches ORDER BY first_id")
    turns = [(row["mailing_id"], row["size"]) for row in rows]
    assert turns[:4] == [(one, 1), (high, 1), (low, 1), (two, 1)]
    assert turns[4:] == [(one, 2), (two, 2), (low, 2), (high, 2)]
    assert not await ledger_errors(db)


async def test_a_mailing_that_finds_nobody_for_long_has_its_turns(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for all, a client a slice; beside it one whose filter matches nobody, two clients looked at in a slice."""
    for name in ("FIRST", "NEXT", "LOOKS"):
        monkeypatch.setattr(f"notifier.delivery.planner.{name}", 1)
    monkeypatch.setattr(audience, "SCANNED", 2)
    clients = await insert_clients(db, 8)
    for_all, for_nobody = await insert_begun(db), await insert_begun(db, Filter(tags=["nobody"]))
    for _ in range(6):
        assert await planner.poll() == 0.0
    cursors = {mailing.id: mailing.cursor for mailing in await audience.unplanned(db)}
    assert cursors == {for_all: clients[2], for_nobody: clients[5]}


async def test_who_has_just_begun_looks_on_until_somebody_is_found(
    db: Pool, planner: Planner, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clients are looked at at once; of seven the sixth matches one filter, and nobody the other."""
    monkeypatch.setattr(audience, "SCANNED", 2)
    await insert_clients(db, 5)
    (match,) = await insert_clients(db, 1, tags=["vip"])
    (last,) = await insert_clients(db, 1)
    vip, nobody = [(await create(db, filter=Filter(tags=[tag]))).id for tag in ("vip", "nobody")]
    planner.begin(await audience.begin_due(db))
    assert await planner.poll() == 0.0
    assert len(await ids_of(db, vip)) == 1
    assert {mailing.id: mailing.cursor for mailing in await audience.unplanned(db)} == {vip: match, nobody: 0}
    assert await planner.poll() == 0.0
    assert {mailing.id: mailing.cursor for mailing in await audience.unplanned(db)} == {vip: match}
    assert (await mailings.get(db, nobody)).planned
    assert await db.fetchval("SELECT cursor FROM mailings WHERE id = $1", nobody) == last
    while await planner.poll() == 0.0:
        pass
    assert not await ledger_errors(db)


async def test_a_mailing_that_both_begins_and_is_found_is_planned_once(db: Pool, planner: Planner) -> None:
    """It is looked for between its beginning and the word of it; whichever slice is written first, none waits."""
    await insert_clients(db, 3)
    busy = await insert_begun(db)
    late = (await create(db)).id
    begun = await audience.begin_due(db)
    assert await planner.poll() == 0.0  # of the first; the other is chosen meanwhile
    planner.begin(begun)
    assert await planner.poll() == 0.0
    assert await planner.poll() == 1.0
    planner.begin(begun)
    assert await planner.poll() == 1.0
    assert [len(await ids_of(db, mailing)) for mailing in (busy, late)] == [3, 3]
    assert not await ledger_errors(db)
