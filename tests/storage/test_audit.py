"""The audit: a world in every legal state has no breach, and each rule that is broken is found by its name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from notifier.storage import audit, mailing_lifecycle, mailings
from notifier.storage.audit import Finding
from notifier.storage.audit_checks import CHECKS
from notifier.storage.database import Db, Pool
from tests.storage.scenes import insert_batch, insert_ledger, insert_mailing, insert_messages, let_a_month_pass, running

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
RUNNING, COMPLETED, CANCELLED, DRAFT, DELETED, BIN = range(1, 7)
OWNED, RETRIES = 1, 2  # batches


async def sound(db: Db) -> None:
    """A mailing in each state; the running one has the messages 1 to 8 and the batches OWNED and RETRIES.

    Completed: 9. Cancelled: 10, 11. Deleted, its first slice purged: 12, 13 are gone, 14 is there.
    Archived, and deleted just now: 15.
    """
    assert await insert_mailing(db) == RUNNING
    ids = await insert_messages(db, RUNNING, 8)
    await insert_ledger(db, RUNNING, ids[0], ("not_started", "waiting", "window"), ("accepted", "sent", None))
    await insert_ledger(db, RUNNING, ids[1], ("rejected", "failed", "rejected"), ("rejected", "failed", "late"))
    for id_ in ids[2:4]:
        await insert_ledger(db, RUNNING, id_, ("unavailable", "retrying", "dns"))
    await insert_ledger(db, RUNNING, ids[4], ("accepted", "sent", None))
    await db.execute("UPDATE attempts SET text_version = 1 WHERE outcome = 'accepted'")
    assert await insert_batch(db, RUNNING, range(ids[4], ids[7] + 1), replica=7, watermark=2, done=1) == OWNED
    assert await insert_batch(db, RUNNING, ids[2:4], seq=2, state="retrying") == RETRIES

    assert await insert_mailing(db, "finished", over_for=60) == COMPLETED
    ids = await insert_messages(db, COMPLETED, 1)
    await insert_ledger(db, COMPLETED, ids[0], ("accepted", "sent", None))
    await db.execute("UPDATE mailings SET status_reason = 'completed' WHERE id = $1", COMPLETED)

    assert await insert_mailing(db, "cancelled", over_for=60) == CANCELLED
    ids = await insert_messages(db, CANCELLED, 2)
    await insert_ledger(db, CANCELLED, ids[1], ("not_started", "waiting", "ended"))
    await insert_batch(db, CANCELLED, range(ids[0], ids[0] + 1))
    await insert_batch(db, CANCELLED, [ids[1]], seq=2)

    assert await insert_mailing(db, "draft", planned=False) == DRAFT

    assert await insert_mailing(db, "cancelled", over_for=60) == DELETED
    ids = await insert_messages(db, DELETED, 2)
    for id_ in ids:
        await insert_ledger(db, DELETED, id_, ("rejected", "failed", "rejected"))
    last = (await insert_messages(db, DELETED, 1))[0]
    await insert_batch(db, DELETED, range(last, last + 1))
    await mailings.delete(db, DELETED)
    await let_a_month_pass(db)
    assert await mailing_lifecycle.purge(db)

    assert await insert_mailing(db, "finished", over_for=60) == BIN
    ids = await insert_messages(db, BIN, 1)
    await insert_ledger(db, BIN, ids[0], ("accepted", "sent", None))
    await mailings.archive(db, BIN, True)
    await mailings.delete(db, BIN)


async def breaches(db: Db) -> dict[str, list[int]]:
    return {finding.name: finding.ids async for finding in audit.run(db) if finding.breach}


async def test_what_is_sound_has_no_breach_and_every_check_looks_at_something(db: Pool) -> None:
    await sound(db)
    findings = [finding async for finding in audit.run(db)]
    assert [finding for finding in findings if finding.breach] == []
    counts = {finding.name: finding.count for finding in findings}
    assert list(counts) == [check.name for check in CHECKS]
    assert [name for name, count in counts.items() if not count] == []
    assert (counts["mailings_over"], counts["audience"], counts["ledger_dense"], counts["queued_all"]) == (6, 5, 8, 8)


async def test_an_empty_database_has_no_breach(db: Pool) -> None:
    assert await breaches(db) == {}


# check → (what breaks it, the ids that are named, what else that cannot but break)
BREAKS: dict[str, list[tuple[str, list[int], set[str]]]] = {
    "mailings_over": [
        (f"UPDATE mailings SET over_at = NULL WHERE id = {CANCELLED}", [CANCELLED], set()),
        (f"UPDATE mailings SET over_at = now() WHERE id = {RUNNING}", [RUNNING], set()),
        (f"UPDATE mailings SET deleted_at = now() WHERE id = {RUNNING}", [RUNNING], set()),
    ],
    "mailings_begun": [
        (f"UPDATE mailings SET horizon = NULL WHERE id = {RUNNING}", [RUNNING], set()),
        (f"UPDATE mailings SET horizon = 0 WHERE id = {DRAFT}", [DRAFT], set()),
        (f"UPDATE mailings SET planned = true WHERE id = {DRAFT}", [DRAFT], set()),
        (f"UPDATE mailings SET audience = 1 WHERE id = {DRAFT}", [DRAFT], {"audience"}),
        (f"UPDATE mailings SET cursor = 1 WHERE id = {RUNNING}", [RUNNING], set()),
        (f"UPDATE mailings SET started_at = now() WHERE id = {DRAFT}", [DRAFT], set()),
    ],
    "mailings_archived": [(f"UPDATE mailings SET archived_at = now() WHERE id = {RUNNING}", [RUNNING], set())],
    "mailings_completed": [
        (f"UPDATE mailings SET status_reason = 'nobody_matched' WHERE id = {COMPLETED}", [COMPLETED], set()),
        (f"UPDATE mailings SET planned = false WHERE id = {COMPLETED}", [COMPLETED], set()),
        (
            "INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state) "
            f"VALUES ({COMPLETED}, now(), 9, 9, 1, 1, 'waiting')",
            [COMPLETED],
            set(),
        ),
    ],
    "texts_kept": [
        (f"DELETE FROM mailing_texts WHERE mailing_id = {DRAFT}", [DRAFT], set()),
        (f"UPDATE mailings SET text_version = 2 WHERE id = {RUNNING}", [RUNNING], set()),
        (f"INSERT INTO mailing_texts VALUES ({RUNNING}, 2, '')", [RUNNING], set()),
        (
            f"UPDATE mailing_texts SET version = 2 WHERE mailing_id = {RUNNING}; "
            f"INSERT INTO mailing_texts VALUES ({RUNNING}, 3, ''); "
            f"UPDATE mailings SET text_version = 2 WHERE id = {RUNNING}",
            [RUNNING],
            {"ledger_texts"},
        ),
    ],
    "no_orphans": [
        ("INSERT INTO counters VALUES (99, 0, 'sent', 0)", [99], set()),
        ("INSERT INTO failures VALUES (99, 0, 'dns', 1)", [99], set()),
        ("INSERT INTO series VALUES (99, 0, now(), 1, 0)", [99], set()),
        (f"UPDATE slices SET mailing_id = 99 WHERE mailing_id = {RUNNING}", [99], {"slices_complete", "slices_filled"}),
        (f"UPDATE batches SET mailing_id = 99 WHERE id = {OWNED}", [99], {"queued_all", "statistics"}),
    ],
    "audience": [
        (f"UPDATE mailings SET audience = 9 WHERE id = {RUNNING}", [RUNNING], set()),
        # What was deleted and can be restored is whole.
        (
            f"DELETE FROM messages WHERE mailing_id = {BIN}",
            [BIN],
            {"slices_complete", "slices_filled", "ledger_messages"},
        ),
    ],
    "slices_complete": [
        (f"INSERT INTO messages VALUES (0, {RUNNING}, 999)", [RUNNING], {"audience", "queued_all"}),
        ("INSERT INTO messages VALUES (0, 99, 999)", [99], {"queued_all"}),
    ],
    "slices_filled": [
        (
            f"UPDATE slices SET first_id = first_id + 100, last_id = last_id + 100 WHERE mailing_id = {CANCELLED}",
            [CANCELLED],
            set(),
        ),
    ],
    "slices_apart": [
        (
            f"UPDATE slices SET last_id = 5 WHERE mailing_id = {RUNNING}; INSERT INTO slices VALUES ({RUNNING}, 4, 6)",
            [RUNNING],
            set(),
        ),
        (f"INSERT INTO slices VALUES ({RUNNING}, 90, 89)", [RUNNING], set()),
    ],
    "message_ids": [
        ("UPDATE message_ids SET next = 15", [15], set()),
        ("DELETE FROM message_ids", [15], set()),
    ],
    "ledger_dense": [
        ("UPDATE attempts SET seq = 2 WHERE message_id = 5", [5], {"batches_done"}),
        ("UPDATE attempts SET seq = seq + 2 WHERE message_id = 1", [1], set()),
        ("UPDATE attempts SET seq = 3 WHERE message_id = 1 AND seq = 2", [1], set()),
    ],
    "ledger_messages": [
        (f"UPDATE attempts SET mailing_id = {RUNNING} WHERE message_id = 11", [11], set()),
        (
            "INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq) "
            f"VALUES (99, {RUNNING}, now(), 'not_started', 'waiting', 1)",
            [99],
            set(),
        ),
    ],
    "ledger_steps": [
        ("UPDATE attempts SET outcome = 'accepted' WHERE message_id = 2", [2], set()),
        ("UPDATE attempts SET outcome = 'declined' WHERE message_id = 1 AND seq = 2", [1], set()),
    ],
    "in_doubt": [
        (
            "INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq) "
            f"SELECT 1, {RUNNING}, now(), 'unknown', 'sent', n FROM generate_series(3, 6) n",
            [1],
            set(),
        ),
    ],
    "ledger_texts": [("UPDATE attempts SET text_version = 2 WHERE message_id = 1", [1], set())],
    "counters": [
        (f"UPDATE counters SET n = n + 1 WHERE mailing_id = {RUNNING} AND state = 'sent'", [RUNNING], set()),
        (f"DELETE FROM counters WHERE mailing_id = {COMPLETED}", [COMPLETED], set()),
        (f"INSERT INTO counters VALUES ({CANCELLED}, 0, 'sent', 1)", [CANCELLED], set()),
        (f"INSERT INTO counters VALUES ({RUNNING}, 0, 'waiting', 1)", [RUNNING], set()),
    ],
    "failures": [
        ("UPDATE failures SET reason = 'late'", [RUNNING], set()),
        (f"UPDATE failures SET n = 2 WHERE mailing_id = {RUNNING}", [RUNNING], set()),
        (f"DELETE FROM failures WHERE mailing_id = {RUNNING}", [RUNNING], set()),
        (f"INSERT INTO failures VALUES ({COMPLETED}, 0, 'dns', -1)", [COMPLETED], set()),
    ],
    "series": [
        (f"UPDATE series SET sent = sent + 1 WHERE mailing_id = {RUNNING}", [RUNNING], set()),
        (f"UPDATE series SET failed = failed - 1 WHERE mailing_id = {RUNNING}", [RUNNING], set()),
        (f"DELETE FROM series WHERE mailing_id = {COMPLETED}", [COMPLETED], set()),
    ],
    "statistics": [
        (f"UPDATE counters SET n = -1 WHERE mailing_id = {DELETED}", [DELETED], set()),
        (f"UPDATE counters SET n = 4 WHERE mailing_id = {DELETED}", [DELETED], set()),
        (f"UPDATE batches SET state = 'doubtful' WHERE id = {OWNED}", [RUNNING], {"queued_next"}),
    ],
    "batches_sorted": [
        (f"UPDATE batches SET ids = '{{4,3}}' WHERE id = {RETRIES}", [RETRIES], set()),
        (f"UPDATE batches SET first_id = 2 WHERE id = {RETRIES}", [RETRIES], set()),
        (f"UPDATE batches SET last_id = 5 WHERE id = {RETRIES}", [RETRIES], set()),
    ],
    "batches_messages": [
        (
            f"UPDATE batches SET ids = '{{3,9}}', last_id = 9 WHERE id = {RETRIES}",
            [RETRIES],
            {"queued_all", "queued_next"},
        ),
        (f"UPDATE batches SET last_id = 9, size = 5 WHERE id = {OWNED}", [OWNED], set()),
    ],
    "batches_done": [
        (f"UPDATE batches SET done = 2 WHERE id = {OWNED}", [OWNED], set()),
        (f"UPDATE batches SET done = 0 WHERE id = {OWNED}", [OWNED], set()),
    ],
    "queued_once": [
        (
            "INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state) "
            f"VALUES ({RUNNING}, now(), 4, 4, 1, 2, 'retrying')",
            [4],
            set(),
        ),
    ],
    "queued_next": [
        (f"UPDATE batches SET state = 'doubtful' WHERE id = {RETRIES}", [3, 4], set()),
        (f"UPDATE batches SET seq = 3 WHERE id = {RETRIES}", [3, 4], {"queued_all"}),
        (
            "INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state) "
            f"VALUES ({RUNNING}, now(), 1, 1, 1, 3, 'sent')",
            [1],
            set(),
        ),
    ],
    "queued_all": [
        (f"DELETE FROM batches WHERE id = {RETRIES}", [3, 4], set()),
        (f"DELETE FROM batches WHERE mailing_id = {CANCELLED}", [10, 11], set()),
        (f"UPDATE batches SET last_id = 7, size = 3 WHERE id = {OWNED}", [8], set()),
    ],
}


def test_every_check_has_something_that_breaks_it() -> None:
    assert list(BREAKS) == [check.name for check in CHECKS]


@pytest.mark.parametrize("name", BREAKS)
async def test_what_is_broken_is_found_by_its_name(db: Pool, name: str) -> None:
    await sound(db)
    async with db.acquire() as connection:
        for sql, ids, also in BREAKS[name]:
            transaction = connection.transaction()
            await transaction.start()
            await connection.execute(sql)
            findings = [await audit._finding(connection, check) for check in CHECKS]
            await transaction.rollback()
            found = {finding.name: finding.ids for finding in findings if finding.breach}
            assert found.get(name) == ids, sql
            assert found.keys() == {name, *also}, sql


SENT, RETRYING = ("accepted", "sent", None), ("unavailable", "retrying", "dns")
FAILED, SUPPRESSED = ("rejected", "failed", "rejected"), ("suppressed", "suppressed", "client_deleted")
DOUBT, GIVEN_UP = ("unknown", "doubtful", "timeout"), ("unknown", "unknown", "timeout")
LOST, NOT_STARTED = ("interrupted", "doubtful", "interrupted"), ("not_started", "waiting", "window")
LEDGERS: list[tuple[str | None, list[tuple[str, str, str | None]]]] = [
    (None, [NOT_STARTED, NOT_STARTED, RETRYING, SENT]),
    (None, [LOST, ("accepted", "sent", "late"), ("unknown", "sent", "late")]),
    (None, [LOST, ("rejected", "failed", "late"), ("accepted", "sent", "late")]),
    (None, [LOST, SUPPRESSED, ("accepted", "sent", "late")]),
    (None, [LOST, FAILED, ("unavailable", "failed", "late")]),
    (None, [DOUBT, ("unavailable", "retrying", "late"), RETRYING]),
    (None, [GIVEN_UP, ("resolved", "sent", "operator")]),
    (None, [("accepted", "unknown", "unrecordable"), ("accepted", "unknown", "late")]),
    ("ledger_steps", [("accepted", "unknown", None)]),
    ("ledger_steps", [("accepted", "failed", "unrecordable")]),
    ("ledger_steps", [SENT, FAILED]),
    ("ledger_steps", [SENT, RETRYING]),
    ("ledger_steps", [FAILED, RETRYING]),
    ("ledger_steps", [SUPPRESSED, ("unavailable", "failed", "late")]),
    ("ledger_steps", [RETRYING, NOT_STARTED]),
    (None, [DOUBT, DOUBT, GIVEN_UP]),
    (None, [DOUBT, DOUBT, GIVEN_UP, ("resolved", "doubtful", "operator"), GIVEN_UP]),
    (None, [LOST, ("unknown", "doubtful", "late"), LOST, ("unknown", "doubtful", "late"), GIVEN_UP]),
    (None, [DOUBT, DOUBT, LOST, ("unavailable", "doubtful", "late"), GIVEN_UP]),
    ("in_doubt", [DOUBT, DOUBT, DOUBT, GIVEN_UP]),
    ("in_doubt", [LOST, LOST, LOST, LOST]),
    ("in_doubt", [LOST, DOUBT, GIVEN_UP, ("unknown", "doubtful", "late"), GIVEN_UP]),
]


async def test_which_ledgers_can_be(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, len(LEDGERS))
    for message_id, (_, ledger) in zip(ids, LEDGERS, strict=True):
        await insert_ledger(db, mailing_id, message_id, *ledger)
        if ledger[-1][1] in ("waiting", "retrying", "doubtful"):
            await insert_batch(db, mailing_id, [message_id], seq=len(ledger) + 1, state=ledger[-1][1])
    assert await breaches(db) == {
        name: [id_ for id_, (broken, _) in zip(ids, LEDGERS, strict=True) if broken == name]
        for name in ("ledger_steps", "in_doubt")
    }


async def test_a_batch_that_a_late_truth_put_back_after_the_end_is_no_breach(db: Pool) -> None:
    mailing_id = await insert_mailing(db, "finished", over_for=60, ends_in=-30)
    (message_id,) = await insert_messages(db, mailing_id, 1)
    await insert_ledger(db, mailing_id, message_id, GIVEN_UP, ("unavailable", "retrying", "late"))
    await insert_batch(db, mailing_id, range(message_id, message_id + 1), seq=3, state="retrying")
    await db.execute("UPDATE mailings SET status_reason = 'completed'")
    assert await breaches(db) == {}


async def test_ten_ids_are_named(db: Pool) -> None:
    _, ids = await running(db, 12)
    await db.execute("DELETE FROM batches")
    (finding,) = [finding async for finding in audit.run(db) if finding.breach]
    assert finding == Finding("queued_all", 12, ids[:10])


def test_the_line_of_a_finding() -> None:
    assert str(Finding("audience", 7, [])) == "ok audience 7"
    assert str(Finding("audience", 2, [3, 5])) == "BREACH audience 2 3 5"
    assert str(Finding("audience", 3, [3, 5])) == "BREACH audience 3 3 5 …"


async def test_all_checks_see_one_moment_and_none_may_take_longer_than_it_needs(db: Pool) -> None:
    """What another breaks meanwhile is not seen; a statement's time is not limited."""
    await sound(db)
    async with db.acquire() as connection:
        await connection.execute("SET statement_timeout = '20s'")
        found = audit.run(connection)
        first = await anext(found)
        assert await connection.fetchval("SHOW statement_timeout") == "0"
        assert await connection.fetchval("SHOW transaction_read_only") == "on"
        await db.execute("DELETE FROM batches")
        assert not [finding async for finding in found if finding.breach]
        assert await connection.fetchval("SHOW statement_timeout") == "20s"
    assert first.name == CHECKS[0].name
    assert set(await breaches(db)) == {"queued_all"}


def test_the_docs_say_what_is_checked() -> None:
    section = DOCS.read_text(encoding="utf-8").split("## Audit")[1].split("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", section, re.M) == [check.name for check in CHECKS]
