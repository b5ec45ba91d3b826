"""The watermark of a batch: when a record grants it, and when it does not."""

from __future__ import annotations

import pytest

from notifier.models import MailingStatus
from notifier.storage import ledger, mailings, queue, statistics
from notifier.storage.database import Db, Pool
from notifier.storage.recording import BatchReport
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import leave_out
from tests.storage.scenes import PEER, claim_one, ledger_of, marked, record_one, report, result, running


async def test_the_mark_is_granted_and_shown_as_sending(db: Pool) -> None:
    mailing_id, _ = await running(db, 5)
    batch = await claim_one(db)

    recorded = await record_one(db, report(batch, 3))

    assert (recorded.batch_id, recorded.owned, recorded.watermark, recorded.finished) == (batch.id, True, 3, False)
    assert (recorded.foreign_rows, recorded.written, recorded.status, recorded.version) == (
        0,
        0,
        MailingStatus.RUNNING,
        1,
    )
    assert recorded.now < recorded.ends_at
    assert (await statistics.of_mailing(db, mailing_id)).messages["sending"] == 3  # type: ignore[index]
    assert not await ledger_errors(db)


# what forbids it, and the part of the statement that says so
GRANTS = {
    "paused": "m.status = 'running' AND",
    "cancelled": "m.status = 'running' AND",
    "ended": "m.ends_at > now() AND",
    "released": "NOT g.release AND",
    "moved": "AND b.watermark = g.old_watermark",
    "late": "AND b.foreign_rows = g.foreign_rows",
}


async def _forbidden(db: Db, why: str) -> tuple[list[int], queue.Claimed, BatchReport]:
    """A batch of four with the first id marked, and a report that asks for one more although something forbids it."""
    mailing_id, ids, batch = await marked(db, 4, watermark=1)
    asks = report(batch, 2, old_watermark=1)
    if why in ("paused", "cancelled"):
        await mailings.act(db, mailing_id, {"paused": "pause", "cancelled": "cancel"}[why])
    elif why == "ended":
        await db.execute("UPDATE mailings SET ends_at = now() - interval '1 ms'")
    elif why == "released":
        asks = asks._replace(release=True)
    elif why == "moved":
        asks = asks._replace(old_watermark=0)
    elif why == "late":
        assert await ledger.append_late(db, PEER, result(0, ids[1]))
    return ids, batch, asks


@pytest.mark.parametrize("why", GRANTS)
async def test_no_mark_is_granted_when(db: Pool, why: str) -> None:
    ids, batch, asks = await _forbidden(db, why)
    recorded = await record_one(db, asks, result(batch, ids[0]))
    assert recorded.watermark == 1
    assert recorded.written == 1  # results are recorded all the same
    assert await ledger_of(db, ids[0]) == [(1, "accepted", "sent", None)]
    assert not await ledger_errors(db)


@pytest.mark.parametrize("why", ["paused", "cancelled", "ended"])
async def test_without_a_look_at_the_mailing_a_mark_is_granted_after_the_word(
    db: Pool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(monkeypatch, GRANTS[why])
    _, _, asks = await _forbidden(db, why)
    assert (await record_one(db, asks)).watermark == 2  # one more may be started


async def test_without_a_look_at_late_rows_an_accepted_message_is_sent_again(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_out(monkeypatch, GRANTS["late"])
    _, _, asks = await _forbidden(db, "late")
    assert (await record_one(db, asks)).watermark == 2
    assert "0 done, 1 rows up to the watermark" in str(await ledger_errors(db))


async def test_without_the_old_mark_what_was_skipped_is_counted_twice(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement of the first record is lost; the second asks for more."""
    leave_out(monkeypatch, GRANTS["moved"])
    _, ids = await running(db, 5)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    for watermark in (2, 3):
        await record_one(db, report(batch, watermark, skipped=1))
    assert "2 done, 1 rows" in str(await ledger_errors(db))


async def test_a_mark_asked_for_again_after_a_lost_acknowledgement_is_the_committed_one(db: Pool) -> None:
    _, ids = await running(db, 5)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    assert batch.foreign_rows == 1
    for watermark in (2, 3):
        recorded = await record_one(db, report(batch, watermark, skipped=1))
        assert recorded.watermark == 2
        assert not await ledger_errors(db)
