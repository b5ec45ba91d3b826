"""Tables as long use leaves them, filled by SQL: clients, and mailings of which a part was sent.

What is filled balances: `server.py audit` finds no breach in it (tests/bench/test_fill.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg

from bench.throughput import a_database
from notifier.storage.migrations import migrate
from notifier.storage.queue import BATCH_SIZE

SMALL = 50_000
LARGE = 5_000_000 if os.environ.get("FULL") else 500_000
SLICE = 5_000  # messages, as the planner's
REPLICAS = 3  # wrote a third of the ledger each
ODD = {"failed": 0, "unknown": 1, "suppressed": 2, "retrying": 3}
"""Of every so many messages one each did not go out: state, and its place among them."""


@contextmanager
def two_databases() -> Iterator[tuple[str, str]]:
    """Yield the addresses of two migrated databases of one server, which goes with the block."""
    with a_database() as first:
        second = urlsplit(first)._replace(path="/second").geturl()
        with psycopg.connect(first, autocommit=True) as admin:
            admin.execute("CREATE DATABASE second")
        migrate(second)
        yield first, second


def clients(dsn: str, count: int) -> None:
    """Add clients with phones from 79000000001 on to a database that has none."""
    with psycopg.connect(dsn, autocommit=True) as db:
        db.execute(
            """
            INSERT INTO clients (phone, operator_code, tags, timezone)
            SELECT 79000000000 + i, (900 + i %% 100)::text, '{sample}', 'Europe/Moscow' FROM generate_series(1, %s) i
            """,
            (count,),
        )
        db.execute("VACUUM ANALYZE clients")


def mailings(
    dsn: str,
    messages: int,
    *,
    count: int = 1,
    through: int = 0,
    sending: int = 0,
    planned: bool = True,
    every: int = 1_000,
    seconds: float = 1800,
) -> list[int]:
    """Add ``count`` running mailings to the first ``messages`` clients each, and return their ids.

    The first ``through`` messages of each have been tried within the last ``seconds``, and were sent but for one of
    each of `ODD` in ``every``; the next ``sending`` (of one batch) are under way; the rest waits, and is due. Without
    ``planned`` the planner goes on with the clients after these.
    """
    assert every >= len(ODD), every
    assert sending <= min(BATCH_SIZE, messages - through), sending
    given = {
        "messages": messages,
        "count": count,
        "through": through,
        "sending": sending,
        "planned": planned,
        "step": seconds / max(through, 1),
        "slice": SLICE,
        "batch": BATCH_SIZE,
        "share": max(1, -(-through // REPLICAS)),  # a third each
        "every": every,
        **ODD,
    }
    with psycopg.connect(dsn, autocommit=True) as db:
        rows = db.execute(
            """
            WITH chosen AS (SELECT max(id) AS last FROM (SELECT id FROM clients ORDER BY id LIMIT %(messages)s) c),
            mailing AS (
                INSERT INTO mailings (name, starts_at, ends_at, status, audience, planned, cursor, horizon)
                SELECT 'Sample ' || i, now() - interval '1 hour', now() + interval '1 day', 'running', %(messages)s,
                       %(planned)s, last, (SELECT max(id) FROM clients)
                FROM chosen, generate_series(1, %(count)s) i
                RETURNING id
            ), text AS (
                INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Здравствуйте!' FROM mailing
            )
            SELECT id FROM mailing ORDER BY id
            """,
            given,
        ).fetchall()
        ids = [row[0] for row in rows]
        assert ids == list(range(ids[0], ids[0] + count)), "somebody else adds mailings"
        taken = db.execute(
            """
            UPDATE message_ids
            SET next = greatest(next, (extract(epoch FROM clock_timestamp() - '2025-01-01Z'::timestamptz)
                                       * 4194304)::bigint) + %(count)s::bigint * %(messages)s
            RETURNING next - %(count)s::bigint * %(messages)s
            """,
            given,
        ).fetchone()
        assert taken is not None
        given |= {"mailing": ids[0], "first": taken[0]}
        for statement in _STATEMENTS:
            db.execute(statement, given)
        db.execute("VACUUM ANALYZE")
    return ids


# Position p, from 0, of the mailing n, from 0, has the id first + n * messages + p.
_STATEMENTS = (
    """
    INSERT INTO messages (id, mailing_id, client_id)
    SELECT %(first)s + n * %(messages)s::bigint + c.position - 1, %(mailing)s + n, c.id
    FROM generate_series(0, %(count)s - 1) n,
         (SELECT id, row_number() OVER (ORDER BY id) AS position FROM clients ORDER BY id LIMIT %(messages)s) c
    ORDER BY 1
    """,
    """
    INSERT INTO slices (mailing_id, first_id, last_id, created_at)
    SELECT %(mailing)s + n, start + p, start + least(p + %(slice)s, %(messages)s) - 1, now() - interval '1 hour'
    FROM generate_series(0, %(count)s - 1) n, generate_series(0, %(messages)s - 1, %(slice)s) p,
         LATERAL (SELECT %(first)s + n * %(messages)s::bigint) first (start)
    """,
    """
    INSERT INTO attempts (message_id, mailing_id, started_at, phone, duration_ms, replica, text_version, outcome,
                          state, seq, status_code, reason)
    SELECT %(first)s + n * %(messages)s::bigint + p, %(mailing)s + n,
           now() - (%(through)s - p) * %(step)s * interval '1 second',
           79000000001 + p, 40, 1 + p / %(share)s, 1,
           CASE state WHEN 'sent' THEN 'accepted' WHEN 'failed' THEN 'rejected' WHEN 'unknown' THEN 'unknown'
                         WHEN 'suppressed' THEN 'suppressed' ELSE 'unavailable' END::outcome,
           state::message_state, 1,
           CASE state WHEN 'sent' THEN 200 WHEN 'failed' THEN 422 END,
           CASE state WHEN 'failed' THEN 'rejected' WHEN 'unknown' THEN 'timeout'
                         WHEN 'suppressed' THEN 'client_deleted' WHEN 'retrying' THEN 'refused' END
    FROM generate_series(0, %(count)s - 1) n, generate_series(0, %(through)s - 1) p,
         LATERAL (
             SELECT CASE p %% %(every)s WHEN %(failed)s THEN 'failed' WHEN %(unknown)s THEN 'unknown'
                                         WHEN %(suppressed)s THEN 'suppressed' WHEN %(retrying)s THEN 'retrying'
                                         ELSE 'sent' END
         ) s (state)
    """,
    """
    INSERT INTO counters (mailing_id, slot, state, n, first_at, last_at)
    SELECT mailing_id, replica %% 8, state, count(*), min(started_at), max(started_at) FROM attempts
    WHERE mailing_id >= %(mailing)s GROUP BY 1, 2, 3
    """,
    """
    INSERT INTO failures (mailing_id, slot, reason, n)
    SELECT mailing_id, replica %% 8, reason, count(*) FROM attempts
    WHERE mailing_id >= %(mailing)s AND state = 'failed' GROUP BY 1, 2, 3
    """,
    """
    INSERT INTO series (mailing_id, slot, at, sent, failed)
    SELECT mailing_id, replica %% 8, date_bin('10 seconds', started_at, 'epoch'),
           count(*) FILTER (WHERE state = 'sent'), count(*) FILTER (WHERE state = 'failed')
    FROM attempts WHERE mailing_id >= %(mailing)s AND state IN ('sent', 'failed') GROUP BY 1, 2, 3
    """,
    # What is to be tried again lies in lists, as the records of a few seconds leave them.
    """
    INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, ids)
    SELECT mailing_id, now() + interval '1 minute', min(id), max(id), count(*), 2, 'retrying', array_agg(id ORDER BY id)
    FROM (
        SELECT mailing_id, message_id AS id,
               row_number() OVER (PARTITION BY mailing_id ORDER BY message_id) / 50 AS list
        FROM attempts WHERE mailing_id >= %(mailing)s AND state = 'retrying'
    ) retried
    GROUP BY mailing_id, list ORDER BY mailing_id, list
    """,
    # The first of these is under way when some are.
    """
    INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, owner, replica, watermark)
    SELECT %(mailing)s + n, now() - interval '1 minute', start + p, start + last, last - p + 1, 1, 'waiting',
           CASE WHEN under_way THEN nextval('owners') END, CASE WHEN under_way THEN 1 END,
           CASE WHEN under_way THEN %(sending)s ELSE 0 END
    FROM generate_series(0, %(count)s - 1) n, generate_series(%(through)s, %(messages)s - 1, %(batch)s) p,
         LATERAL (
             SELECT %(first)s + n * %(messages)s::bigint, least(p + %(batch)s, %(messages)s) - 1,
                    %(sending)s > 0 AND p = %(through)s
         ) b (start, last, under_way)
    ORDER BY n, p
    """,
)
