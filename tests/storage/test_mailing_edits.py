"""Editing a mailing: every field in every status, its texts, its times, and its window."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, time
from typing import Any

import pytest

from notifier.errors import Conflict, Invalid
from notifier.models import OVER, Filter, Window
from notifier.storage import mailings
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.mailing_scenes import STATUSES, create, texts_of
from tests.storage.scenes import (
    ME,
    batches_of,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    marked,
    record_one,
    report,
    soon,
)

DAY = Window(time(9), time(21))


CHANGES: dict[str, Any] = {
    "name": "autumn",
    "text": "Bye",
    "filter": Filter(["917"]),
    "starts_at": datetime(2035, 1, 1, tzinfo=UTC),
    "ends_at": datetime(2036, 1, 1, tzinfo=UTC),
    "window": DAY,
    "priority": 7,
}


async def test_every_field_in_every_status(db: Pool) -> None:
    for field, status in itertools.product(CHANGES, STATUSES):
        mailing_id = await insert_mailing(db, status, planned=status not in ("draft", "scheduled"))
        before = await mailings.get(db, mailing_id)
        changes = {field: CHANGES[field]}
        if field == "starts_at":
            changes["ends_at"] = CHANGES["ends_at"]
        begun = status in ("running", "paused")
        if status in OVER or (begun and field in ("filter", "starts_at")):
            with pytest.raises(Conflict, match="mailing_over" if status in OVER else f"mailing_started fields={field}"):
                await mailings.edit(db, mailing_id, changes)
            assert await mailings.get(db, mailing_id) == before
        else:
            after = await mailings.edit(db, mailing_id, changes)
            assert getattr(after, field) == CHANGES[field]
            assert after.version == 2
            for other in set(CHANGES) - set(changes):
                assert getattr(after, other) == getattr(before, other)


async def test_both_fixed_fields_are_named(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    with pytest.raises(Conflict, match="fields=filter and starts_at"):
        await mailings.edit(db, mailing_id, {"filter": Filter(), "starts_at": soon()})


async def test_what_was_paused_before_its_start_can_be_changed_wholly(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60))
    await mailings.act(db, mailing.id, "pause")
    assert (await mailings.edit(db, mailing.id, {"filter": Filter(["917"])})).filter == Filter(["917"])


async def test_every_text_that_was_is_kept(db: Pool) -> None:
    mailing = await create(db, text="one")
    assert (await mailings.edit(db, mailing.id, {"text": "two"})).text_version == 2
    assert (await mailings.edit(db, mailing.id, {"text": "two", "name": None})).text_version == 2
    edited = await mailings.edit(db, mailing.id, {"text": "one"})
    assert (edited.text, edited.text_version, edited.name, edited.version) == ("one", 3, None, 4)
    assert await texts_of(db, mailing.id) == [(1, "one"), (2, "two"), (3, "one")]


async def test_an_edit_must_leave_times_that_can_be(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60), ends_at=soon(120))
    for changes in ({"ends_at": soon(-1)}, {"starts_at": soon(180)}, {"ends_at": soon(30)}):
        with pytest.raises(Invalid):
            await mailings.edit(db, mailing.id, changes)
    assert await mailings.get(db, mailing.id) == mailing
    # what is left alone is not judged: a mailing that is about to end can still be renamed
    await db.execute("UPDATE mailings SET starts_at = now() - interval '2 s', ends_at = now() - interval '1 s'")
    assert (await mailings.edit(db, mailing.id, {"name": "x"})).name == "x"


async def test_a_later_end_reaches_a_running_mailing(db: Pool) -> None:
    mailing_id, _, batch = await marked(db, 3, watermark=1)
    ends_at = soon(7200)
    await mailings.edit(db, mailing_id, {"ends_at": ends_at})
    recorded = await record_one(db, report(batch, 2, old_watermark=1))
    assert (recorded.ends_at, recorded.version, recorded.watermark) == (ends_at, 2, 2)


async def _five_batches(db: Db) -> tuple[int, list[int]]:
    """Waiting for a window, due already, in hand; a retry soon, a retry whose window opens in an hour."""
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 5)
    for id_ in ids[3:]:
        await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
    batches = [
        await insert_batch(db, mailing_id, [ids[0]], due_in=3600),
        await insert_batch(db, mailing_id, [ids[1]], due_in=-60),
        await insert_batch(db, mailing_id, [ids[2]], due_in=1000, replica=ME),
        await insert_batch(db, mailing_id, [ids[3]], seq=2, state="retrying", due_in=250),
        await insert_batch(db, mailing_id, [ids[4]], seq=2, state="retrying", due_in=3600),
    ]
    return mailing_id, batches


@pytest.mark.parametrize(("window", "due"), [(DAY, [0, 0, 1000, 250, 0]), (None, [3600, -60, 1000, 250, 3600])])
async def test_another_window_makes_what_waits_for_it_due_at_once(
    db: Pool, window: Window | None, due: list[int]
) -> None:
    """But a backoff goes on, what is in hand is its owner's; and no change of the window changes nothing."""
    mailing_id, batches = await _five_batches(db)
    now = await mailings.clock(db)
    await mailings.edit(db, mailing_id, {"window": window, "text": "new"})
    rows = {row["id"]: row["due_at"] for row in await batches_of(db, mailing_id)}
    assert [round((rows[batch] - now).total_seconds() / 10) * 10 for batch in batches] == due
    assert not await ledger_errors(db)
