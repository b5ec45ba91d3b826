"""Messages: each scene states its ledger entries and batches, then what people are to see."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import pytest

from notifier.errors import Invalid, NotFound
from notifier.models import Attempt, Message, Outcome, Status
from notifier.storage import mailings, message_lists, messages, statistics
from notifier.storage.database import Db, Pool
from tests.storage.message_scenes import (
    AT,
    DUE,
    PLANNED,
    insert_attempts,
    insert_batch,
    insert_clients,
    insert_everything,
    insert_mailing,
    insert_slice,
    reference,
)

STATUSES = ("running", "paused", "finished", "cancelled")


async def listed(db: Db, mailing_id: int, status: Status | None, limit: int) -> list[Message]:
    """All pages of a list, one after the other."""
    found: list[Message] = []
    cursor = None
    for _ in range(500):
        page, cursor = await messages.of_mailing(db, mailing_id, status, cursor, limit)
        assert len(page) <= limit
        found += page
        if cursor is None:
            return found
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("mailing", STATUSES)
async def test_each_list_has_the_rows_counted(db: Pool, mailing: str) -> None:
    mailing_id = await insert_everything(db, mailing)
    expected = reference(mailing)

    everything = await listed(db, mailing_id, None, 7)
    assert [message.id for message in everything] == sorted(expected, reverse=True)
    assert {message.id: message.status.value for message in everything} == expected
    for status in Status:
        for limit in (1, 3, 50):
            found = [message.id for message in await listed(db, mailing_id, status, limit)]
            assert sorted(found) == sorted(n for n in expected if expected[n] == status), (status, limit)


@pytest.mark.parametrize("mailing", STATUSES)
async def test_the_statistics_are_the_rows_counted(db: Pool, mailing: str) -> None:
    mailing_id = await insert_everything(db, mailing)
    await db.execute(
        """
        INSERT INTO counters (mailing_id, slot, state, n)
        SELECT mailing_id, 0, state, count(*)
        FROM (SELECT DISTINCT ON (message_id) * FROM attempts ORDER BY message_id, seq DESC) last
        WHERE state <> 'waiting' GROUP BY mailing_id, state
        """
    )

    found = await statistics.of_mailing(db, mailing_id)

    assert {status.value: n for status, n in found.messages.items() if n} == Counter(reference(mailing).values())


@pytest.mark.parametrize("mailing", STATUSES)
async def test_a_page_that_examines_few_rows_is_short_and_the_list_complete(
    db: Pool, mailing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(message_lists, "EXAMINED", 2)
    mailing_id = await insert_everything(db, mailing)
    expected = reference(mailing)

    for status in Status:
        found = [message.id for message in await listed(db, mailing_id, status, 2)]
        assert sorted(found) == sorted(n for n in expected if expected[n] == status), status


async def test_what_lies_in_the_ledger_comes_newest_first(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 9))
    for message_id in range(1, 10):
        row = ("accepted", "sent") if message_id % 2 else ("rejected", "failed")
        await insert_attempts(db, mailing_id, message_id, row)

    assert [message.id for message in await listed(db, mailing_id, Status.SENT, 2)] == [9, 7, 5, 3, 1]
    assert [message.id for message in await listed(db, mailing_id, Status.FAILED, 2)] == [8, 6, 4, 2]


async def test_ids_of_another_mailing_between_two_slices_are_not_listed(db: Pool) -> None:
    ours, theirs = await insert_mailing(db), await insert_mailing(db)
    clients = await insert_clients(db, 6)
    await insert_slice(db, ours, 1, clients[:2])
    await insert_slice(db, theirs, 3, clients[2:4])
    await insert_slice(db, ours, 5, clients[4:])
    for message_id, mailing_id in ((1, ours), (2, ours), (3, theirs), (4, theirs), (5, ours), (6, ours)):
        await insert_attempts(db, mailing_id, message_id, ("accepted", "sent"))

    for status in (None, Status.SENT):
        assert [message.id for message in await listed(db, ours, status, 3)] == [6, 5, 2, 1]


async def test_the_text_is_what_the_last_request_carried(db: Pool) -> None:
    """Two versions: the first message was sent before the edit, the second is still waiting."""
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 2))
    await insert_attempts(db, mailing_id, 1, ("unavailable", "retrying"), ("accepted", "sent"))
    await db.execute("UPDATE attempts SET text_version = 1")
    await db.execute("INSERT INTO mailing_texts (mailing_id, version, text) VALUES ($1, 2, 'Edited')", mailing_id)
    await db.execute("UPDATE mailings SET text_version = 2")
    assert [(await messages.get(db, message_id)).text for message_id in (1, 2)] == ["Hi", "Edited"]
    assert [message.text for message in await listed(db, mailing_id, None, 5)] == [None, None]


async def test_when_a_status_became_what_it_is(db: Pool) -> None:
    """Failed and unknown: at the end of the last attempt; expired: when the mailing was over; waiting: never."""
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 4))
    for message_id, state in ((1, "failed"), (2, "unknown"), (3, "retrying")):
        await insert_attempts(db, mailing_id, message_id, ("rejected", state))
    [failed, unknown, retrying, waiting] = [await messages.get(db, message_id) for message_id in (1, 2, 3, 4)]
    for message in (failed, unknown):
        assert message.changed_at == message.timeline[-1].at + timedelta(
            milliseconds=message.timeline[-1].duration_ms or 0
        )
    assert (retrying.changed_at, waiting.changed_at) == (None, None)
    over = await db.fetchval("UPDATE mailings SET status = 'finished', over_at = now() RETURNING over_at")
    assert [(await messages.get(db, message_id)).changed_at for message_id in (3, 4)] == [over, over]


async def test_what_was_started_last_comes_first(db: Pool) -> None:
    """Six messages of two mailings; the newest ids wait."""
    ours, theirs = await insert_mailing(db), await insert_mailing(db)
    clients = await insert_clients(db, 8)
    await insert_slice(db, ours, 1, clients[:2])
    await insert_slice(db, theirs, 3, clients[2:4])
    await insert_slice(db, ours, 5, clients[4:])
    assert await messages.started_last(db, ours, 3) == []
    for message_id, mailing_id in ((1, ours), (2, ours), (3, theirs), (5, ours), (6, ours)):
        await insert_attempts(db, mailing_id, message_id, ("unknown", "retrying"), ("accepted", "sent"))
    assert [message.id for message in await messages.started_last(db, ours, 3)] == [6, 5, 2]
    assert [message.id for message in await messages.started_last(db, ours, 9)] == [6, 5, 2, 1]


async def test_a_message_not_looked_at_yet(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    [client_id] = await insert_clients(db, 1)
    await insert_slice(db, mailing_id, 1, [client_id])
    await insert_batch(db, mailing_id, range(1, 2), 1, "waiting")

    assert await messages.get(db, 1) == Message(
        text="Hi",
        id=1,
        mailing_id=mailing_id,
        client_id=client_id,
        phone=79160000001,
        status=Status.WAITING,
        reason=None,
        attempts=0,
        created_at=PLANNED,
        next_attempt_at=DUE,
        sent_at=None,
        timeline=[],
    )


async def test_a_message_with_its_timeline(db: Pool) -> None:
    """Throttled, not started, taken over, then accepted: three requests; the phone is the one that was texted."""
    mailing_id = await insert_mailing(db)
    [client_id] = await insert_clients(db, 1)
    await insert_slice(db, mailing_id, 1, [client_id])
    rows = [
        ("throttled", "retrying"),
        ("not_started", "retrying"),
        ("interrupted", "doubtful"),
        ("accepted", "sent"),
    ]
    await insert_attempts(db, mailing_id, 1, *rows)

    message = await messages.get(db, 1)

    assert (message.status, message.attempts, message.reason) == (Status.SENT, 3, None)
    assert message.sent_at == AT + timedelta(minutes=4, milliseconds=250)
    assert message.phone == 79990000000
    shown = [Status.RETRYING, Status.RETRYING, Status.RETRYING, Status.SENT]
    assert message.timeline == [
        Attempt(
            seq=seq,
            at=AT + timedelta(minutes=seq),
            outcome=Outcome(outcome),
            status=status,
            reason=None if outcome == "accepted" else f"r{seq}",
            detail=None,
            status_code=None,
            duration_ms=250,
        )
        for seq, ((outcome, _), status) in enumerate(zip(rows, shown, strict=True), start=1)
    ]
    assert [m.timeline for m in await listed(db, mailing_id, None, 5)] == [[]]


async def test_a_message_on_its_way_counts_the_request_that_may_have_started(db: Pool) -> None:
    """1 is under the watermark, 2 beyond it."""
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 2))
    for message_id in (1, 2):
        await insert_attempts(db, mailing_id, message_id, ("unavailable", "retrying"))
    await insert_batch(db, mailing_id, [1, 2], 2, "retrying", watermark=1)

    one, two = await messages.get(db, 1), await messages.get(db, 2)

    assert (one.status, one.attempts, one.next_attempt_at) == (Status.SENDING, 2, None)
    assert (two.status, two.attempts, two.next_attempt_at) == (Status.RETRYING, 1, None)


@pytest.mark.parametrize(
    ("mailing", "status", "reason"),
    [("finished", Status.EXPIRED, "ended"), ("cancelled", Status.CANCELLED, "cancelled")],
)
async def test_a_message_that_was_not_sent_when_the_mailing_was_over_says_why(
    db: Pool, mailing: str, status: Status, reason: str
) -> None:
    """1 was never tried, 2 was, 3 was given back by 0.1.0; none has a next attempt."""
    mailing_id = await insert_mailing(db, mailing)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 3))
    await insert_attempts(db, mailing_id, 2, ("unavailable", "retrying"))
    await insert_attempts(db, mailing_id, 3, ("not_started", "waiting"))
    await db.execute("UPDATE attempts SET reason = 'ended' WHERE message_id = 3")
    await insert_batch(db, mailing_id, range(1, 2), 1, "waiting")
    await insert_batch(db, mailing_id, [2], 2, "retrying")
    await insert_batch(db, mailing_id, [3], 2, "waiting")

    found = await listed(db, mailing_id, status, 5)

    assert [(m.id, m.reason, m.next_attempt_at) for m in found] == [
        (3, reason, None),
        (2, "r1", None),
        (1, reason, None),
    ]


async def test_the_phone_goes_with_the_client(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 2))
    await insert_attempts(db, mailing_id, 1, ("accepted", "sent"))
    await insert_batch(db, mailing_id, range(2, 3), 1, "waiting")
    await db.execute("DELETE FROM clients")

    found = await listed(db, mailing_id, None, 5)

    assert [(message.id, message.phone, message.status) for message in found] == [
        (2, None, Status.WAITING),
        (1, None, Status.SENT),
    ]


async def test_a_client_has_the_messages_of_all_mailings_newest_first(db: Pool) -> None:
    """Five mailings, the fourth deleted; the last one is sent."""
    [client_id, other] = await insert_clients(db, 2)
    for n in range(1, 6):
        mailing_id = await insert_mailing(db)
        await insert_slice(db, mailing_id, n * 10, [client_id, other])
        await insert_batch(db, mailing_id, range(n * 10, n * 10 + 2), 1, "waiting")
    await insert_attempts(db, mailing_id, 50, ("accepted", "sent"))
    await mailings.delete(db, mailing_id - 1)

    first, cursor = await messages.of_client(db, client_id, None, 2)
    second, end = await messages.of_client(db, client_id, cursor, 2)

    assert [(message.id, message.status) for message in (*first, *second)] == [
        (50, Status.SENT),
        (30, Status.WAITING),
        (20, Status.WAITING),
        (10, Status.WAITING),
    ]
    assert end is None


async def test_a_clients_messages_outlive_it(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    [client_id, without] = await insert_clients(db, 2)
    await insert_slice(db, mailing_id, 1, [client_id])
    assert await messages.of_client(db, without, None, 5) == ([], None)
    await db.execute("DELETE FROM clients")

    page, _ = await messages.of_client(db, client_id, None, 5)
    assert [message.id for message in page] == [1]
    with pytest.raises(NotFound):
        await messages.of_client(db, without, None, 5)


async def test_a_deleted_mailings_messages_are_not_found(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 1))
    await mailings.delete(db, mailing_id)

    with pytest.raises(NotFound):
        await messages.get(db, 1)
    with pytest.raises(NotFound):
        await messages.of_mailing(db, mailing_id, None, None, 5)
    with pytest.raises(NotFound):
        await messages.get(db, 2)


@pytest.mark.parametrize(
    ("status", "cursor"),
    [
        (None, (1, 2, 3)),
        (Status.SENT, ()),
        (Status.FAILED, (1, 2, 3)),
        (Status.WAITING, (1,)),
        (Status.UNKNOWN, (1, 2)),
        (Status.SENDING, (1, -1, 1)),
        (Status.WAITING, (1, 2**63, 1)),
    ],
)
async def test_a_cursor_of_another_list_is_refused(db: Pool, status: Status | None, cursor: tuple[int, ...]) -> None:
    mailing_id = await insert_mailing(db)

    with pytest.raises(Invalid):
        await messages.of_mailing(db, mailing_id, status, cursor, 5)
    with pytest.raises(Invalid):
        await messages.of_client(db, 1, (1, 2), 5)
