"""Planning: each scene states its clients and its mailing, then which messages and batches come of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, time, timedelta
from itertools import pairwise
from typing import Any

import asyncpg
import pytest

from notifier.errors import Stale
from notifier.models import Filter, Window
from notifier.storage import audience, mailing_lifecycle, mailings
from notifier.storage.audience import Unplanned
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import while_held, without
from tests.storage.scenes import at_once, batches_of, insert_clients, plan_slice, set_status

NINE_TO_FIVE = Window(time(9), time(17))


async def insert_begun(db: Db, filter: Filter | None = None, window: Window | None = None, priority: int = 0) -> int:
    """A mailing whose start has just come."""
    mailing = await mailings.create(
        db,
        name=None,
        text="Hi",
        filter=filter or Filter(),
        starts_at=None,
        ends_at=datetime.now(UTC) + timedelta(hours=1),
        window=window,
        priority=priority,
        draft=False,
    )
    assert [begun.id for begun in await audience.begin_due(db)] == [mailing.id]
    return mailing.id


async def waiting(db: Db, mailing_id: int) -> Unplanned:
    """The mailing as the next planner finds it."""
    (mailing,) = (mailing for mailing in await audience.unplanned(db) if mailing.id == mailing_id)
    return mailing


async def plan(db: Db, mailing_id: int, size: int, due_at: Any = at_once) -> tuple[int, bool]:
    """Plan one slice: how many messages it has, and whether the audience is complete."""
    mailing = await waiting(db, mailing_id)
    slice_ = await plan_slice(db, mailing, size, await audience.take_ids(db, size), due_at)
    return slice_.size, slice_.done


async def plan_all(db: Db, mailing_id: int, size: int) -> list[int]:
    """How many messages each slice had, until the audience is complete."""
    sizes = []
    while True:
        messages, done = await plan(db, mailing_id, size)
        assert not await ledger_errors(db)
        sizes.append(messages)
        if done:
            return sizes


async def chosen(db: Db, mailing_id: int) -> list[int]:
    """The clients who have a message, in the order of the messages' ids."""
    rows = await db.fetch("SELECT client_id FROM messages WHERE mailing_id = $1 ORDER BY id", mailing_id)
    return [row["client_id"] for row in rows]


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (Filter(), 6),
        (Filter(tags=["vip", "none"]), 3),
        (Filter(operator_codes=["916"], tags=["vip"]), 2),
        (Filter(operator_codes=["926", "000"]), 1),
        (Filter(operator_codes=["000"]), 0),
    ],
)
async def test_the_count_is_what_planning_will_choose(db: Pool, filter: Filter, expected: int) -> None:
    """Six clients: three vip, of whom one is the only one of operator 926."""
    clients = await insert_clients(db, 6)
    await db.execute("UPDATE clients SET operator_code = '916', tags = '{}'")
    await db.execute("UPDATE clients SET tags = '{vip}' WHERE id = ANY($1)", clients[:3])
    await db.execute("UPDATE clients SET operator_code = '926' WHERE id = $1", clients[0])
    assert sum((await audience.by_zone(db, filter)).values()) == expected
    mailing_id = await insert_begun(db, filter)
    assert sum(await plan_all(db, mailing_id, 5)) == expected


async def test_slices_are_500_first_and_then_5000_and_a_batch_is_500_at_most(db: Pool) -> None:
    clients = await insert_clients(db, 6_200)
    mailing_id = await insert_begun(db)
    assert [mailing.id for mailing in await audience.unplanned(db)] == [mailing_id]

    assert await plan(db, mailing_id, 500) == (500, False)
    assert await plan(db, mailing_id, 5_000) == (5_000, False)
    assert await plan(db, mailing_id, 5_000) == (700, True)

    mailing = await mailings.get(db, mailing_id)
    assert (mailing.audience, mailing.planned) == (6_200, True)
    assert await audience.unplanned(db) == []
    assert await chosen(db, mailing_id) == clients
    batches = await batches_of(db, mailing_id)
    assert sorted(batch["size"] for batch in batches) == [200, *[500] * 12]
    assert {(batch["ids"], batch["seq"], batch["state"]) for batch in batches} == {(None, 1, "waiting")}
    slices = await db.fetch("SELECT first_id, last_id FROM slices WHERE mailing_id = $1 ORDER BY first_id", mailing_id)
    assert [last - first + 1 for first, last in slices] == [500, 5_000, 700]
    assert not await ledger_errors(db)


