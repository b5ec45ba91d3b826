"""Messages: each scenario states its ledger rows and batches, then what people are to see.

What every message's status is, is counted a second time in the plainest way there is (`reference`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from notifier.errors import Invalid, NotFound
from notifier.models import Attempt, Message, Outcome, Status
from notifier.storage import mailings, messages, statistics
from notifier.storage.database import Db, Pool

AT = datetime(2026, 3, 1, 9, tzinfo=UTC)
PLANNED = datetime(2026, 3, 1, 8, tzinfo=UTC)
DUE = datetime(2026, 3, 1, 10, tzinfo=UTC)
STATUSES = ("running", "paused", "finished", "cancelled")

# id → its ledger rows, (outcome, state) each
LEDGER = {
    1001: [("accepted", "sent")],
    1009: [("accepted", "sent")],
    1010: [("rejected", "failed")],
    1011: [("suppressed", "suppressed")],
    1012: [("unknown", "doubtful"), ("unknown", "unknown")],
    1013: [("accepted", "sent"), ("resolved", "delivered")],
    1014: [("accepted", "sent"), ("resolved", "undelivered")],
    1015: [("interrupted", "doubtful"), ("accepted", "sent")],  # late: the retry batch still holds it
    1016: [("unknown", "doubtful"), ("unavailable", "doubtful")],
    1017: [("unavailable", "retrying")],
    1018: [("unavailable", "retrying"), ("unknown", "doubtful")],
    1019: [("unknown", "unknown"), ("resolved", "sent")],
    1020: [("unknown", "unknown"), ("resolved", "failed")],
    2001: [("unavailable", "retrying")],
    2002: [("unknown", "doubtful"), ("interrupted", "doubtful")],
    2003: [("interrupted", "doubtful")],
    **{n: [("not_started", "waiting")] for n in range(2011, 2020)},
    2020: [("unknown", "unknown"), ("resolved", "doubtful"), ("unknown", "unknown")],
}
# ids, seq, state, watermark of an owned one, done
BATCHES: list[tuple[Sequence[int], int, str, int, int]] = [
    (range(1001, 1006), 1, "waiting", 3, 1),
    (range(1006, 1009), 1, "waiting", 0, 0),
    ([1017, 2001], 2, "retrying", 0, 0),
    ([1016, 1018, 2002], 3, "doubtful", 1, 0),
    ([1015, 2003], 2, "doubtful", 0, 0),
    (range(2004, 2011), 1, "waiting", 0, 0),
    (list(range(2011, 2020)), 2, "waiting", 2, 0),
]


async def insert_mailing(db: Db, status: str = "running") -> int:
    mailing_id: int = await db.fetchval(
        """
        WITH m AS (
            INSERT INTO mailings (starts_at, ends_at, status, planned)
            VALUES (now() - interval '1h', now() + interval '1h', $1::text::mailing_status, true) RETURNING id
        ), t AS (INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Hi' FROM m)
        SELECT id FROM m
        """,
        status,
    )
    return mailing_id


async def insert_clients(db: Db, count: int) -> list[int]:
    rows = await db.fetch(
        "INSERT INTO clients (phone, operator_code) SELECT 79160000000 + n, '916' FROM generate_series(1, $1) n "
        "RETURNING id",
        count,
    )
    return [row["id"] for row in rows]


async def insert_slice(db: Db, mailing_id: int, first_id: int, clients: Sequence[int]) -> None:
    """Messages with ids from ``first_id`` on, one per client."""
    await db.execute(
        "INSERT INTO slices VALUES ($1, $2, $3, $4)", mailing_id, first_id, first_id + len(clients) - 1, PLANNED
    )
    await db.executemany(
        "INSERT INTO messages VALUES ($1, $2, $3)",
        [(first_id + position, mailing_id, client) for position, client in enumerate(clients)],
    )
    await db.execute("UPDATE mailings SET audience = audience + $2 WHERE id = $1", mailing_id, len(clients))


async def insert_attempts(db: Db, mailing_id: int, message_id: int, *rows: tuple[str, str]) -> None:
    """Rows 1, 2, 3, a minute apart and 250 ms long; each but an accepted one has a reason of its number."""
    await db.executemany(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, phone, duration_ms, outcome, state, seq, reason)
        VALUES ($1, $2, $3, 79990000000, 250, $4::text::outcome, $5::text::message_state, $6, $7)
        """,
        [
            (
                message_id,
                mailing_id,
                AT + timedelta(minutes=seq),
                outcome,
                state,
                seq,
                None if outcome == "accepted" else f"r{seq}",
            )
            for seq, (outcome, state) in enumerate(rows, start=1)
        ],
    )


async def insert_batch(
    db: Db, mailing_id: int, ids: Sequence[int], seq: int, state: str, watermark: int = 0, done: int = 0
) -> None:
    await db.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, ids, owner, replica, watermark,
                             done)
        VALUES ($1, $2, $3, $4, $5, $6, $7::text::message_state, $8, $9::int, $9::int, $10, $11)
        """,
        mailing_id,
        DUE,
        ids[0],
        ids[-1],
        len(ids),
        seq,
        state,
        None if isinstance(ids, range) else ids,
        1 if watermark else None,
        watermark,
        done,
    )


async def insert_everything(db: Db, status: str) -> int:
    """40 messages in two slices, of every status there is."""
    mailing_id = await insert_mailing(db, status)
    clients = await insert_clients(db, 40)
    await insert_slice(db, mailing_id, 1001, clients[:20])
    await insert_slice(db, mailing_id, 2001, clients[20:])
    for message_id, rows in LEDGER.items():
        await insert_attempts(db, mailing_id, message_id, *rows)
    for batch in BATCHES:
        await insert_batch(db, mailing_id, *batch)
    return mailing_id


def reference(mailing: str) -> dict[int, str]:
    """Every message's status, counted from the scenario above."""
    over = {"finished": "expired", "cancelled": "cancelled"}.get(mailing)
    statuses = {}
    for message_id in (*range(1001, 1021), *range(2001, 2021)):
        rows = LEDGER.get(message_id, [])
        status = rows[-1][1] if rows else "waiting"
        for ids, seq, _, watermark, _ in BATCHES:
            if message_id in ids[:watermark] and len(rows) < seq:
                status = "sending"
        if status in ("waiting", "retrying") and over:
            status = over
        if status == "doubtful":
            status = "unknown" if over else "retrying"
        statuses[message_id] = status
    return statuses


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
    monkeypatch.setattr(messages, "EXAMINED", 2)
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
