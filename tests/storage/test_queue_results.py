"""Recording results: each scene states its batches, then what is written of them, once and a second time."""

from __future__ import annotations

import itertools
from typing import Any

import asyncpg
import pytest

from notifier.models import MessageState
from notifier.storage import ledger, queue, recording, statistics
from notifier.storage.database import Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.races import leave_out, while_held
from tests.storage.scenes import (
    AT,
    LATER,
    ME,
    PEER,
    batches_of,
    claim_one,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    ledger_of,
    marked,
    record_one,
    report,
    result,
    running,
    soon,
)


async def test_results_are_counted_and_what_goes_on_is_grouped(db: Pool) -> None:
    """Retry batches are grouped by (due, seq, state); every transition out of waiting is in one flush."""
    mailing_id, ids, batch = await marked(db, 10, watermark=10)
    soon_, later = soon(60), soon(120)
    recorded = await record_one(
        db,
        report(batch),
        result(batch, ids[0]),
        result(batch, ids[1], "rejected", "failed", reason="rejected"),
        result(batch, ids[2], "declined", "failed"),
        result(batch, ids[3], "unavailable", "retrying", reason="dns", due_at=soon_),
        result(batch, ids[4], "unavailable", "retrying", reason="dns", due_at=later),
        result(batch, ids[5], "throttled", "retrying", reason="throttled", due_at=soon_),
        result(batch, ids[6], "unknown", "doubtful", reason="timeout", due_at=soon_),
        result(batch, ids[7], "unknown", "unknown", reason="timeout"),
        result(batch, ids[8], "suppressed", "suppressed", reason="client_deleted"),
        result(batch, ids[9], "not_started", "waiting", reason="window", due_at=soon_),
    )

    assert (recorded.written, recorded.finished) == (10, True)
    rows = await batches_of(db, mailing_id)
    assert sorted((row["members"], row["due_at"], row["seq"], row["state"]) for row in rows) == [
        ([ids[3], ids[5]], soon_, 2, "retrying"),
        ([ids[4]], later, 2, "retrying"),
        ([ids[6]], soon_, 2, "doubtful"),
        ([ids[9]], soon_, 2, "waiting"),
    ]
    found = await statistics.of_mailing(db, mailing_id)
    assert {(failure.reason, failure.count) for failure in found.failures} == {("rejected", 1), ("unknown", 1)}
    assert {status.value: n for status, n in found.messages.items() if n} == {
        "waiting": 1,
        "retrying": 4,
        "sent": 1,
        "failed": 2,
        "suppressed": 1,
        "unknown": 1,
    }
    assert not await ledger_errors(db)


STANDINGS = [s.value for s in MessageState if s not in ("delivered", "undelivered")]


async def test_every_step_moves_the_counters(db: Pool) -> None:
    for before, after in itertools.product(("waiting", "retrying", "doubtful"), STANDINGS):
        outcomes = {"waiting": "not_started", "retrying": "unavailable", "doubtful": "unknown"}
        mailing_id = await insert_mailing(db)
        (id_,) = await insert_messages(db, mailing_id, 1)
        await insert_ledger(db, mailing_id, id_, (outcomes[before], before, "paused"))
        await insert_batch(db, mailing_id, [id_], seq=2, state=before)
        batch = await claim_one(db)
        await record_one(db, report(batch, 1))
        assert not await ledger_errors(db)

        goes_on = LATER if after in outcomes else None
        outcome = outcomes.get(after, {"sent": "accepted", "failed": "rejected"}.get(after, after))
        await record_one(db, report(batch), result(batch, id_, outcome, after, reason="reset", due_at=goes_on))

        assert not await ledger_errors(db)
        assert (await ledger_of(db, id_))[-1] == (2, outcome, after, "reset")


async def test_results_come_in_any_order_and_finish_the_batch(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 3, watermark=3)
    assert (await record_one(db, report(batch), result(batch, ids[2]))).finished is False
    assert not await ledger_errors(db)
    assert (await record_one(db, report(batch), result(batch, ids[0]), result(batch, ids[1]))).finished is True
    assert await batches_of(db, mailing_id) == []
    assert not await ledger_errors(db)


async def test_results_and_a_new_mark_go_together(db: Pool) -> None:
    _, ids, batch = await marked(db, 5, watermark=2)
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    assert (recorded.watermark, recorded.written) == (4, 2)
    assert not await ledger_errors(db)


async def test_batches_of_several_mailings_are_recorded_at_once(db: Pool) -> None:
    works = []
    for _ in range(3):
        await running(db, 2)
        works.append(await claim_one(db))
    recorded = await recording.record(db, ME, [report(batch, 2) for batch in works], [])
    assert [(row.batch_id, row.watermark) for row in recorded] == [(batch.id, 2) for batch in works]
    reports = [report(batch, 2, old_watermark=2) for batch in works]
    results = [result(batch, id_) for batch in works for id_ in batch.ids]
    recorded = await recording.record(db, ME, reports, results)
    assert all(row.finished and row.written == 2 for row in recorded)
    assert not await ledger_errors(db)


async def test_the_same_record_again_changes_nothing(db: Pool) -> None:
    """The acknowledgement was lost: watermark, rows, retry batches and counters are there once."""
    mailing_id, ids, batch = await marked(db, 6, watermark=3)
    words = (
        report(batch, 5, old_watermark=3),
        result(batch, ids[0]),
        result(batch, ids[1], "unavailable", "retrying", reason="dns", due_at=LATER),
        result(batch, ids[2], "rejected", "failed", reason="rejected"),
    )
    first = await record_one(db, *words)
    before = await batches_of(db, mailing_id)
    again = await record_one(db, *words)
    assert (first.written, again.written, again.watermark) == (3, 0, 5)
    after = await batches_of(db, mailing_id)
    assert before == after
    assert not await ledger_errors(db)
    keys = [(id_, 1, AT) for id_ in ids]
    assert await ledger.mine(db, ME, keys) == set(keys[:3])


