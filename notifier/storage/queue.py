"""The queue: batches are claimed, loaded, rescheduled and reclaimed here, and recorded in `recording.py`.

A batch stands for up to 500 message rows, so a claim costs the same at ten thousand and at ten million waiting. In the
order of a message's way: `claim` → `load` (→ `reschedule`) → `recording.record`, which also moves the watermark;
`reclaim` when an owner is dead. What a column means is said in migrations/0001 and 0009; why it holds is said in
docs/invariants.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple

import asyncpg

from notifier.errors import Stale
from notifier.models import IN_DOUBT, MessageState, Window
from notifier.policy import COUNTED
from notifier.storage.database import Db
from notifier.storage.literals import listed

BATCH_SIZE = 500  # ids; a claim is paid once per batch, and a dead owner's leftovers stay small


class SendSettings(NamedTuple):
    """What sending needs to know of a mailing, as of its ``version``."""

    version: int
    priority: int
    window: Window | None
    text: str
    text_version: int
    ends_at: datetime


_SEND_SETTINGS = """
    m.version, m.priority, m.window_from, m.window_to, m.text_version, m.ends_at,
    (SELECT text FROM mailing_texts WHERE mailing_id = m.id AND version = m.text_version) AS text
"""


def _send_settings(row: asyncpg.Record) -> SendSettings:
    return SendSettings(
        version=row["version"],
        priority=row["priority"],
        window=Window.between(row["window_from"], row["window_to"]),
        text=row["text"],
        text_version=row["text_version"],
        ends_at=row["ends_at"],
    )


async def send_settings(db: Db, mailing_id: int) -> SendSettings | None:
    """The send settings of a mailing at this moment; None when it was deleted."""
    row = await db.fetchrow(f"SELECT {_SEND_SETTINGS} FROM mailings m WHERE id = $1 AND deleted_at IS NULL", mailing_id)
    return None if row is None else _send_settings(row)


@dataclass(frozen=True, slots=True)
class Claimed:
    """A batch that is ours: ``ids`` in order; so many from the front as ``watermark`` says may have been started."""

    id: int
    owner: int
    mailing_id: int
    due_at: datetime
    seq: int
    state: MessageState
    ids: Sequence[int]
    watermark: int
    done: int
    foreign_rows: int
    send_settings: SendSettings | None = field(default=None, compare=False)  # None for one that was reclaimed


def _claimed(row: asyncpg.Record, send_settings: SendSettings | None = None) -> Claimed:
    ids = row["ids"]
    return Claimed(
        id=row["id"],
        owner=row["owner"],
        mailing_id=row["mailing_id"],
        due_at=row["due_at"],
        seq=row["seq"],
        state=MessageState(row["state"]),
        ids=range(row["first_id"], row["last_id"] + 1) if ids is None else ids,
        watermark=row["watermark"],
        done=row["done"],
        foreign_rows=row["foreign_rows"],
        send_settings=send_settings,
    )


async def claim(
    db: Db, replica: int, *, after: int, busy: Sequence[int] = (), retries: bool = False, limit: int = 1
) -> list[Claimed]:
    """Due and unowned → owned by ``replica``: up to ``limit`` batches, those of the mailing whose turn it is first.

    Higher priority first, then the mailing next after ``after``; never one of ``busy``. With ``retries`` only second
    and later tries are looked at. The LATERAL under a LIMIT stops at the first mailing that has something due, and SKIP
    LOCKED lets replicas pass each other without waiting.
    """
    due = """
        SELECT b.id FROM batches b
        WHERE b.mailing_id = turn.id AND b.owner IS NULL AND b.due_at <= now(){only}
        ORDER BY b.due_at, b.id LIMIT $4 FOR UPDATE SKIP LOCKED
    """.format(only=" AND b.seq > 1" if retries else "")
    rows = await db.fetch(
        f"""
        WITH turn AS MATERIALIZED (
            SELECT id FROM mailings
            WHERE status = 'running' AND ends_at > now() AND id <> ALL($3::bigint[])
            ORDER BY priority DESC, id <= $2, id
        ), due AS MATERIALIZED (
            SELECT picked.id FROM turn CROSS JOIN LATERAL ({due}) picked LIMIT $4
        ), claimed AS (
            UPDATE batches SET owner = (SELECT nextval('owners')), replica = $1
            WHERE id = ANY (ARRAY (SELECT id FROM due))  -- a join may become one of the whole table
            RETURNING batches.*
        )
        -- one by one, for the same reason
        SELECT * FROM claimed CROSS JOIN LATERAL (
            SELECT {_SEND_SETTINGS} FROM mailings m WHERE m.id = claimed.mailing_id LIMIT 1
        ) send_settings
        """,
        replica,
        after,
        list(busy),
        limit,
    )
    return [_claimed(row, _send_settings(row)) for row in rows]


async def seconds_to_next(db: Db) -> float | None:
    """Seconds until the next unowned batch of a running mailing is due (0 when one is); None when there is none."""
    seconds = await db.fetchval(
        """
        SELECT extract(epoch FROM min(due.at) - clock_timestamp())
        FROM mailings m CROSS JOIN LATERAL (
            SELECT due_at AS at FROM batches WHERE mailing_id = m.id AND owner IS NULL ORDER BY due_at LIMIT 1
        ) due
        WHERE m.status = 'running'
        """
    )
    return None if seconds is None else max(0.0, float(seconds))


async def hours_open_at(db: Db, mailing_ids: Sequence[int]) -> dict[int, datetime]:
    """Of these mailings those of which nothing is under way or due, and when the first untried messages are."""
    rows = await db.fetch(
        """
        SELECT m.id, next.due_at
        FROM unnest($1::bigint[]) m (id) CROSS JOIN LATERAL (
            SELECT due_at, state FROM batches WHERE mailing_id = m.id AND owner IS NULL ORDER BY due_at LIMIT 1
        ) next
        WHERE next.state = 'waiting' AND next.due_at > now()
          AND NOT EXISTS (SELECT FROM batches WHERE mailing_id = m.id AND owner IS NOT NULL)
        """,
        mailing_ids,
    )
    return {row["id"]: row["due_at"] for row in rows}


class Loaded(NamedTuple):
    """What sending one message needs; ``phone`` is None when the client is gone.

    ``recorded``: its (message, seq) row is there already, nothing is left to do. The rest is its history: attempts that
    count against the cap, that were declined because of the message or its recipient, and that left open whether the
    text was sent; ``let_go``: since the last of these an operator had it sent again.
    """

    id: int
    phone: int | None
    timezone: str | None
    recorded: bool
    counted: int
    declined: int
    in_doubt: int
    let_go: bool = False


async def load(db: Db, ids: Sequence[int], seqs: Sequence[int]) -> list[Loaded]:
    """One row per id, in the order given. LEFT JOINs, so that a row missing anywhere cannot hide a message."""
    rows = await db.fetch(
        f"""
        SELECT t.id, c.phone, c.timezone, coalesce(h.recorded, false) AS recorded, h.counted, h.declined, h.in_doubt,
               coalesce(h.last_let_go > h.last_doubt, false) AS let_go
        FROM unnest($1::bigint[], $2::smallint[]) WITH ORDINALITY t (id, seq, position)
        LEFT JOIN messages m ON m.id = t.id
        LEFT JOIN clients c ON c.id = m.client_id
        CROSS JOIN LATERAL (
            SELECT bool_or(a.seq = t.seq) AS recorded,
                   count(*) FILTER (WHERE a.outcome IN ({listed(COUNTED)})
                                      AND a.reason IS DISTINCT FROM 'outage') AS counted,
                   count(*) FILTER (WHERE a.outcome = 'declined'
                                      AND a.reason IS DISTINCT FROM 'account_refused') AS declined,
                   count(*) FILTER (WHERE a.outcome IN ({listed(IN_DOUBT)})) AS in_doubt,
                   max(a.seq) FILTER (WHERE a.outcome IN ({listed(IN_DOUBT)})) AS last_doubt,
                   max(a.seq) FILTER (WHERE a.outcome = 'resolved') AS last_let_go
            FROM attempts a WHERE a.message_id = t.id
        ) h
        ORDER BY t.position
        """,
        ids,
        seqs,
    )
    if len(rows) != len(ids):
        raise AssertionError(f"{len(ids)} ids asked for, {len(rows)} rows loaded")
    return [Loaded(*row) for row in rows]


async def reschedule(
    db: Db, batch: Claimed, keep: Sequence[int], moved: Sequence[tuple[int, datetime]], *, version: int
) -> bool:
    """Take ``moved`` ids out of an owned batch into unowned ones with their due times; False when it has changed.

    It has when it is not ours any more, or when its tail was released meanwhile: those ids stand elsewhere by then.
    Raises Stale when the mailing is not of ``version`` any more, and the due times may be those of another window.

    ``keep`` are the ids that stay, those already loaded first and in their old order, so that a watermark keeps its
    meaning. Only ids beyond the watermark may be moved: they need no ledger row.
    """
    row = await db.fetchrow(
        """
        WITH mailing AS MATERIALIZED (
            -- locked: an edit of the window makes unowned batches due at once, and must not miss those added here
            SELECT id FROM mailings WHERE id = $7 AND version = $8 FOR SHARE
        ), mine AS MATERIALIZED (
            SELECT b.* FROM mailing JOIN batches b ON b.mailing_id = mailing.id
            WHERE b.id = $1 AND b.owner = $2 AND b.size = $6 FOR UPDATE OF b
        ), kept AS (
            UPDATE batches b
            SET ids = $3::bigint[], size = cardinality($3::bigint[]), first_id = ($3::bigint[])[1],
                last_id = ($3::bigint[])[cardinality($3::bigint[])]
            FROM mine WHERE b.id = mine.id AND cardinality($3::bigint[]) > 0
        ), emptied AS (
            DELETE FROM batches b USING mine WHERE b.id = mine.id AND cardinality($3::bigint[]) = 0
        ), sorted AS (
            INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, ids)
            SELECT mine.mailing_id, m.due_at, min(m.id), max(m.id), count(*), mine.seq, mine.state,
                   array_agg(m.id ORDER BY m.id)
            FROM mine CROSS JOIN unnest($4::bigint[], $5::timestamptz[]) m (id, due_at)
            GROUP BY mine.mailing_id, m.due_at, mine.seq, mine.state
        )
        SELECT EXISTS (SELECT FROM mailing) AS current, EXISTS (SELECT FROM mine) AS done
        """,
        batch.id,
        batch.owner,
        list(keep),
        [message_id for message_id, _ in moved],
        [due_at for _, due_at in moved],
        len(batch.ids),
        batch.mailing_id,
        version,
    )
    assert row is not None
    if not row["current"]:
        raise Stale
    return bool(row["done"])


class Owned(NamedTuple):
    """A batch that somebody owns, as one look shows it; ``over``: its mailing is."""

    id: int
    owner: int
    replica: int
    watermark: int
    done: int
    size: int
    over: bool


async def owned(db: Db) -> list[Owned]:
    """Every owned batch: a few for each replica."""
    rows = await db.fetch(
        """
        SELECT b.id, b.owner, b.replica, b.watermark, b.done, b.size, m.over_at IS NOT NULL AS over
        FROM batches b JOIN mailings m ON m.id = b.mailing_id WHERE b.owner IS NOT NULL
        """
    )
    return [Owned(*row) for row in rows]


async def reclaim(db: Db, replica: int, batches: Sequence[Owned]) -> list[Claimed]:
    """Owned by the dead or the stuck → owned by ``replica``: those that still are as they were seen, without progress.

    The new claim number shuts the old owner out. Two that reclaim at once share.
    """
    rows = await db.fetch(
        """
        WITH left_behind AS MATERIALIZED (
            SELECT b.id FROM batches b
            JOIN unnest($2::bigint[], $3::bigint[], $4::int[], $5::int[]) seen (id, owner, watermark, done)
                USING (id, owner, watermark, done)
            ORDER BY b.id FOR UPDATE OF b SKIP LOCKED
        )
        UPDATE batches SET owner = (SELECT nextval('owners')), replica = $1
        FROM left_behind l WHERE batches.id = l.id
        RETURNING batches.*
        """,
        replica,
        [batch.id for batch in batches],
        [batch.owner for batch in batches],
        [batch.watermark for batch in batches],
        [batch.done for batch in batches],
    )
    return [_claimed(row) for row in rows]