@pytest.mark.parametrize(
    ("filter", "expected"),
    [
        (Filter(), "abcde"),
        (Filter(operator_codes=["916"]), "ab"),
        (Filter(operator_codes=["916", "917"]), "abcd"),
        (Filter(tags=["vip"]), "bc"),
        (Filter(tags=["vip", "new"]), "bcd"),
        (Filter(operator_codes=["917"], tags=["vip"]), "c"),
        (Filter(operator_codes=["999"]), ""),
    ],
)
async def test_both_lists_must_match_and_any_member_is_enough(db: Pool, filter: Filter, expected: str) -> None:
    by_name = {}
    for name, code, tags in (
        ("a", "916", []),
        ("b", "916", ["vip", "old"]),
        ("c", "917", ["vip"]),
        ("d", "917", ["new"]),
        ("e", "918", []),
    ):
        (by_name[name],) = await insert_clients(db, 1, operator_code=code, tags=tags)
    mailing_id = await insert_begun(db, filter)
    assert await plan(db, mailing_id, 500) == (len(expected), True)
    assert await chosen(db, mailing_id) == [by_name[name] for name in expected]
    assert not await ledger_errors(db)


async def test_nobody_is_left_out_and_nobody_comes_twice(db: Pool) -> None:
    for count, size, sizes in ((0, 3, [0]), (2, 3, [2]), (3, 3, [3, 0]), (7, 3, [3, 3, 1])):
        await db.execute("DELETE FROM clients")
        clients = await insert_clients(db, count)
        mailing_id = await insert_begun(db)
        assert await plan_all(db, mailing_id, size) == sizes
        assert await chosen(db, mailing_id) == clients
        assert (await mailings.get(db, mailing_id)).planned
        assert await mailing_lifecycle.close(db, mailing_id) is (count == 0)


async def test_a_slice_looks_at_so_many_clients_however_few_of_them_match(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "SCANNED", 10)
    await insert_clients(db, 25, operator_code="900")
    vips = await insert_clients(db, 12)
    mailing_id = await insert_begun(db, Filter(operator_codes=["916"]))
    assert await plan_all(db, mailing_id, 8) == [0, 0, 5, 7]
    assert await chosen(db, mailing_id) == vips


async def test_a_full_slice_that_reached_the_last_client_looks_once_more(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audience, "SCANNED", 4)
    await insert_clients(db, 4)
    mailing_id = await insert_begun(db)
    assert await plan_all(db, mailing_id, 4) == [4, 0]


async def test_who_becomes_a_client_after_the_start_is_not_written_to(db: Pool) -> None:
    clients = await insert_clients(db, 3)
    mailing_id = await insert_begun(db)
    await insert_clients(db, 3)
    await plan_all(db, mailing_id, 2)
    assert await chosen(db, mailing_id) == clients


async def test_who_leaves_before_being_chosen_is_not_written_to(db: Pool) -> None:
    clients = await insert_clients(db, 4)
    mailing_id = await insert_begun(db)
    await plan(db, mailing_id, 2)
    await db.execute("DELETE FROM clients WHERE id = ANY($1)", [clients[0], clients[2]])
    await plan_all(db, mailing_id, 2)
    assert await chosen(db, mailing_id) == [clients[0], clients[1], clients[3]]


async def test_only_a_running_mailing_is_planned(db: Pool) -> None:
    for status in ("draft", "scheduled", "paused", "finished", "cancelled"):
        await db.execute("DELETE FROM clients")
        await insert_clients(db, 3)
        mailing_id = await insert_begun(db)
        await plan(db, mailing_id, 2)
        before = await waiting(db, mailing_id)
        await set_status(db, mailing_id, status)
        assert await audience.unplanned(db) == []
        with pytest.raises(Stale):
            await plan_slice(db, before, 2, 1_000)
        assert len(await chosen(db, mailing_id)) == 2
        assert not (await mailings.get(db, mailing_id)).planned
        await set_status(db, mailing_id, "running")
        assert await plan_all(db, mailing_id, 2) == [1]