async def test_the_same_release_again_changes_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 6, watermark=3)
    words = (report(batch, 3, old_watermark=3, release=True), result(batch, ids[0]))
    for _ in range(2):
        await record_one(db, *words)
        assert [row["members"] for row in await batches_of(db, mailing_id)] == [ids[:3], ids[3:]]
        assert not await ledger_errors(db)


async def test_without_not_exists_a_replay_refuses_everything(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row there already, no other result of the flush could ever be recorded."""
    skip = "WHERE NOT EXISTS (SELECT FROM attempts a WHERE a.message_id = r.message_id AND a.seq = f.seq)"
    leave_out(monkeypatch, skip)
    _, ids, batch = await marked(db, 3, watermark=3)
    await record_one(db, report(batch), result(batch, ids[0]))
    for _ in range(2):
        with pytest.raises(asyncpg.UniqueViolationError):
            await record_one(db, report(batch), result(batch, ids[0]), result(batch, ids[1]))
    assert await ledger_of(db, ids[1]) == []


async def test_without_counting_from_rows_really_written_a_replay_counts_twice(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "(SELECT r.message_id, f.seq FROM result r JOIN fence f ON f.id = r.batch_id)"
    leave_out(monkeypatch, "FROM written w JOIN", f"FROM {given} w JOIN")
    _, ids, batch = await marked(db, 4, watermark=3)
    await record_one(db, report(batch), result(batch, ids[0]))
    assert not await ledger_errors(db)
    await record_one(db, report(batch), result(batch, ids[0]))
    assert "counters {'sent': 2}, counted {'sent': 1}" in str(await ledger_errors(db))


async def test_two_numbers_of_one_message_in_one_record_are_told_apart(db: Pool) -> None:
    """A late row moved the message on into another batch of ours while its old request was still under way."""
    mailing_id, ids, old = await marked(db, 2, watermark=2)
    late = result(0, ids[0], "unavailable", "retrying", reason="reset", due_at=soon(-1))
    assert await ledger.append_late(db, PEER, late)
    new = await claim_one(db)
    assert (new.seq, list(new.ids)) == (2, [ids[0]])
    await record_one(db, report(new, 1))

    await recording.record(
        db,
        ME,
        [report(old), report(new)],
        [result(old, ids[0], "rejected", "failed", reason="rejected"), result(new, ids[0])],
    )

    assert [row[2] for row in await ledger_of(db, ids[0])] == ["retrying", "sent"]
    assert not await ledger_errors(db)
    assert mailing_id


REFUSED: list[dict[str, Any]] = [
    {"detail": "a\x00b"},
    {"detail": "\ud800"},
    {"status_code": 40_000},
    {"duration_ms": 2**31},
]


async def test_a_refused_value_raises_and_writes_nothing(db: Pool) -> None:
    for refused in REFUSED:
        mailing_id, ids, batch = await marked(db, 3, watermark=2)
        before = await batches_of(db, mailing_id)
        with pytest.raises((asyncpg.PostgresError, ValueError)):
            await record_one(
                db, report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1], **refused)
            )
        assert await batches_of(db, mailing_id) == before
        assert await ledger_of(db, ids[0]) == []
        assert not await ledger_errors(db)


async def test_another_row_that_comes_in_between_raises_and_the_second_try_passes(db: Pool) -> None:
    """The record waits for the batch that somebody writes a late row for; its snapshot is older than that row."""
    mailing_id, ids, batch = await marked(db, 3, watermark=2)
    words = (report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    with pytest.raises(asyncpg.UniqueViolationError):
        await while_held(
            db,
            lambda conn: ledger.append_late(conn, PEER, result(0, ids[0], "rejected", "failed", reason="rejected")),
            lambda conn: record_one(conn, *words),
        )
    assert not await ledger_errors(db)
    assert await ledger_of(db, ids[1]) == []

    recorded = await record_one(db, *words)

    assert (recorded.written, recorded.foreign_rows, recorded.watermark) == (
        1,
        1,
        2,
    )  # load again before asking for a watermark
    assert await ledger_of(db, ids[0]) == [(1, "rejected", "failed", "late")]
    assert not await ledger_errors(db)
    assert mailing_id


async def test_ids_that_have_their_row_are_skipped_and_the_batch_still_ends(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    for id_ in ids[:2]:
        assert await ledger.append_late(db, PEER, result(0, id_))
    batch = await claim_one(db)
    loaded = await queue.load(db, batch.ids, [1, 1, 1])
    assert [message.recorded for message in loaded] == [True, True, False]
    recorded = await record_one(db, report(batch, 3, skipped=2))
    assert (recorded.watermark, recorded.finished) == (3, False)
    assert not await ledger_errors(db)
    assert (await record_one(db, report(batch, 3, old_watermark=3), result(batch, ids[2]))).finished
    assert not await ledger_errors(db)
    assert await batches_of(db, mailing_id) == []


async def test_a_batch_with_nothing_left_to_do_ends_with_its_mark(db: Pool) -> None:
    mailing_id, ids = await running(db, 1)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    assert (await record_one(db, report(batch, 1, skipped=1))).finished
    assert await batches_of(db, mailing_id) == []
    assert not await ledger_errors(db)
