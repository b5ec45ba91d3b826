"""The fence and the release: who lost a batch writes nothing, and what is given back goes into a new batch."""

from __future__ import annotations

from typing import Any

import pytest

from notifier.models import MailingStatus
from notifier.storage import mailings, queue, recording
from notifier.storage.database import Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import leave_out
from tests.storage.scenes import (
    LATER,
    ME,
    PEER,
    adopt_all,
    batches_of,
    claim_one,
    insert_batch,
    insert_mailing,
    insert_messages,
    ledger_of,
    marked,
    record_one,
    report,
    result,
    running,
)

# ---- record: the fence --------------------------------------------------------------------------------------------


async def test_who_lost_the_batch_writes_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await adopt_all(db, PEER)  # nobody is registered
    before = await batches_of(db, mailing_id)

    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0], "rejected", "failed"))

    assert not recorded.owned
    assert await batches_of(db, mailing_id) == before
    assert await ledger_of(db, ids[0]) == []
    assert not await ledger_errors(db)


async def test_who_lost_one_of_two_batches_records_the_other(db: Pool) -> None:
    _, _, lost = await marked(db, 2, watermark=2)
    await adopt_all(db, PEER)
    _, ids, kept = await marked(db, 2, watermark=2)
    first, second = await recording.record(
        db,
        ME,
        [report(lost, 2, old_watermark=2), report(kept, 2, old_watermark=2)],
        [result(lost, lost.ids[0]), result(kept, ids[0])],
    )
    assert (first.owned, second.owned, second.written) == (False, True, 1)
    assert not await ledger_errors(db)


async def test_a_take_over_settles_what_is_in_doubt_and_gives_back_the_rest(db: Pool) -> None:
    mailing_id, ids, _ = await marked(db, 4, watermark=2)
    (reclaimed,) = await adopt_all(db, PEER)
    await record_one(db, *_interrupted(reclaimed), replica=PEER)
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["seq"], row["owner"]) for row in rows] == [(ids[2:], 1, None), (ids[:2], 2, None)]
    assert not await ledger_errors(db)


def _interrupted(reclaimed: queue.Claimed) -> Any:
    rows = [
        result(reclaimed, id_, "interrupted", "doubtful", reason="interrupted", due_at=LATER)
        for id_ in reclaimed.ids[: reclaimed.watermark]
    ]
    return report(reclaimed, release=True), *rows


async def test_without_the_fence_a_lost_owner_starts_what_nobody_settles(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(monkeypatch, " AND b.owner = g.owner")
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    (reclaimed,) = await adopt_all(db, PEER)
    assert (await record_one(db, report(batch, 4, old_watermark=2))).watermark == 4
    await record_one(db, *_interrupted(reclaimed), replica=PEER)
    rows = await batches_of(db, mailing_id)
    assert rows[0]["members"] == ids  # three and four are in doubt, and nobody's business
    assert (rows[0]["watermark"], rows[0]["done"]) == (4, 2)


# ---- record: release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", [False, True])
async def test_a_release_splits_at_the_mark(db: Pool, as_list: bool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 6)
    members = [ids[0], ids[2], ids[3], ids[5]] if as_list else range(ids[0], ids[0] + 6)
    for id_ in set(ids) - set(members):
        await insert_batch(db, mailing_id, [id_], due_in=60)
    await insert_batch(db, mailing_id, members)
    batch = await claim_one(db)
    await record_one(db, report(batch, 2))

    recorded = await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, members[0]))

    assert (recorded.watermark, recorded.finished) == (2, False)
    rows = [row for row in await batches_of(db, mailing_id) if row["due_at"] == batch.due_at]
    assert [(row["members"], row["owner"], row["watermark"], row["done"]) for row in rows] == [
        (list(members[:2]), batch.owner, 2, 1),
        (list(members[2:]), None, 0, 0),
    ]
    assert rows[1]["size"] == len(members) - 2
    assert (rows[1]["ids"] is None) is not as_list
    assert not await ledger_errors(db)
    (tail,) = await queue.claim(db, PEER, after=0)
    assert list(tail.ids) == list(members[2:])
    not_started = result(batch, members[1], "not_started", "waiting", reason="released", due_at=batch.due_at)
    assert (await record_one(db, report(batch, 2, old_watermark=2, release=True), not_started)).finished
    assert not await ledger_errors(db)


async def test_a_release_before_any_mark_gives_everything_back(db: Pool) -> None:
    mailing_id, ids = await running(db, 4)
    batch = await claim_one(db)
    assert (await record_one(db, report(batch, release=True))).finished
    (row,) = await batches_of(db, mailing_id)
    assert (row["members"], row["owner"], row["due_at"]) == (ids, None, batch.due_at)
    assert row["id"] != batch.id
    assert not await ledger_errors(db)


async def test_a_release_with_everything_marked_leaves_no_tail(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert [row["members"] for row in await batches_of(db, mailing_id)] == [ids]
    assert not await ledger_errors(db)


async def test_pause_is_heard_with_the_next_record_and_released(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await mailings.act(db, mailing_id, "pause")
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0]))
    assert (recorded.status, recorded.version, recorded.watermark) == (MailingStatus.PAUSED, 2, 2)
    not_started = result(batch, ids[1], "not_started", "waiting", reason="paused", due_at=batch.due_at)
    assert (await record_one(db, report(batch, 2, old_watermark=2, release=True), not_started)).finished
    assert sorted((row["members"], row["seq"]) for row in await batches_of(db, mailing_id)) == [
        ([ids[1]], 2),
        (ids[2:], 1),
    ]
    assert not await ledger_errors(db)


async def test_without_the_tail_a_release_loses_messages(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out(monkeypatch, "FROM fence WHERE release AND watermark < size", "FROM fence WHERE false")
    _, _, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert "should write 1, would write None" in str(await ledger_errors(db))


async def test_without_a_ledger_row_for_the_marked_a_release_hides_what_may_have_been_sent(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the marked given back too, a message whose request is under way would be sent by the next owner as well."""
    leave_out(
        monkeypatch,
        "CASE WHEN f.release THEN f.watermark ELSE f.size END",
        "CASE WHEN f.release THEN f.done ELSE f.size END",
    )
    for part in ("coalesce(ids[watermark + 1], first_id + watermark)", "size - watermark,", "ids[watermark + 1:]"):
        leave_out(monkeypatch, part, part.replace("watermark", "done"))
    leave_out(monkeypatch, "release AND watermark < size", "release AND done < size")
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    (theirs,) = await queue.claim(db, PEER, after=0)
    assert list(theirs.ids) == ids
    assert (await record_one(db, report(theirs, 2), replica=PEER)).watermark == 2
    assert await ledger_of(db, ids[0]) == []  # and nothing says that it happened twice
    assert mailing_id
