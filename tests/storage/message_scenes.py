"""Messages of every status there is, and their statuses counted a second time in the plainest way (`reference`)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from notifier.storage.database import Db

AT = datetime(2026, 3, 1, 9, tzinfo=UTC)
PLANNED = datetime(2026, 3, 1, 8, tzinfo=UTC)
DUE = datetime(2026, 3, 1, 10, tzinfo=UTC)

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