async def test_a_mailing_that_is_planned_or_not_there_any_more_is_not_planned_on(db: Pool) -> None:
    mailing_id = await insert_begun(db)
    before = await waiting(db, mailing_id)
    assert await plan_all(db, mailing_id, 2) == [0]
    with pytest.raises(Stale):
        await plan_slice(db, before, 2, 1_000)
    await db.execute("DELETE FROM mailings")
    with pytest.raises(Stale):
        await plan_slice(db, before, 2, 1_000)


# ---- windows ------------------------------------------------------------------------------------------------------


async def test_batches_are_made_by_the_time_their_window_opens(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose window opens too late gets a batch as well; ids run on, so every batch is one range."""
    monkeypatch.setattr(audience, "BATCH_SIZE", 2)
    hours_until = {"Europe/Moscow": 9, "Asia/Omsk": 0, None: 1}
    for zone in [*hours_until] * 3:
        await insert_clients(db, 1, timezone=zone)
    mailing_id = await insert_begun(db, window=NINE_TO_FIVE)
    asked = []

    def due_at(now: datetime, window: Window, timezone: str | None) -> datetime:
        asked.append(timezone)
        assert window == NINE_TO_FIVE
        return now + timedelta(hours=hours_until[timezone])

    assert await plan(db, mailing_id, 500, due_at) == (9, True)

    assert asked == [*hours_until]  # once per zone
    batches = await batches_of(db, mailing_id)
    assert sorted(batch["size"] for batch in batches) == [1, 1, 1, 2, 2, 2]
    assert all(following["first_id"] == batch["last_id"] + 1 for batch, following in pairwise(batches))
    for batch in batches:
        rows = await db.fetch(
            "SELECT timezone FROM messages m JOIN clients c ON c.id = client_id WHERE m.id = ANY($1)", batch["members"]
        )
        (zone,) = {row["timezone"] for row in rows}
        due = {row["due_at"] for row in batches if row["members"] == batch["members"]}
        (hours,) = {round((at - datetime.now(UTC)) / timedelta(hours=1)) for at in due}
        assert hours == hours_until[zone]
    assert not await ledger_errors(db)


async def test_an_edit_between_two_slices_counts_for_the_second(db: Pool) -> None:
    await insert_clients(db, 4)
    mailing_id = await insert_begun(db)
    await plan(db, mailing_id, 2)
    await mailings.edit(db, mailing_id, {"window": NINE_TO_FIVE})
    await plan(db, mailing_id, 5, lambda now, window, timezone: now + timedelta(hours=2))
    first, second = await batches_of(db, mailing_id)
    assert second["due_at"] - first["due_at"] > timedelta(hours=1)
    assert not await ledger_errors(db)


# ---- races --------------------------------------------------------------------------------------------------------


async def two_planners(db: Pool, *, replace: dict[str, str] | None = None) -> None:
    """Both find a mailing with nobody chosen; the second writes when the first has not committed yet."""
    mailing = await waiting(db, await insert_begun(db))
    await while_held(
        db,
        lambda conn: plan_slice(conn, mailing, 2, 1_000),
        lambda conn: plan_slice(conn, mailing, 2, 2_000),
        replace=replace,
    )


async def test_of_two_planners_of_one_mailing_the_second_finds_it_planned_on(db: Pool) -> None:
    clients = await insert_clients(db, 4)
    with pytest.raises(Stale):
        await two_planners(db)
    (mailing,) = await audience.unplanned(db)
    assert await chosen(db, mailing.id) == clients[:2]
    assert not await ledger_errors(db)
    assert await plan_all(db, mailing.id, 3) == [2]
    assert await chosen(db, mailing.id) == clients


async def test_without_the_comparison_two_planners_choose_the_same_clients(db: Pool) -> None:
    """The unique key refuses the second; without that as well, each of them would get two messages."""
    await insert_clients(db, 4)
    with pytest.raises(asyncpg.UniqueViolationError, match="client_id, mailing_id"):
        await two_planners(db, replace={"AND cursor = $2": "AND $2 >= 0"})
    assert not await ledger_errors(db)


async def test_a_slice_that_meets_a_pause_writes_nothing(db: Pool) -> None:
    await insert_clients(db, 4)
    mailing = await waiting(db, await insert_begun(db))
    with pytest.raises(Stale):
        await while_held(
            db,
            lambda conn: mailings.act(conn, mailing.id, "pause"),
            lambda conn: plan_slice(conn, mailing, 2, 1_000),
        )
    assert not await ledger_errors(db)


async def test_a_slice_that_meets_an_edit_of_the_window_writes_nothing(db: Pool) -> None:
    """Batches that were sorted by the old window would be due at its hours; without the comparison they are."""
    await insert_clients(db, 4)
    mailing = await waiting(db, await insert_begun(db))

    async def meet(replace: dict[str, str] | None = None) -> None:
        await while_held(
            db,
            lambda conn: mailings.edit(conn, mailing.id, {"window": NINE_TO_FIVE}),
            lambda conn: plan_slice(conn, mailing, 2, 1_000),
            replace=replace,
        )

    with pytest.raises(Stale):
        await meet()
    assert await chosen(db, mailing.id) == []
    await meet({"IS NOT DISTINCT FROM": "IS DISTINCT FROM"})
    assert len(await chosen(db, mailing.id)) == 2


async def test_an_edit_of_the_text_does_not_disturb_a_slice(db: Pool) -> None:
    clients = await insert_clients(db, 4)
    mailing = await waiting(db, await insert_begun(db))
    await while_held(
        db,
        lambda conn: mailings.edit(conn, mailing.id, {"text": "Hello"}),
        lambda conn: plan_slice(conn, mailing, 5, 1_000),
    )
    assert await chosen(db, mailing.id) == clients


async def test_a_slice_that_breaks_off_leaves_nothing(db: Pool) -> None:
    """Two messages of one id: the crash comes after the messages were written, and takes them along."""
    await insert_clients(db, 4)
    mailing_id = await insert_begun(db)
    await plan_slice(db, await waiting(db, mailing_id), 2, 1_000)
    with pytest.raises(asyncpg.UniqueViolationError):
        await plan_slice(db, await waiting(db, mailing_id), 2, 1_001)
    assert not await ledger_errors(db)
    assert await plan_all(db, mailing_id, 2) == [2, 0]


# ---- ids ----------------------------------------------------------------------------------------------------------


async def test_ids_carry_the_time_and_fit_a_json_integer(db: Pool) -> None:
    first = await audience.take_ids(db, 10)
    seconds = (datetime.now(UTC) - datetime(2025, 1, 1, tzinfo=UTC)).total_seconds()
    assert abs(first / 2**22 - seconds) < 60
    assert first + 5_000 < 2**53
    # fifty more years of them fit as well
    assert (seconds + 50 * 365 * 86_400) * 2**22 < 2**53


async def test_blocks_of_ids_never_overlap_and_only_rise(db: Pool) -> None:
    sizes = [500, 1, 5_000, 5_000, 500, 1, 1, 5_000]
    firsts = await asyncio.gather(*(audience.take_ids(db, size) for size in sizes))
    blocks = sorted(zip(firsts, sizes, strict=True))
    assert all(first + size <= following for (first, size), (following, _) in pairwise(blocks))


AHEAD = 2**52
CLOCK = "(extract(epoch FROM clock_timestamp() - '2025-01-01Z'::timestamptz)"


async def test_ids_rise_also_while_the_clock_is_behind(db: Pool) -> None:
    """The clock was far ahead once: nothing is given twice until it has caught up."""
    await db.execute("UPDATE message_ids SET next = $1", AHEAD)
    assert [await audience.take_ids(db, n) for n in (3, 4, 5)] == [AHEAD, AHEAD + 3, AHEAD + 7]


async def test_without_the_row_a_clock_that_steps_back_gives_ids_twice(db: Pool) -> None:
    await db.execute("UPDATE message_ids SET next = $1", AHEAD)
    async with without(db, {"greatest(next,": "greatest(0,"}) as changed:
        assert await audience.take_ids(changed, 3) < AHEAD


async def test_without_the_clock_a_restored_database_gives_ids_twice(db: Pool) -> None:
    """The backup is older than the ids that were sent since."""
    await db.execute("UPDATE message_ids SET next = 1000")
    async with without(db, {CLOCK: "(0"}) as changed:
        sent = await audience.take_ids(changed, 10)
        await db.execute("UPDATE message_ids SET next = 1000")
        assert await audience.take_ids(changed, 10) == sent
    await db.execute("UPDATE message_ids SET next = 1000")
    assert await audience.take_ids(db, 10) > sent + 10
